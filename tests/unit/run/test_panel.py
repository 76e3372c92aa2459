"""What a person sees: in a terminal, in a file, and with --json."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from ptcli.run import panel
from ptcli.run.health import Heartbeat
from ptcli.run.panel import Clock, Lines, Panel, Silent, choose_view, figures, short_time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def a_run(view: panel.View) -> None:
    view.show("starting the rollout server")
    view.say("rollout server ready")
    for step in range(1, 6):
        view.show("training", Heartbeat("training", step, 5, tokens=1234 * step, loss=0.25, reward=0.5))
    view.fail("trainer died", ["--- last lines", "Traceback"])
    view.close()


@pytest.mark.parametrize(
    ("stream", "quiet", "kind"), [(Terminal, False, Panel), (io.StringIO, False, Lines), (Terminal, True, Silent)]
)
def test_choice(stream: Callable[[], io.StringIO], quiet: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert type(choose_view(quiet=quiet, stream=stream())) is kind


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert type(choose_view(quiet=False, stream=Terminal())) is Lines


def test_lines() -> None:
    stream = io.StringIO()
    a_run(Lines(stream))
    text = stream.getvalue()
    assert text.count("starting the rollout server") == 1
    assert "step 1/5  reward 0.500  loss 0.25  tokens 1,234" in text
    assert "step 5/5" in text
    assert "step 3/5" not in text, "a line a step would be too many"
    assert text.endswith("--- last lines\nTraceback\nerror: trainer died\n")
    assert "\x1b" not in text


def test_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel, "_DRAW_INTERVAL", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    a_run(Panel(stream))
    text = stream.getvalue()
    for expected in ("starting the rollout server", "step 3/5", "reward 0.500", "tokens 6,170", "error: trainer died"):
        assert expected in text


def test_silent_says_only_why_it_failed() -> None:
    stream = io.StringIO()
    a_run(Silent(stream))
    assert stream.getvalue() == "--- last lines\nTraceback\nerror: trainer died\n"


@pytest.mark.parametrize("view", [Silent, Lines, Panel])
def test_a_terminal_that_was_closed_does_not_matter(view: type[Silent]) -> None:
    a_run(view(Closed()))


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(panel.time, "monotonic", lambda: now[0])
    clock = Clock()
    for step in (3, 4, 5):
        now[0] += 10
        clock.take(Heartbeat("training", step, 10))
    assert clock.left(10) == 50
    assert clock.left(None) is None
    assert "left 0:50" in figures(Heartbeat("training", 5, 10), clock)


@pytest.mark.parametrize(("seconds", "text"), [(7.9, "0:07"), (754, "12:34"), (3723, "1:02:03")])
def test_short_time(seconds: float, text: str) -> None:
    assert short_time(seconds) == text
