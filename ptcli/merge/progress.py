"""How far a merge is: a bar, bytes done, and the time left by the pace so far."""

from __future__ import annotations

import sys
import time

from ptcli.merge.publish import gigabytes
from ptcli.run.panel import View, short_time

_TERMINAL, _PLAIN = 0.25, 5.0
"""Seconds between two looks, where a line can be drawn again and where each is printed."""
_WIDTH = 24
_BYTES = 10_000_000
"""Counts beyond it are bytes; below, they are layers and the like."""


class Reporter:
    """Passes a merge's progress on to a view, now and then. Called by one thread at a time."""

    def __init__(self, view: View):
        self._view = view
        self._activity, self._since, self._shown = "", 0.0, 0.0
        self._interval = _TERMINAL if sys.stderr.isatty() else _PLAIN

    def __call__(self, activity: str, done: int, total: int) -> None:
        now = time.monotonic()
        if activity != self._activity:
            self._activity, self._since, self._shown = activity, now, 0.0
        if now - self._shown >= self._interval:
            self._shown = now
            self._view.show(progress_line(activity, done, total, now - self._since))


def progress_line(activity: str, done: int, total: int, seconds: float) -> str:
    """`merging [#####-------------------] 1.65 of 3.18 GB, 0:02 left`"""
    if not total:
        return activity
    filled = min(_WIDTH, _WIDTH * done // total)
    amount = f"{gigabytes(done)} of {gigabytes(total)}" if total >= _BYTES else f"{done} of {total}"
    left = f", {short_time(seconds * (total - done) / done)} left" if done and seconds >= 1 else ""
    return f"{activity} [{'#' * filled}{'-' * (_WIDTH - filled)}] {amount}{left}"
