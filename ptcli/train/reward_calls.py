"""What the trainer and the process of a reward say to each other, and how a failure of user code is put in words.

Imports nothing heavy. The classes live here and not in the program, whose `__main__` pickle could not find again.
"""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ptcli.errors import WorkError
from ptcli.run.masking import mask

Scores = list[float | None]
"""One number for each completion; None where the reward does not apply."""

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Parameter:
    """A parameter of a reward, as far as a trainer cares, which passes everything by keyword."""

    name: str
    required: bool


@dataclass(frozen=True)
class Ready:
    """The function is loaded."""

    name: str
    is_async: bool
    parameters: tuple[Parameter, ...] | None
    """None when the function does not say what it takes."""
    takes_all: bool
    """It has `**kwargs`."""


@dataclass(frozen=True)
class Call:
    """One call: the columns, and which of the trainer's functions for logging the reward may call."""

    columns: dict[str, Any]
    loggers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The result of a call."""

    scores: Scores
    logged: tuple[tuple[str, str, Any], ...] = ()
    """What it logged, in order: `log_extra` or `log_metric`, name, value."""


@dataclass(frozen=True)
class Failure:
    """Why there is no result. Secrets of the environment are masked."""

    message: str
    """One line, with the type of the exception where there was one."""
    place: str = ""
    """`file.py:12`, the innermost line of the user's own code."""
    trace: str = ""
    """The traceback, for the log."""
    kind: str = ""
    """Name of the exception's type."""

    def __str__(self) -> str:
        return f"{self.message} ({self.place})" if self.place else self.message


def failure_of(error: BaseException) -> Failure:
    """A failure in words. What ptcli itself says of a mistake stands as it is."""
    cause = error.__cause__ if isinstance(error, WorkError) and error.__cause__ else error
    text = " ".join(str(error).split()) if isinstance(error, WorkError) else _describe(error)
    trace = "".join(traceback.format_exception(cause))
    return Failure(mask(text), _place(cause), mask(trace), type(cause).__name__)


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called exit({'' if error.code is None else error.code!r})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}"
    frames = list(_frames(error.__traceback__))
    own = [frame for frame in frames if not _is_foreign(frame[0])]
    installed = [frame for frame in frames if not frame[0].startswith((_OURS, "<"))]
    chosen = (own or installed or [("", 0)])[-1]
    return f"{chosen[0]}:{chosen[1]}" if chosen[1] else ""


def _frames(trace: TracebackType | None) -> Sequence[tuple[str, int]]:
    return [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]


def _is_foreign(file: str) -> bool:
    """True for code that is not the user's: ours, an installed package's, Python's own."""
    return file.startswith((_OURS, *_INSTALLED, "<")) or not linecache.getline(file, 1)


def read_scores(result: Any, expected: int) -> Scores:
    """The result of a reward as numbers. Raises WorkError for what a trainer could not use."""
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__iter__"):
        shown = "None" if result is None else f"a {type(result).__name__}"
        raise WorkError(f"it returned {shown} instead of a list of numbers, one for each completion")
    scores = [_read_score(each) for each in result]
    if len(scores) != expected:
        counted = f"{len(scores)} number{'' if len(scores) == 1 else 's'}"
        raise WorkError(f"it returned {counted} for {expected} completions; it must return one for each")
    return scores


def _read_score(value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError) as error:
        message = f"it returned a {type(value).__name__} ({str(value)[:40]!r}) among its rewards"
        raise WorkError(f"{message}; each must be a number, or None where it does not apply") from error
