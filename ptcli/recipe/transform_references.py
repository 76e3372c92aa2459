"""What an entry of `data` says about rows: functions that are there, columns that the rows have, names that fit."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence

from ptcli.data.model import Row
from ptcli.data.transforms import TransformError, compile_step, places, row_keys
from ptcli.errors import KeyPath, Problem
from ptcli.recipe.code import USE, NotFound, find_object
from ptcli.recipe.model import DataEntry
from ptcli.recipe.suggest import quote_nearest
from ptcli.recipe.tree import dotted

_FUNCTIONS = {"map": "returns a dict of columns", "filter": "returns whether to keep it"}


def check_transforms(entry: DataEntry, key: KeyPath, head: Sequence[Row] | None) -> list[Problem]:
    """Problems of one entry's transforms. `head`: its first rows as they are in the file; None where they cannot be
    read cheaply."""
    problems = [*_check_functions(entry, key), *_check_rename(entry, key), *_check_prompt(entry, key)]
    return problems or [*_check_columns(entry, key, head)]


def check_weights(entries: Sequence[DataEntry], key: KeyPath) -> Iterator[Problem]:
    """A problem when some entries of a list have a weight and others have none."""
    without = [index for index, entry in enumerate(entries) if entry.weight is None]
    if not without or len(without) == len(entries):
        return
    message = f"`{dotted((*key, without[0]))}` has no `weight`, and other entries have one"
    yield Problem(message, "give every entry of the list a weight, or none", (*key, without[0]))


def check_allow(rules: Sequence[str]) -> Iterator[Problem]:
    """A problem for each rule to accept that does not exist."""
    if not rules:
        return
    from ptcli.data.rules import RULES

    for index, rule in enumerate(rules):
        if rule not in RULES:
            fix = quote_nearest(rule, RULES) or "`ptcli validate-data` prints the ids of the rules that it finds broken"
            yield Problem(f"there is no rule `{rule}` to allow", fix, ("data", "allow", index))


# --- one entry -------------------------------------------------------------------------------------------------------


def _check_functions(entry: DataEntry, key: KeyPath) -> Iterator[Problem]:
    for name, purpose in _FUNCTIONS.items():
        use = getattr(entry, name)
        problem = use and _function_problem(use, purpose, (*key, name))
        if problem:
            yield problem


def _function_problem(use: str, purpose: str, key: KeyPath) -> Problem | None:
    if not USE.fullmatch(use):
        return Problem(f"{use!r} does not name a function", f"write `file.py:function`, which {purpose}", key)
    try:
        node = find_object(use).node
    except NotFound as error:
        return Problem(error.message, error.fix, key)
    if isinstance(node, ast.ClassDef | ast.Constant):
        return Problem(f"{use} is not a function", f"name one that takes a row and {purpose}", key)
    if isinstance(node, ast.AsyncFunctionDef):
        return Problem(f"{use} is an async function, which nothing awaits", "write it with `def` alone", key)
    if isinstance(node, ast.FunctionDef) and not node.decorator_list and not _takes_a_row(node.args):
        return Problem(f"{use} cannot be called with a row alone", "it takes one argument, a dict", key)
    return None


def _takes_a_row(arguments: ast.arguments) -> bool:
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    keywords = any(default is None for default in arguments.kw_defaults)
    return required <= 1 and bool(positional or arguments.vararg) and not keywords


def _check_rename(entry: DataEntry, key: KeyPath) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for old, new in entry.rename.items():
        if new in taken:
            message = f"`{taken[new]}` and `{old}` would both be called `{new}`"
            yield Problem(message, "give each column a name of its own", (*key, "rename", old))
        taken.setdefault(new, old)


def _check_prompt(entry: DataEntry, key: KeyPath) -> Iterator[Problem]:
    if entry.prompt == [] or entry.prompt == "":
        yield Problem(f"`{dotted((*key, 'prompt'))}` is empty", "leave it out, or write a message", (*key, "prompt"))
    try:
        list(places(entry))
    except TransformError as error:
        yield Problem(error.message, "", (*key, "prompt"))


# --- its columns -----------------------------------------------------------------------------------------------------


def _check_columns(entry: DataEntry, key: KeyPath, head: Sequence[Row] | None) -> Iterator[Problem]:
    """Columns that no row has when their turn comes. What a function of the user's own makes of rows is not known."""
    rows = list(head or ())
    for name in row_keys(entry):
        if name == "map" or not rows:
            return
        found = dict.fromkeys(column for row in rows for column in row)
        yield from _missing(_asked_for(entry, name), found, key)
        rows, failure = _applied(entry, name, rows)
        if failure and not rows and name in ("from_", "rename"):
            yield Problem(f"`{dotted((*key, failure.key))}`: {failure.message}", "", (*key, failure.key))


def _asked_for(entry: DataEntry, name: str) -> Iterator[tuple[KeyPath, str]]:
    """The columns that a step asks for, each with the key that does."""
    if name == "rename":
        yield from ((("rename", old), old) for old in entry.rename)
    elif name in ("parse_json", "columns"):
        yield from (((name, index), column) for index, column in enumerate(getattr(entry, name)))
    elif name == "prompt":
        yield from ((place, column) for place, template in places(entry) for column in template.columns)


def _missing(asked: Iterable[tuple[KeyPath, str]], found: dict[str, None], key: KeyPath) -> Iterator[Problem]:
    for place, column in asked:
        if column in found or (place[0] == "prompt" and column.split(".")[0] in found):
            continue
        fix = quote_nearest(column, found) or f"the columns are {', '.join(found)}"
        if place[0] == "prompt" and not column.isidentifier():
            fix = f"{fix}; braces that are meant as such are written twice, `{{{{{column}}}}}`"
        yield Problem(f"`{dotted((*key, place[0]))}`: there is no column `{column}`", fix, (*key, *place))


def _applied(entry: DataEntry, name: str, rows: Sequence[Row]) -> tuple[list[Row], TransformError | None]:
    """The rows after one step, without those that it cannot be done to, and why not."""
    if name == "filter":
        return list(rows), None
    step = compile_step(entry, name)
    done: list[Row] = []
    failure: TransformError | None = None
    for row in rows:
        try:
            changed = step(row)
        except TransformError as error:
            failure = error
            continue
        done += [changed] if changed is not None else []
    return done, failure
