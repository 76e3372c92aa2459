"""What a check of an identity came to, and how it is printed. Knows nothing of how identities are measured."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_HEADER = ("id", "method", "deviation", "tolerance", "", "identity")
_NARROWEST = 40
"""Characters of the last column, however narrow the terminal is."""


@dataclass(frozen=True)
class Outcome:
    """An identity with the largest deviation that was measured."""

    id: str
    statement: str
    """The formula in one line, and how the library differs from the paper where it does."""
    source: str
    """Paper and equation."""
    methods: tuple[str, ...]
    """Names of METHODS; empty for what is not a method (adapters)."""
    tolerance: float
    deviation: float | None = None
    """Largest difference between library and formula; None when it could not be measured."""
    error: str = ""
    """Why it could not be measured: what was raised."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.deviation is not None and self.deviation <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"methods": list(self.methods), "ok": self.ok}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Outcome:
        names = {each.name for each in fields(cls)}
        return cls(
            **{key: value for key, value in facts.items() if key in names} | {"methods": tuple(facts["methods"])}
        )


@dataclass(frozen=True)
class Report:
    """Every identity that was checked."""

    outcomes: tuple[Outcome, ...]
    stack: dict[str, str] = field(default_factory=dict)
    """Package -> version."""
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    @property
    def ok(self) -> bool:
        return bool(self.outcomes) and not self.failed

    def as_dict(self) -> dict[str, Any]:
        identities = [outcome.as_dict() for outcome in self.outcomes]
        return {"ok": self.ok, "seconds": round(self.seconds, 1), "stack": self.stack, "identities": identities}


def render_report(report: Report, width: int | None = None) -> str:
    """The table with a head line (what was checked) and a last line (what came of it).

    With a width, in characters, the last column is wrapped so that lines fit; it keeps a readable minimum.
    """
    head = ", ".join(f"{name} {version}" for name, version in report.stack.items())
    table = _align([_HEADER, *map(_row, report.outcomes)], width)
    failures = ["", *map(_failure, report.failed)] if report.failed else []
    return "\n".join([head, "", *table, *failures, "", _verdict(report)])


def _row(outcome: Outcome) -> tuple[str, ...]:
    deviation = "-" if outcome.deviation is None else f"{outcome.deviation:.1e}"
    methods = ", ".join(outcome.methods) or "-"
    verdict = "ok" if outcome.ok else "FAILED"
    statement = f"{outcome.statement} [{outcome.source}]"
    return outcome.id, methods, deviation, f"{outcome.tolerance:.0e}", verdict, statement


def _align(rows: Sequence[tuple[str, ...]], width: int | None) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    starts = ["  ".join(cell.ljust(room) for cell, room in zip(row, widths, strict=False)) + "  " for row in rows]
    indent = len(starts[0])
    room = max(width - indent, _NARROWEST) if width else None
    lines = []
    for start, row in zip(starts, rows, strict=True):
        first, *others = textwrap.wrap(row[-1], room) if room else [row[-1]]
        lines += [start + first, *(" " * indent + other for other in others)]
    return lines


def _failure(outcome: Outcome) -> str:
    if outcome.error:
        return f"FAILED {outcome.id}: it could not be measured: {outcome.error}"
    return f"FAILED {outcome.id}: off by {outcome.deviation:.2e}, more than {outcome.tolerance:.0e}"


def _verdict(report: Report) -> str:
    count = len(report.outcomes)
    if report.ok:
        return f"all {count} identities hold ({report.seconds:.0f} s)"
    return f"{len(report.failed)} of {count} identities do not hold ({report.seconds:.0f} s)"
