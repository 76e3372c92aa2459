"""What a person sees of a run while it goes on: a live panel in a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TextIO

from ptcli.run.health import Heartbeat
from ptcli.run.masking import mask

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_INTERVAL = 5.0
"""Seconds between two lines of steps, where there is no terminal."""
_DRAW_INTERVAL = 0.5


class View(Protocol):
    """What the supervisor tells of a run."""

    def show(self, activity: str, beat: Heartbeat | None = None) -> None:
        """What is going on now; called several times a second."""

    def say(self, text: str) -> None:
        """Something that happened once."""

    def fail(self, cause: str, details: Sequence[str]) -> None:
        """Why the run failed, and the lines of logs that tell more."""

    def close(self) -> None:
        """Nothing more comes."""


def choose_view(*, quiet: bool, stream: TextIO | None = None) -> View:
    """Silent for `quiet` (`--json`), a panel for a terminal that can redraw, plain lines for anything else."""
    stream = stream or sys.stderr
    if quiet:
        return Silent(stream)
    return Panel(stream) if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" else Lines(stream)


class Silent:
    """Says nothing but why a run failed."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def show(self, activity: str, beat: Heartbeat | None = None) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def fail(self, cause: str, details: Sequence[str]) -> None:
        self._print("\n".join([*details, f"error: {cause}"]))

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        # A terminal that was closed must not keep us from ending the run in order.
        with suppress(OSError, ValueError):
            print(mask(text), file=self._stream, flush=True)


class Lines(Silent):
    """A line at every change and, now and then, for a step."""

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self._activity = ""
        self._step = 0
        self._clock = Clock()
        self._printed = 0.0

    def show(self, activity: str, beat: Heartbeat | None = None) -> None:
        if activity != self._activity:
            self._activity = activity
            self.say(activity)
        if beat is None:
            return
        self._clock.take(beat)
        due = time.monotonic() - self._printed >= _LINE_INTERVAL or beat.step == beat.total
        if beat.step > self._step and due:
            self._step, self._printed = beat.step, time.monotonic()
            self._print("  ".join(figures(beat, self._clock)))

    def say(self, text: str) -> None:
        self._print(f"[{short_time(self._clock.elapsed())}] {text}")


class Panel(Silent):
    """A few lines at the bottom of the terminal that are drawn again in place."""

    def __init__(self, stream: TextIO):
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream)
        self._console = Console(file=stream)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._clock = Clock()
        self._activity = ""
        self._since = self._drawn = 0.0

    def show(self, activity: str, beat: Heartbeat | None = None) -> None:
        now = time.monotonic()
        if activity != self._activity:
            self._activity, self._since = activity, now
        elif now - self._drawn < _DRAW_INTERVAL:
            return
        self._drawn = now
        if beat:
            self._clock.take(beat)
        with suppress(OSError, ValueError):
            self._live.start()
            self._live.update(self._draw(beat, now), refresh=True)

    def _draw(self, beat: Heartbeat | None, now: float) -> RenderableType:
        from rich.panel import Panel as Box
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(expand=True)
        grid.add_row(Text.assemble(self._activity, "  ", (short_time(now - self._since), "dim")))
        if beat and beat.step:
            grid.add_row(ProgressBar(total=beat.total or beat.step, completed=beat.step))
            grid.add_row("  ".join(figures(beat, self._clock)))
        return Box(grid, title="ptcli", title_align="left")

    def say(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._console.print(f"[{short_time(self._clock.elapsed())}] {text}", markup=False, highlight=False)

    def fail(self, cause: str, details: Sequence[str]) -> None:
        self.close()
        super().fail(cause, details)

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._live.stop()


class Clock:
    """Elapsed time, and time left by the pace of the steps that were seen."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def take(self, beat: Heartbeat) -> None:
        # Step 0 is left out: the first step compiles and connects, so it is no measure of the others.
        if not beat.step or (self._last and beat.step <= self._last[0]):
            return
        self._last = (beat.step, time.monotonic())
        self._first = self._first or self._last

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def left(self, total: int | None) -> float | None:
        """Seconds to the last step; None when that can't be told."""
        if not (total and self._first and self._last and self._last[0] > self._first[0]):
            return None
        pace = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return max(0.0, pace * (total - self._last[0]) - (time.monotonic() - self._last[1]))


def figures(beat: Heartbeat, clock: Clock) -> list[str]:
    """Step, reward, loss, tokens, time elapsed and left, as far as they are known."""
    left = clock.left(beat.total)
    return [
        f"step {beat.step}{f'/{beat.total}' if beat.total else ''}",
        *([f"reward {beat.reward:.3f}"] if beat.reward is not None else []),
        *([f"loss {beat.loss:.4g}"] if beat.loss is not None else []),
        *([f"tokens {beat.tokens:,.0f}"] if beat.tokens is not None else []),
        f"elapsed {short_time(clock.elapsed())}",
        *([f"left {short_time(left)}"] if left is not None else []),
    ]


def short_time(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
