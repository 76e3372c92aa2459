"""YAML values that remember where they were written.

Nodes are never changed after they are made: merging, overriding and interpolating build new ones, so that an alias can
share its anchor's node and a base read once can be extended many times.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Position

MAX_NODES = 20_000
"""Values that one recipe may have once its aliases and references are written out."""

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_YES_NO = {"yes": True, "on": True, "no": False, "off": False, "true": True, "false": False}
# YAML 1.2's core schema, but for numbers with a leading zero: 1.1 reads them as octal and 1.2 as decimal, so they stay
# text, which is right where text is meant and an error where a number is. Four digits of exponent and 300 of mantissa
# are more than any field needs and keep int() and float() away from Python's limits.
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,300})$|0o[0-7]{1,100}$|0x[0-9a-fA-F]{1,100}$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,300}|[0-9]{1,300}(\.[0-9]{0,300})?)([eE][-+]?[0-9]{1,4})?$|[-+]?\.(inf|Inf|INF)$")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+$")


@dataclass(frozen=True)
class Source:
    """A text that a person wrote: a file or an override."""

    name: str
    """As errors show it."""
    folder: Path
    """What relative paths in it are relative to; absolute."""
    override: bool = False

    def position(self, line: int, column: int) -> Position:
        """Of zero-based `line` and `column`, which mean nothing in an override."""
        return Position(self.name) if self.override else Position(self.name, line + 1, column + 1)


@dataclass(frozen=True)
class Scalar:
    """A single value, as its text."""

    text: str
    plain: bool
    """False when it was quoted: then it is text, whatever it looks like."""
    source: Source
    where: Position
    size = 1

    @cached_property
    def value(self) -> Any:
        """What the text means where nothing says otherwise: None, a bool, int, float or str."""
        return read_scalar(self.text) if self.plain else self.text

    @property
    def yes_or_no(self) -> bool | None:
        """What it means where a bool is meant: there `yes`, `no`, `on` and `off` are bools too."""
        return _YES_NO.get(self.text.lower()) if self.plain else None


@dataclass(frozen=True)
class Broken(Scalar):
    """A value that a problem was reported for already; nothing more is said about it."""


@dataclass(frozen=True)
class Entry:
    """A key of a mapping, by its position, and its value."""

    where: Position
    node: Node


@dataclass(frozen=True)
class Table:
    """A mapping."""

    entries: Mapping[str, Entry]
    source: Source
    where: Position
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 1 + sum(entry.node.size for entry in self.entries.values()))


@dataclass(frozen=True)
class Items:
    """A list."""

    nodes: tuple[Node, ...]
    source: Source
    where: Position
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 1 + sum(node.size for node in self.nodes))


Node = Scalar | Table | Items


def read_scalar(text: str) -> Any:
    """The meaning of an unquoted scalar: None, a bool, int or float as in YAML 1.2, otherwise the text itself."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.match(text):
        return int(text, 0)
    if _FLOAT.match(text) and not _LEADING_ZERO.match(text):
        return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf"))
    return text


def break_at(node: Node, keys: Collection[KeyPath], key: KeyPath = ()) -> Node:
    """The tree with a `Broken` in the place of every value at `keys`."""
    if key in keys:
        return broken(node)
    if isinstance(node, Table):
        entries = {
            name: Entry(entry.where, break_at(entry.node, keys, (*key, name))) for name, entry in node.entries.items()
        }
        return Table(entries, node.source, node.where)
    if isinstance(node, Items):
        children = (break_at(child, keys, (*key, index)) for index, child in enumerate(node.nodes))
        return Items(tuple(children), node.source, node.where)
    return node


def broken(node: Node) -> Broken:
    """What is left of a node with a problem."""
    return Broken("", True, node.source, node.where)


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings merge, everything else is replaced."""
    if not (isinstance(base, Table) and isinstance(over, Table)):
        return over
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        entries[key] = Entry(entry.where, merge(below.node, entry.node)) if below else entry
    return Table(entries, over.source, over.where)


def dotted(key: KeyPath) -> str:
    """`("data", "train", 0)` as `data.train.0`; whatever would spoil a line of text is escaped, long names are cut."""
    names = (str(part) if str(part).isprintable() else ascii(part) for part in key)
    return ".".join(name if len(name) <= 80 else name[:77] + "..." for name in names)


def describe(node: Node) -> str:
    """What a node is, in the words of an error message."""
    if isinstance(node, Table):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    return describe_value(node.value)


def describe_value(value: Any) -> str:
    """What a scalar is, in the words of an error message; long text is cut."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        short = value if len(value) <= 40 else value[:37] + "..."
        return f"the text {short!r}"
    return f"the number {value}"[:60]


def positions(root: Node) -> Iterator[tuple[KeyPath, Position]]:
    """Every key of the tree, parents first: a mapping's entry by its key, a list's by its value."""
    yield (), root.where
    pending: list[tuple[KeyPath, Node]] = [((), root)]
    while pending:
        key, node = pending.pop()
        if isinstance(node, Table):
            for name, entry in node.entries.items():
                yield (*key, name), entry.where
                pending.append(((*key, name), entry.node))
        elif isinstance(node, Items):
            for index, child in enumerate(node.nodes):
                yield (*key, index), child.where
                pending.append(((*key, index), child))
