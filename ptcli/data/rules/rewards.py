"""Columns that reward functions read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from ptcli.data.model import MOST_ROWS, Finding, Hit, Profile, Severity
from ptcli.data.rules.columns import ALIASES, names_of, rename_line, union
from ptcli.data.rules.facts import RESERVED, Facts, Seen
from ptcli.data.rules.words import clip

_USUAL = ("answer", "solution", "ground_truth", "target", "final_answer", "reference")
"""What answers are called, where no reward function says it."""
_LIKE_ANSWER = (*_USUAL, *ALIASES["completion"], "label", "labels", "gold", "expected", "reference_answer")
_SHORTEST = 2


def leak(seen: Seen) -> Iterator[Hit]:
    """The answer stands in the prompt already."""
    names = [name for name in (seen.facts.reward_columns or _USUAL) if isinstance(seen.row.get(name), str)]
    if not names:
        return
    prompt = "\n".join(text for column, text in seen.texts if column == "prompt")
    for name in names:
        answer = seen.row[name].strip()
        if len(answer) >= _SHORTEST and answer in prompt:
            yield Hit("answer-leak", "warning", f"`{clip(name)}` stands in the prompt already", "", "share")
            return


def missing(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Parameters of reward functions for which there is no column."""
    columns = union(profile)
    passed = [name for name in columns if facts.passed(name)]
    for need in facts.context.rewards:
        for name in need.required:
            if name in passed or name in RESERVED:
                continue
            message = f"the reward `{clip(need.name)}` needs a column `{name}`; the columns are {names_of(columns)}"
            if name in columns:
                message = f"the reward `{clip(need.name)}` needs `{name}`, which the trainer does not hand on"
            yield Finding(
                "reward-column-missing", "error", message, profile.rows, _first(profile), _like(name, passed), 1
            )


def _like(name: str, columns: list[str]) -> str:
    free = [column for column in columns if column not in RESERVED]
    near = difflib.get_close_matches(name, free, 1, 0.7) or [column for column in free if column in _LIKE_ANSWER]
    return rename_line({near[0]: name}) if near else f"add a column `{name}`"


def reserved(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Columns that take the names of what the trainer passes."""
    for name in RESERVED:
        if name in profile.kinds:
            message = f"the column `{name}` collides with what the trainer passes to reward functions"
            fix = rename_line({name: f"my_{name}"})
            yield Finding("reserved-column", "error", message, profile.rows, _first(profile), fix, 1)


def mixed_types(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Text in some rows and numbers in others: `datasets` gives such text back as numbers."""
    for path, types in _scalars(profile, facts).items():
        numbers = [types[name] for name in ("int", "float", "bool") if name in types]
        if "str" not in types or not numbers:
            continue
        column = path.split(".")[0].split("[")[0]
        if facts.reward_columns and column not in facts.reward_columns and facts.passed(column):
            continue
        severity: Severity = "error" if column in facts.reward_columns else "warning"
        message = f"`{clip(path)}` is text in some rows and a number in others: `datasets` turns such text into numbers"
        rows = tuple(sorted({types["str"], min(numbers)}))[:MOST_ROWS]
        yield Finding("lossy-arrow-schema", severity, message, len(rows), rows, "write all of them as text")


def _scalars(profile: Profile, facts: Facts) -> Mapping[str, Mapping[str, int]]:
    """Path -> JSON type -> first row, of whole columns that rewards are handed and of what lies inside others."""
    found: dict[str, dict[str, int]] = {}
    for column, kinds in profile.kinds.items():
        if facts.passed(column):
            found[column] = {kind: profile.first[column, kind] for kind in kinds}
    for path, types in profile.leaves.items():
        found.setdefault(path, {}).update(types)
    return found


def _first(profile: Profile) -> tuple[int, ...]:
    return tuple(range(min(profile.rows, MOST_ROWS)))


SET_RULES = (missing, reserved, mixed_types)
