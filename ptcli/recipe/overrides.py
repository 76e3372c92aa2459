"""`KEY=VALUE` arguments, laid over the tree that came from the files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptcli.errors import KeyPath, Position, Problem
from ptcli.recipe.secrets import hide_secret
from ptcli.recipe.tree import Entry, Items, Node, Scalar, Source, Table, describe, merge
from ptcli.recipe.yaml import read_yaml

_BRACKET = re.compile(r"\[(\d+)\]")
_INDEX = re.compile(r"\d{1,9}$")


@dataclass(frozen=True)
class Override:
    """One `KEY=VALUE`, parsed."""

    parts: tuple[str, ...]
    """The key's parts; an index is still text, since only the recipe says whether it is a list there."""
    node: Node


class _Refused(Exception):
    """Carries why an override cannot be applied, and the fix."""


def parse_overrides(texts: Sequence[str], folder: Path) -> tuple[list[Override], list[Problem]]:
    """Overrides in their order, and what is wrong with the others. Relative paths in them are relative to `folder`."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        source = Source(hide_secret(text), folder, override=True)
        key, equals, value = text.partition("=")
        parts = tuple(_BRACKET.sub(r".\1", key.strip()).split("."))
        if not equals or not all(parts):
            message = "an override is KEY=VALUE, with dots between the parts of the key"
            problems.append(Problem(message, "for example training.learning_rate=1e-6", where=Position(source.name)))
            continue
        node, found = _read_value(value.strip(), source)
        problems += found
        if node is not None:
            overrides.append(Override(parts, node))
    return overrides, problems


def _read_value(text: str, source: Source) -> tuple[Node | None, list[Problem]]:
    """A quoted or bracketed value is YAML; anything else is one scalar, so that globs and colons need no quotes."""
    if text[:1] in tuple("[{\"'"):
        return read_yaml(text, source)
    return Scalar(text, True, source, Position(source.name)), []


def apply_overrides(root: Table, overrides: Sequence[Override]) -> tuple[Table, list[Problem]]:
    """The tree with every override in it, later ones winning, and the overrides that do not fit it."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            node = _apply(root, override, 0)
        except _Refused as error:
            message, fix = error.args
            problems.append(Problem(message, fix, _as_key(override.parts), override.node.where))
            continue
        assert isinstance(node, Table)
        root = node
    return root, problems


def _apply(node: Node, override: Override, depth: int) -> Node:
    """`node`, which is at the first `depth` parts of the key, with the override's value put into it."""
    if depth == len(override.parts):
        return merge(node, override.node)
    part = override.parts[depth]
    if isinstance(node, Items):
        return _apply_to_list(node, override, depth)
    if isinstance(node, Scalar) and node.value is None:
        node = Table({}, override.node.source, node.where)
    if isinstance(node, Scalar):
        raise _Refused(f"`{_dotted(override, depth)}` is {describe(node)} and has no key `{part}`", "")
    below = node.entries.get(part)
    child = _apply(below.node, override, depth + 1) if below else _new(override, depth + 1)
    last = depth + 1 == len(override.parts)
    where = override.node.where if below is None or last else below.where
    return Table({**node.entries, part: Entry(where, child)}, node.source, node.where)


def _apply_to_list(node: Items, override: Override, depth: int) -> Items:
    part, place = override.parts[depth], _dotted(override, depth)
    if not _INDEX.match(part):
        raise _Refused(f"`{place}` is a list, and `{part}` is not an index", f"write {place}.0 for its first entry")
    index = int(part)
    if index >= len(node.nodes):
        count = len(node.nodes)
        raise _Refused(
            f"`{place}` has {count} {'entry' if count == 1 else 'entries'}, counted from 0, so no {index}", ""
        )
    child = _apply(node.nodes[index], override, depth + 1)
    return Items((*node.nodes[:index], child, *node.nodes[index + 1 :]), node.source, node.where)


def _new(override: Override, depth: int) -> Node:
    """The value in as many new mappings as the rest of the key has parts."""
    node = override.node
    for position in range(len(override.parts) - 1, depth - 1, -1):
        part = override.parts[position]
        if _INDEX.match(part):
            place = _dotted(override, position)
            raise _Refused(f"there is no list `{place}` to have an entry {part}", f"write {place}=[...]")
        node = Table({part: Entry(node.where, node)}, node.source, node.where)
    return node


def _dotted(override: Override, depth: int) -> str:
    return ".".join(override.parts[:depth])


def _as_key(parts: Sequence[str]) -> KeyPath:
    return tuple(int(part) if _INDEX.match(part) else part for part in parts)
