"""Reading the logs of a run that went wrong: the last lines, and the line that says why."""

from __future__ import annotations

import re
from pathlib import Path

from ptcli.run.masking import mask

_READ_BYTES = 4 << 20
_PREFIX = re.compile(
    r"^(?:\([^()]*\bpid=\d+\)\s?)?"
    r"(?:(?:ERROR|CRITICAL|WARNING|INFO) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?"
    r"(?:\[rank\d+\]:\s?)?"
)
"""What vLLM and torch put before each line, of a traceback too."""
_START = "Traceback (most recent call last):"
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Failure|Timeout|Warning|NotFound)\b")
_CHAINED = re.compile(r"^(?:During handling of the above|The above exception was the direct cause)")
_WRAPPERS = re.compile(r"(?:ChildFailedError|CalledProcessError|SignalException|EngineDeadError|SystemExit)\b")
"""Errors that only say that another process, with an error of its own, ended."""
_LAUNCHERS = re.compile(r"(?:ChildFailedError|CalledProcessError)\b")
_OWN = "error: "
"""How ptcli's worker begins the line that says why it ends."""
_PLAIN = re.compile(
    r"(?:exited|died) unexpectedly|Fatal Python error|Segmentation fault|terminate called|"
    r"^(?!.*\b(?:WARNING|INFO|DEBUG|\w*Warning)\b)"
    r".*(?:out of memory|\berror: |\b\w+Error: |\b(?:ERROR|CRITICAL|FATAL)\b)"
)
_NOISE = re.compile(r"nanobind|^ - (?:leaked|\.\.\. skipped)|resource_tracker|warnings\.warn\(")
"""What interpreters say when they end, and nobody can use."""
_COMMAND = re.compile(r"\S*CalledProcessError: Command .*?(?=(?:died with|returned non-zero exit status) )")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_KILLED_RANK = re.compile(
    r"^  rank +: (\d+) .*\n(?:  .*\n){0,3}?  traceback : Signal (\d+) \((SIG(?:KILL|SEGV|BUS|ILL|FPE))\)", re.MULTILINE
)
"""What torchrun reports of a worker that a signal ended. Not SIGTERM and SIGABRT, which come of other failures."""
_LONGEST = 400


def tail(log: Path, lines: int = 20) -> list[str]:
    """The last lines of a log as a terminal would show them, secrets masked; empty when there is none."""
    useful = [line for line in _without_launchers(_read(log)) if not _NOISE.search(line)]
    return [_shorten(line) for line in useful][-lines:]


def first_error(log: Path) -> str | None:
    """The line that says what went wrong first: a killed worker of several, what ptcli's worker says, the end of the
    first traceback, or the first line that looks like it.

    Of a chain of exceptions it is the last one, which is what the program that raised it had to say. What a launcher
    says of a child that died comes last, whatever its place.
    """
    raw = _read(log)
    if killed := _KILLED_RANK.search("\n".join(raw)):  # the others only tell that it is gone
        rank, number, name = killed.groups()
        return f"rank {rank} died of signal {number} ({name})"
    raised = _raised([_PREFIX.sub("", line) for line in raw])
    plain = [_PREFIX.sub("", line).strip() for line in raw if _PLAIN.search(line)]
    own = [line for line in plain if line.startswith(_OWN)]
    real = [line for line in (*own, *raised, *plain) if not _WRAPPERS.search(line)]
    found = next(iter((*real, *raised, *plain)), None)
    return found and _shorten(_COMMAND.sub("its process ", found).removeprefix(_OWN))


def _without_launchers(lines: list[str]) -> list[str]:
    """The lines without a launcher's own traceback about a child that has told why it ended; all when nothing else is
    there."""
    kept: list[str] = []
    block: list[str] = []
    for line in lines:
        bare = _PREFIX.sub("", line)
        if bare.startswith(_START):
            kept, block = kept + block, [line]
        elif block and _RAISED.match(bare):
            kept, block = kept + ([] if _LAUNCHERS.search(bare) else [*block, line]), []
        elif block:
            block.append(line)
        else:
            kept.append(line)
    return kept + block or lines


def _raised(lines: list[str]) -> list[str]:
    """The last lines of the tracebacks, one for each chain of exceptions."""
    found: list[str] = []
    inside = ignored = chained = False
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith(_START):
            inside, ignored = True, before.startswith("Exception ignored in")
        elif _CHAINED.match(line):
            chained = True
        elif inside and _RAISED.match(line):
            inside = False
            if chained and found:
                found.pop()
            if not ignored:
                found.append(line.strip())
            chained = False
    return found


def _read(log: Path) -> list[str]:
    """The lines at the end of a log. Of a line that a progress bar rewrote, its last state."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _READ_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return [line for raw in lines if (line := _CONTROL.sub("", raw).rstrip())]


def _shorten(line: str) -> str:
    line = mask(line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
