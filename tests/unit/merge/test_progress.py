"""What is told while a merge goes on."""

from __future__ import annotations

from typing import Any

import pytest

from ptcli.merge import progress
from ptcli.merge.progress import Reporter, progress_line


class Shown:
    """A view that keeps what it is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def show(self, activity: str, beat: Any = None) -> None:
        self.lines.append(activity)


def test_bytes_and_time_left() -> None:
    line = progress_line("merging", 1_590_000_000, 3_180_000_000, 2.0)
    assert line == "merging [############------------] 1.59 GB of 3.18 GB, 0:02 left"
    assert progress_line("looking", 1, 4, 0.1) == "looking [######------------------] 1 of 4"
    assert progress_line("loading the base", 0, 0, 9.0) == "loading the base"


def test_a_look_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    view = Shown()
    report = Reporter(view)  # type: ignore[arg-type]
    for done in range(10):
        now[0] += 1.0
        report("merging", done, 10)
    report("saving", 0, 0)
    assert [line.partition(" ")[0] for line in view.lines] == ["merging", "merging", "saving"]
