"""Everything that ptcli raises on purpose, and the exit code each branch stands for.

    PtcliError
    ├── RequestError   2    the request is wrong: recipe, option, machine, a file that is not there
    ├── WorkError      1    the work failed: training crashed, the server died, nothing was trained
    └── Interrupted  130/143  stopped by Ctrl-C, or by SIGTERM or SIGUSR1, after a clean teardown

A `RequestError` carries `Problem`s, all that could be found at once. A problem names the recipe key at fault; the
`Position` in the file is attached by whoever knows the sources (`ptcli.recipe.loading.SourceMap`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]
"""A place in a recipe: `("data", "train", 0, "path")` is `data.train.0.path`."""


@dataclass(frozen=True)
class Position:
    """A place in a text that a person wrote. `line` and `column` count from 1; 0 means that the whole file is meant.

    For an override, `file` is the override as typed (`training.lr=1`) and line and column are 0.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request: what, where, and what to do about it."""

    message: str
    """What is wrong, in one sentence without a full stop."""
    fix: str = ""
    """What to do about it, in one sentence; empty when the message says it."""
    key: KeyPath = ()
    """The recipe key at fault; empty when it is not in the recipe."""
    where: Position | None = None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}{'; ' + self.fix if self.fix else ''}"


class PtcliError(Exception):
    """Base of every error that ptcli reports without a traceback."""

    exit_code = 1


class RequestError(PtcliError):
    """The request is wrong. Nothing was started or written."""

    exit_code = 2

    def __init__(self, problems: Problem | str | Iterable[Problem]):
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class WorkError(PtcliError):
    """The work failed after it was started. The message is the cause as `status.json` records it."""

    exit_code = 1


class Interrupted(PtcliError):
    """A signal ended the work, after a clean teardown."""

    def __init__(self, signum: int, outcome: str = ""):
        """`outcome`: what became of the work, as `checkpoint-500 is saved`."""
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}{'; ' + outcome if outcome else ''}")

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """SIGUSR1 is a scheduler's early SIGTERM, and ends as that does."""
        return 128 + (signal.SIGTERM if self.signum == signal.SIGUSR1 else self.signum)
