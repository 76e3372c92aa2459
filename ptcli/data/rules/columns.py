"""Which columns are there, over all rows: missing, misspelt, of another family, too many, different from row to row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from ptcli.data.model import MOST_ROWS, Finding, Profile
from ptcli.data.rules.facts import Facts
from ptcli.data.rules.shapes import Shape, foreign_families, shapes_of, takers
from ptcli.data.rules.words import clip, listed

ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "prompt": ("question", "instruction", "query", "input", "problem", "prompts", "user"),
        "completion": ("response", "output", "answer", "completions", "target", "assistant"),
        "chosen": ("chosen_response", "accepted", "preferred", "winner", "positive"),
        "rejected": ("rejected_response", "refused", "dispreferred", "loser", "negative"),
        "messages": ("conversation", "conversations", "message", "chat", "dialogue", "dialog", "turns"),
        "text": ("content", "texts", "document"),
        "completions": ("completion", "steps", "responses", "solutions"),
        "labels": ("label", "ratings"),
        "label": ("labels", "desirable", "is_desirable"),
        "input_ids": ("ids", "tokens", "token_ids"),
    }
)
"""Column -> other names under which it is met."""

MOST_EDITS = 2


def union(profile: Profile) -> list[str]:
    """Every column that some row has, in the order in which they were met."""
    return list(profile.kinds)


def missing_columns(profile: Profile, facts: Facts) -> Iterator[Finding]:
    columns = union(profile)
    if shapes_of(columns, facts.shapes):
        return
    sets = " or ".join(" + ".join(f"`{name}`" for name in required) for required in _sets(facts.shapes))
    message = f"{facts.method.name} needs {sets}; the columns are {_names(columns)}"
    yield _of_all("missing-columns", message, profile, "; ".join(_transforms(columns, facts)))
    yield from misspelt_columns(profile, facts)


def misspelt_columns(profile: Profile, facts: Facts) -> Iterator[Finding]:
    columns = union(profile)
    for found, meant in look_alikes(columns, facts.shapes).items():
        fix = f"rename: {{{found}: {meant}}}"
        yield _of_all("misspelt-column", f"`{clip(found)}` looks like `{meant}`", profile, fix)


def look_alikes(columns: Iterable[str], shapes: Iterable[Shape]) -> dict[str, str]:
    """Column that is there -> the required column that it was meant to be, for the set that is then complete or
    nearest to it."""
    present = list(columns)
    best: dict[str, str] = {}
    fewest = None
    for shape in shapes:
        absent = [name for name in shape.required if name not in present]
        free = [name for name in present if name not in shape.required]
        pairs: dict[str, str] = {}
        for name in absent:
            alike = _alike(name, [column for column in free if column not in pairs])
            if alike is not None:
                pairs[alike] = name
        left = len(absent) - len(pairs)
        if pairs and (fewest is None or left < fewest):
            best, fewest = pairs, left
    return best


def _alike(name: str, columns: Sequence[str]) -> str | None:
    """The column that is most like a name: one under another name for it, or a few edits away."""
    for other in (name.upper(), name.capitalize(), *ALIASES.get(name, ())):
        for column in columns:
            if column.lower().strip() == other.lower():
                return column
    near = [column for column in columns if len(column) < 64 and distance(column.lower(), name) <= MOST_EDITS]
    return min(near, key=lambda column: distance(column.lower(), name), default=None)


def distance(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours between two words."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def wrong_family(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Columns that make a complete set of another family, where none of the method's own is complete."""
    columns = union(profile)
    if shapes_of(columns, facts.shapes):
        return
    wanted = {name for shape in facts.shapes for name in shape.required} | {"prompt"}
    for family, required in foreign_families(columns, facts.method):
        if set(required) <= wanted:
            continue
        methods = listed([f"`{name}`" for name in takers(required)], "or")
        message = f"{_names(required)} make {family} data, which {facts.method.name} does not take"
        yield _of_all("wrong-type-family", message, profile, f"use the method {methods}, or other data")
        return


def _sets(shapes: Iterable[Shape]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(shape.required for shape in shapes))


def _transforms(columns: Sequence[str], facts: Facts) -> Iterator[str]:
    """Transforms that make known layouts of other tools into what the method takes."""
    if {"instruction", "output"} <= set(columns):
        yield "from: alpaca"
    elif "conversations" in columns:
        yield "from: sharegpt"
    elif alike := look_alikes(columns, facts.shapes):
        yield "rename: {" + ", ".join(f"{found}: {meant}" for found, meant in alike.items()) + "}"


def _names(columns: Iterable[str]) -> str:
    names = list(columns)
    shown = ", ".join(f"`{clip(name, 30)}`" for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _of_all(rule: str, message: str, profile: Profile, fix: str = "") -> Finding:
    """An error about every row."""
    rows = tuple(range(min(profile.rows, MOST_ROWS)))
    return Finding(rule, "error", message, profile.rows, rows, fix, 1.0)


SET_RULES = (missing_columns, wrong_family)
