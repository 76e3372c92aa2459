"""What the checks of `ptcli doctor` came to, and how it is printed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["pass", "warn", "fail"]

_COLOURS = {"pass": "32", "warn": "33", "fail": "31;1"}
_NARROWEST = 40
"""Characters of a message's line, however narrow the terminal is."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """Of the check: one word."""
    state: State
    """`fail`: what is looked at will not work. `warn`: it may not, or not well."""
    message: str
    """What was found, in one sentence without a full stop."""
    fix: str = ""
    """The command that mends it, or what to do; never empty for what fails."""


@dataclass(frozen=True)
class Examination:
    """Everything that was looked at."""

    findings: tuple[Finding, ...]
    recipe: str | None = None
    """The recipe's file as it was typed; None where no recipe was asked about."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing fails; warnings are allowed."""
        return bool(self.findings) and not any(finding.state == "fail" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        checks = [asdict(finding) for finding in self.findings]
        return {"ok": self.ok, "recipe": self.recipe, "seconds": round(self.seconds, 1), "checks": checks}


def render_examination(examination: Examination, width: int | None = None, *, colours: bool = False) -> str:
    """A line for each finding, below it what mends it, and a last line with what came of it all.

    With a width, in characters, messages are wrapped. What mends something is a command to paste, and is not.
    """
    names = max((len(finding.name) for finding in examination.findings), default=0)
    lines = [line for finding in examination.findings for line in _lines(finding, names, width, colours)]
    return "\n".join([*lines, "", _verdict(examination)])


def _lines(finding: Finding, names: int, width: int | None, colours: bool) -> Iterable[str]:
    indent = " " * (len("pass") + names + 4)
    first, *others = _wrap(finding.message, width and width - len(indent))
    state = f"\x1b[{_COLOURS[finding.state]}m{finding.state}\x1b[0m" if colours else finding.state
    yield f"{state}  {finding.name.ljust(names)}  {first}"
    yield from (indent + other for other in others)
    if finding.fix:
        yield f"{indent}fix: {finding.fix}"


def _wrap(text: str, room: int | None) -> list[str]:
    if room is None:
        return [text]
    return textwrap.wrap(text, max(room, _NARROWEST), break_long_words=False, break_on_hyphens=False) or [""]


def _verdict(examination: Examination) -> str:
    count = Counter(finding.state for finding in examination.findings)
    whom = f"{examination.recipe} can run here" if examination.recipe else "this machine can run ptcli"
    said = [_counted(count["fail"], "failure"), _counted(count["warn"], "warning")]
    found = ", ".join(text for text in said if text) or "nothing to mend"
    verdict = f"{whom}: {found}" if examination.ok else found
    return f"{verdict} ({examination.seconds:.0f} s)"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}" if count else ""
