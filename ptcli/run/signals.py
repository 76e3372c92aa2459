"""Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP: noted instead of obeyed at once, so that a run is ended in order, or raised."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ptcli.errors import Interrupted

_SAME = 0.5
"""Seconds in which a repeated signal is the same wish: a terminal and a parent may both deliver it."""


class Signals:
    """A context manager that catches the signals that end a run and puts the old handlers back afterwards."""

    def __init__(self) -> None:
        self._received: list[tuple[int, float]] = []
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                # nohup ignores SIGHUP for us, and means it.
                if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                    self._old[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._received.append((signum, time.monotonic()))

    def take(self, signum: int) -> None:
        """Count one that another node of the run got."""
        self._note(signum, None)

    @property
    def received(self) -> int | None:
        """The first that came."""
        return self._received[0][0] if self._received else None

    def check(self) -> None:
        """Raise Interrupted if one came."""
        if self._received:
            raise Interrupted(self._received[0][0])

    def hurry(self) -> bool:
        """True once it was asked twice."""
        return bool(self._received) and self._received[-1][1] - self._received[0][1] > _SAME


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise Interrupted wherever the work is when a signal comes: for work that leaves nothing to be ended in order."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    old = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
