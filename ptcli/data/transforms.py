"""What a recipe's entry does to each of its rows before anybody reads them: the data checks and the training alike.

    row ─ from ─ rename ─ map_roles ─ parse_json ─ prompt ─ map ─ filter ─ columns ─▶ row, or nothing

Every step is a callable that pickles. A row is never changed in place, except by a user's own function, which gets a
row of its own. `shuffle` and `take` choose among the rows that are left: `selection`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptcli.data.layouts import alpaca_messages, from_alpaca, from_sharegpt
from ptcli.data.model import Row
from ptcli.data.places import Template
from ptcli.data.problems import TransformError

if TYPE_CHECKING:
    from ptcli.recipe.model import DataEntry

__all__ = ["ROW_KEYS", "RowTransform", "Step", "TransformError", "compile_transform", "selection"]

Step = Callable[[Row], Row | None]
"""A changed row, or None for one that is left out. Raises TransformError."""

ROW_KEYS = ("from_", "rename", "map_roles", "parse_json", "prompt", "map", "filter", "columns")
"""The fields of an entry that change or choose rows by what they hold, in the order in which they are applied."""


@dataclass(frozen=True)
class RowTransform:
    """The steps of one entry, one after the other."""

    steps: tuple[Step, ...]

    def __call__(self, row: Row) -> Row | None:
        """The row as the trainer gets it; None when it is filtered out. Raises TransformError."""
        result: Row | None = row
        for step in self.steps:
            if result is None:
                return None
            result = step(result)
        return result


def compile_transform(entry: DataEntry, *, messages: bool = False) -> RowTransform | None:
    """What the entry does to its rows; None when it leaves them as they are.

    `messages`: write Alpaca's layout as messages (`ptcli.data.mixture` knows when), not as prompt and completion.
    """
    steps = [compile_step(entry, name) for name in row_keys(entry)]
    if messages and steps and steps[0] is from_alpaca:
        steps[0] = alpaca_messages
    return RowTransform(tuple(steps)) if steps else None


def row_keys(entry: DataEntry) -> list[str]:
    """Those of ROW_KEYS that the entry has."""
    return [name for name in ROW_KEYS if getattr(entry, name)]


def compile_step(entry: DataEntry, name: str) -> Step:
    """What one of the ROW_KEYS, which the entry must have, does to a row."""
    return _STEPS[name](getattr(entry, name))


def selection(count: int, seed: int | None, take: int | None) -> Sequence[int]:
    """Indices of the rows that are kept of `count`, in their new order, as `datasets` shuffles and takes them.

    `seed`: None for rows that are not shuffled. With a seed this imports numpy.
    """
    if seed is None:
        return range(count if take is None else min(take, count))
    import numpy

    order: Any = numpy.random.default_rng(seed).permutation(count)[:take]
    kept: Sequence[int] = order  # an array: of many millions of rows, a list of int would be large
    return kept


# --- columns ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rename:
    names: Mapping[str, str]

    def __call__(self, row: Row) -> Row:
        result = {self.names.get(name, name): value for name, value in row.items()}
        if len(result) < len(row):
            names = [self.names.get(name, name) for name in row]
            twice = next(name for name in names if names.count(name) > 1)
            raise TransformError(f"two columns would be called `{twice}`", "rename")
        return result


@dataclass(frozen=True)
class _Columns:
    names: Sequence[str]

    def __call__(self, row: Row) -> Row:
        return {name: row[name] for name in self.names if name in row}


@dataclass(frozen=True)
class _ParseJson:
    names: Sequence[str]

    def __call__(self, row: Row) -> Row:
        return row | {name: self.parse(name, row[name]) for name in self.names if isinstance(row.get(name), str)}

    def parse(self, name: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TransformError(f"`{name}` is not JSON: {error}", "parse_json") from None


# --- chats -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _MapRoles:
    roles: Mapping[str, str]

    def __call__(self, row: Row) -> Row:
        return {name: self.chat(value) if _is_chat(value) else value for name, value in row.items()}

    def chat(self, messages: Sequence[Any]) -> list[Any]:
        return [self.message(each) if isinstance(each, dict) else each for each in messages]

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        key = "role" if "role" in message else "from"
        role = message.get(key)
        return {**message, key: self.roles[role]} if isinstance(role, str) and role in self.roles else dict(message)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


@dataclass(frozen=True)
class _Prompt:
    made: Template | tuple[tuple[str, Template], ...]
    """A text, or the roles and contents of a chat."""

    def __call__(self, row: Row) -> Row:
        if isinstance(self.made, Template):
            return row | {"prompt": self.made.fill(row)}
        return row | {"prompt": [{"role": role, "content": text.fill(row)} for role, text in self.made]}


def _prompt(prompt: Any) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(Template.parse(prompt))
    return _Prompt(tuple((message.role, Template.parse(message.content)) for message in prompt))


# --- functions of the user's own -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    use: str

    def __call__(self, row: Row) -> Row:
        row = dict(row)
        made = _call(self.use, row, "map")
        if not isinstance(made, Mapping):
            kind = "nothing" if made is None else f"a {type(made).__name__}"
            raise TransformError(f"{_short(self.use)} returned {kind}, not a dict of columns", "map")
        return {name: _plain(value, name, self.use) for name, value in {**row, **made}.items()}


@dataclass(frozen=True)
class _Filter:
    use: str

    def __call__(self, row: Row) -> Row | None:
        keep = _call(self.use, dict(row), "filter")
        if keep is None:
            raise TransformError(f"{_short(self.use)} returned nothing, neither true nor false", "filter")
        return row if keep else None


def _call(use: str, row: Row, key: str) -> Any:
    function = _load(use)
    if isinstance(function, str):
        raise TransformError(function, key)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results alone
            return function(row)
    except (Exception, SystemExit) as error:
        raise TransformError(f"{_short(use)} raised {type(error).__name__}: {error}", key) from error


@functools.cache
def _load(use: str) -> Callable[[Row], Any] | str:
    """The function, imported once a process; or why it cannot be, which is so for every row."""
    from ptcli.errors import WorkError
    from ptcli.train.objects import load_object

    try:
        with contextlib.redirect_stdout(sys.stderr):
            function = load_object(use)
    except WorkError as error:
        return str(error)
    except SystemExit as error:
        return f"`{use}` cannot be imported: it exits ({error})"
    return function if callable(function) else f"`{use}` is not a function"


def _short(use: str) -> str:
    """`clean.py:function` without the folders of the file."""
    return use.rpartition("/")[2]


def _plain(value: Any, column: str, use: str) -> Any:
    """A value of a user's function as JSON has it: tuples as lists, numbers of arrays as numbers."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each, column, use) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, column, use) for each in value]
    if hasattr(value, "tolist"):  # numpy and torch, whose libraries are not imported here
        return _plain(value.tolist(), column, use)
    kind = type(value).__name__
    raise TransformError(f"{_short(use)} put a {kind} into `{column}`, which is no text, number, list or dict", "map")


_STEPS: Mapping[str, Callable[[Any], Step]] = {
    "from_": lambda layout: {"sharegpt": from_sharegpt, "alpaca": from_alpaca}[layout],
    "rename": _Rename,
    "map_roles": _MapRoles,
    "parse_json": lambda names: _ParseJson(tuple(names)),
    "prompt": _prompt,
    "map": _Map,
    "filter": _Filter,
    "columns": lambda names: _Columns(tuple(names)),
}


def places(entry: DataEntry) -> Iterator[tuple[tuple[str | int, ...], Template]]:
    """The templates of `prompt`, each by its key below the entry. Raises TransformError for a lone brace."""
    if isinstance(entry.prompt, str):
        yield ("prompt",), Template.parse(entry.prompt)
    for index, message in enumerate(entry.prompt if isinstance(entry.prompt, list) else ()):
        yield ("prompt", index, "content"), Template.parse(message.content)
