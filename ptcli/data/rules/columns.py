"""Which columns are there, over all rows: missing, misspelt, of another family, too many, different from row to row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from ptcli.data.model import MOST_ROWS, OTHER_COLUMNS, Finding, Profile, Severity
from ptcli.data.rules.facts import Facts, Plan, plan_of
from ptcli.data.rules.shapes import FORMAT_COLUMNS, Shape, foreign_families, shapes_of, takers
from ptcli.data.rules.table import RULES, completions, language
from ptcli.data.rules.words import LEAVE_OUT, clip, listed, quote, rows_in_words

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


def names_of(columns: Iterable[str]) -> str:
    """Columns in a message."""
    names = list(columns)
    shown = ", ".join(f"`{clip(name, 30)}`" for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"


def missing_columns(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """No accepted set of columns in the union of all rows' columns, and what was meant instead."""
    columns = union(profile)
    present = shapes_of(columns, facts.shapes)
    if present:
        if present[0].form == "pairs" and "prompt" not in columns:
            yield from _misspelt_prompt(columns, profile)
        return
    sets = " or ".join(" + ".join(f"`{name}`" for name in required) for required in _sets(facts.shapes))
    message = f"{facts.method.name} needs {sets}; the columns are {names_of(columns)}"
    fix = _transform(columns, facts)
    yield _of_all("missing-columns", message, profile, fix)
    for found, meant in look_alikes(columns, facts.shapes).items():
        yield _of_all("misspelt-column", f"`{clip(found)}` looks like `{meant}`", profile, fix)


def _misspelt_prompt(columns: Sequence[str], profile: Profile) -> Iterator[Finding]:
    """Pairs may come without a prompt, but hardly beside a column that is called almost so; one with another name for
    it may repeat what both answers begin with."""
    alike = _alike("prompt", [name for name in columns if name not in ("chosen", "rejected")])
    if alike is not None:
        message = f"there is no `prompt`, and `{clip(alike)}` looks like it: it is not read"
        finding = _of_all("misspelt-column", message, profile, rename_line({alike: "prompt"}))
        yield replace(finding, severity="warning") if alike.lower().strip() in ALIASES["prompt"] else finding


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
        made = "makes" if len(required) == 1 else "make"
        message = f"{names_of(required)} {made} {family} data, which {facts.method.name} does not take"
        yield _of_all("wrong-type-family", message, profile, f"use the method {methods}, or other data")
        return


def _sets(shapes: Iterable[Shape]) -> list[tuple[str, ...]]:
    """The different sets, those of token ids last."""
    return list(dict.fromkeys(shape.required for shape in sorted(shapes, key=lambda shape: shape.form == "tokens")))


def _transform(columns: Sequence[str], facts: Facts) -> str:
    """The transform that makes columns into what the method takes; empty where none does."""
    if completions(facts.method) and {"instruction", "output"} <= set(columns):
        return "from: alpaca"
    if language(facts.method) and "conversations" in columns:
        return "from: sharegpt"
    alike = look_alikes(columns, facts.shapes)
    return rename_line(alike) if alike else ""


def rename_line(names: Mapping[str, str]) -> str:
    """The transform that renames columns, as it stands in a recipe."""
    return "rename: {" + ", ".join(f"{_key(old)}: {new}" for old, new in names.items()) + "}"


def _key(name: str) -> str:
    """A column's name as a key in a recipe."""
    return clip(name) if name.replace("-", "_").isidentifier() else quote(name)


def mixed_values(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Columns that hold text in some rows and chats, or something else, in others."""
    read = {name for shape in facts.shapes if shape.form != "tokens" for name in shape.required}
    for column in (*FORMAT_COLUMNS, facts.text_field):
        kinds = profile.kinds.get(column)
        if kinds is None or not (column in read or (column in FORMAT_COLUMNS and facts.method.prompts == "text")):
            continue
        rows: dict[str, int] = {}
        counts: dict[str, int] = {}
        for kind, count in kinds.items():
            if kind != "null":
                name = _TYPES.get(kind, "something else")
                counts[name] = counts.get(name, 0) + count
                first = profile.first[column, kind]
                rows[name] = min(rows.get(name, first), first)
        if len(counts) > 1:
            parts = listed([f"{name} in {rows_in_words(count)}" for name, count in counts.items()])
            few = min(counts.values())
            fix = "write all rows alike, all as text or all as messages"
            yield Finding(
                "mixed-format",
                "error",
                f"`{column}` is {parts}",
                few,
                tuple(sorted(rows.values())),
                fix,
                few / profile.rows,
            )


_TYPES = {"str": "text", "chat": "a list", "list": "a list", "empty list": "a list", "dict": "an object"}


def mixed_sets(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Rows with different sets of columns, where that changes how they are read."""
    plans = {columns: plan_of(columns, facts) for columns in profile.columns if columns != OTHER_COLUMNS}
    groups: dict[tuple[str, bool], list[tuple[str, ...]]] = {}
    for columns, plan in plans.items():
        groups.setdefault((plan.form, plan.form == "pairs" and plan.explicit), []).append(columns)
    if len(groups) < 2 and ("", False) not in groups:
        return
    if not shapes_of(union(profile), facts.shapes):
        return
    yield _different(groups, profile)
    yield from _absent(groups, plans, profile, facts)


Groups = Mapping[tuple[str, bool], Sequence[tuple[str, ...]]]


def _different(groups: Groups, profile: Profile) -> Finding:
    examples = [min(columns, key=profile.first_columns.__getitem__) for columns in groups.values()]
    examples.sort(key=profile.first_columns.__getitem__)
    counts = [sum(profile.columns[each] for each in columns) for columns in groups.values()]
    shown = " and others ".join(names_of(columns) for columns in examples[:3])
    rows = tuple(profile.first_columns[columns] for columns in examples[:MOST_ROWS])
    few = profile.rows - max(counts) or profile.rows
    fix = "make rows alike, or put each kind into a file and a data entry of its own"
    return Finding("mixed-format", "error", f"some rows have the columns {shown}", few, rows, fix, few / profile.rows)


def _absent(groups: Groups, plans: Mapping[tuple[str, ...], Plan], profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Required columns that rows without any accepted set lack, where other rows have one."""
    usual = max(plans, key=lambda columns: (plans[columns].shape is not None, profile.columns[columns]))
    shape = plans[usual].shape or shapes_of(union(profile), facts.shapes)[0]
    wanted = [*shape.required, *(("prompt",) if shape.form == "pairs" and plans[usual].explicit else ())]
    for name in wanted:
        lacking = [each for key in (("", False), ("pairs", False)) for each in groups.get(key, ()) if name not in each]
        yield from _lack(name, lacking, profile, "null-value")


def _lack(name: str, lacking: Sequence[tuple[str, ...]], profile: Profile, rule: str) -> Iterator[Finding]:
    count = sum(profile.columns[columns] for columns in lacking)
    if count:
        rows = tuple(sorted(profile.first_columns[columns] for columns in lacking)[:MOST_ROWS])
        severity = RULES[rule].severity
        fix = LEAVE_OUT
        message = f"`{clip(name)}` is absent in {count} of {profile.rows} rows"
        yield Finding(rule, severity, message, count, rows, fix, count / profile.rows)


def absent_extras(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Columns that must be in every row when they are in one."""
    every = ["margin"] * facts.traits.margin + ["chat_template_kwargs"] * facts.traits.template_kwargs
    for name in every:
        if name in profile.kinds:
            yield from _lack(name, _without(name, profile), profile, "null-value")
    for name in profile.kinds:
        if facts.passed(name):
            rule = "reward-column-null" if name in facts.reward_columns else "odpo-null-column"
            yield from _lack(name, _without(name, profile), profile, rule)


def _without(name: str, profile: Profile) -> list[tuple[str, ...]]:
    return [columns for columns in profile.columns if columns != OTHER_COLUMNS and name not in columns]


def ambiguous(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """More than one accepted set in the same rows."""
    found: dict[tuple[str, Severity], list[tuple[str, ...]]] = {}
    for columns in profile.columns:
        verdict = _sets_in(columns, facts)
        if verdict is not None:
            found.setdefault(verdict, []).append(columns)
    for (what, severity), groups in found.items():
        count = sum(profile.columns[columns] for columns in groups)
        rows = tuple(sorted(profile.first_columns[columns] for columns in groups)[:MOST_ROWS])
        fix = f"columns: [{', '.join(_keep(groups[0], facts))}]"
        yield Finding("ambiguous-columns", severity, what, count, rows, fix, count / profile.rows)


def _sets_in(columns: tuple[str, ...], facts: Facts) -> tuple[str, Severity] | None:
    """What is said of sets of columns that stand beside each other. `conversations` are looked at row by row: they
    count only with from/value."""
    shapes = [shape for shape in shapes_of(columns, facts.shapes) if shape.form != "sharegpt"]
    forms = [shape.form for shape in shapes]
    if not forms:
        return None
    named = names_of(dict.fromkeys(name for shape in shapes for name in shape.required))
    if forms[0] == "tokens":
        return (f"{named} are there, and only `input_ids` is read", "warning") if len(forms) > 1 else None
    override = [name for name in ("prompt", "original_prompt_text") if name in columns]
    if override and (facts.traits.last_turn_only or "prompt-completion" not in forms):
        if facts.traits.last_turn_only:
            return f"{names_of(override)} beside {named} moves the beginning of what is trained", "error"
        if "prompt" in override:
            return f"`prompt` without `completion` beside {named}: TRL looks for a completion", "error"
    if len(forms) < 2:
        return None
    if set(forms) <= {"messages", "text"}:
        return f"{named} are there, and only the chat is read", "warning"
    return f"{named} are there: more than one complete set of columns", "error"


def _keep(columns: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
    """The set to keep: of a chat and others the chat."""
    shapes = shapes_of(columns, facts.shapes)
    chat = next((shape for shape in shapes if shape.form == "messages"), shapes[0])
    return chat.required


def ignored(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Columns of which nothing reaches the model."""
    if not shapes_of(union(profile), facts.shapes):
        return
    named = {name for shape in facts.shapes for name in shape.required}
    for name in IGNORED:
        if name not in named and _filled(name, profile):
            fix = "put it into the rows with map: file.py:function"
            if _filled("prompt", profile) and set(profile.kinds["prompt"]) <= {"str", "null"}:
                fix = f'prompt: "{{{name}}} {{prompt}}"'
            message = f"`{name}` is a column of its own, and is never rendered"
            yield _some("ignored-column", message, name, profile, fix)
    if not facts.traits.tools and _filled("tools", profile):
        message = f"{facts.method.name} does not render a row's `tools`"
        yield _some("tools-ignored", message, "tools", profile, "give tools to the trainer, or use another method")
    if facts.method.online and _filled("chat_template_kwargs", profile):
        message = f"{facts.method.name} does not read a row's `chat_template_kwargs`"
        yield _some("tools-ignored", message, "chat_template_kwargs", profile, "training: {chat_template_kwargs: …}")


IGNORED = ("system", "system_prompt", "history", "context", "input")


def unused(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """What methods that make their own answers do not read."""
    for name in ("completion", "chosen"):
        if _filled(name, profile):
            message = f"`{name}` is never trained on: {facts.method.name} makes its own completions"
            yield _some("unused-completion", message, name, profile, "use sft to train on it, or leave it out")
    read = {name for shape in facts.shapes for name in shape.required}
    extra = [name for name in profile.kinds if name not in read]
    if extra and facts.method.prompts == "tokens":
        message = f"{names_of(extra)} {'are' if len(extra) > 1 else 'is'} dropped"
        yield _some("ppo-extra-columns", message, extra[0], profile)


def vision(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Images for a model that takes none. Where the model is not known, only a column without images is an error."""
    if facts.context.vision:
        return
    for name in ("image", "images"):
        kinds = profile.kinds.get(name)
        if kinds is None:
            continue
        known = facts.context.vision is False or set(kinds) <= {"null", "empty list"}
        message = f"`{name}` is a column, but the model takes text only"
        if not known:
            message = f"`{name}` needs a model that takes images, and no model is given"
        found = _some("vision-columns", message, name, profile, "leave the column out with `columns`, or use a VLM")
        yield found if known else replace(found, severity="warning")


def _filled(name: str, profile: Profile) -> int:
    """Rows in which a column has a value."""
    kinds = profile.kinds.get(name)
    return sum(count for kind, count in kinds.items() if kind != "null") if kinds else 0


def _some(rule: str, message: str, name: str, profile: Profile, fix: str = "") -> Finding:
    """A finding about the rows that have a column."""
    count = sum(profile.kinds[name].values())
    first = min(row for (column, _), row in profile.first.items() if column == name)
    return Finding(rule, RULES[rule].severity, message, count, (first,), fix, count / profile.rows)


def _of_all(rule: str, message: str, profile: Profile, fix: str = "") -> Finding:
    """An error about every row."""
    rows = tuple(range(min(profile.rows, MOST_ROWS)))
    return Finding(rule, "error", message, profile.rows, rows, fix, 1.0)


SET_RULES = (
    missing_columns,
    wrong_family,
    mixed_values,
    mixed_sets,
    absent_extras,
    ambiguous,
    ignored,
    unused,
    vision,
)
