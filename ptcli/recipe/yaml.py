"""Reads YAML text into nodes with positions.

Works on the parser's events, not on PyYAML's nodes: an alias keeps its own position, its size is known before it is
expanded, and no tag can construct anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import yaml as pyyaml

from ptcli.errors import Position, Problem
from ptcli.recipe.tree import MAX_NODES, Broken, Entry, Items, Node, Scalar, Source, Table, dotted

MAX_DEPTH = 50
"""Levels of nesting."""

_LOADER = getattr(pyyaml, "CSafeLoader", pyyaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = {None, *(_CORE + name for name in ("int", "float", "bool", "null"))}
_TEXT_TAGS = {"!", _CORE + "str"}
_MERGE = "<<"


class _Unreadable(Exception):
    """Carries the problem that makes the rest of the text meaningless."""

    def __init__(self, problem: Problem):
        self.problem = problem


def read_yaml(text: str, source: Source) -> tuple[Node | None, list[Problem]]:
    """The one document in `text`, and what is wrong with it.

    The node is None when there is nothing to go on with: no document, or a text that is not YAML. Duplicate keys and
    the like leave a usable node.
    """
    reader = _Reader(text.removeprefix("\ufeff"), source)
    try:
        return reader.document(), reader.problems
    except _Unreadable as error:
        return None, [*reader.problems, error.problem]


class _Reader:
    """State of one pass over the events of a text."""

    def __init__(self, text: str, source: Source):
        self.text = text
        self.source = source
        self.problems: list[Problem] = []
        self.count = 0
        self.anchors: dict[str, Node | None] = {}
        """None while the anchored node is still being read."""

    def document(self) -> Node | None:
        self.refuse_unprintable()
        events = self.events()
        next(events)
        event = next(events)
        if not isinstance(event, pyyaml.DocumentStartEvent):
            return None
        node = self.node(next(events), events, 0)
        next(events)
        event = next(events)
        if isinstance(event, pyyaml.DocumentStartEvent):
            raise self.unreadable("a recipe is one YAML document", event.start_mark, "remove the second `---`")
        return node

    def events(self) -> Iterator[Any]:
        try:
            yield from pyyaml.parse(self.text, Loader=_LOADER)
        except pyyaml.MarkedYAMLError as error:
            raise self.syntax_error(error) from None
        except pyyaml.YAMLError as error:
            raise _Unreadable(
                Problem(f"not valid YAML: {str(error).splitlines()[0]}", where=Position(self.source.name))
            ) from None

    def refuse_unprintable(self) -> None:
        found = pyyaml.reader.Reader.NON_PRINTABLE.search(self.text)
        if found:
            before = self.text[: found.start()].split("\n")
            where = self.source.position(len(before) - 1, len(before[-1]))
            message = f"not valid YAML: the character U+{ord(found.group()):04X} may not stand in it"
            raise _Unreadable(Problem(message, "remove it, or write it as an escape in double quotes", where=where))

    def node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        self.count += 1
        if depth > MAX_DEPTH:
            raise self.unreadable(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        if isinstance(event, pyyaml.AliasEvent):
            return self.alias(event)
        anchor = event.anchor
        if anchor:
            self.anchors[anchor] = None
        node = self.fresh_node(event, events, depth)
        if anchor:
            self.anchors[anchor] = node
        self.refuse_huge(event)
        return node

    def fresh_node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        if isinstance(event, pyyaml.ScalarEvent):
            return self.scalar(event)
        kind = "map" if isinstance(event, pyyaml.MappingStartEvent) else "seq"
        if event.tag not in (None, "!", _CORE + kind):
            self.refuse_tag(event)
        return self.table(event, events, depth) if kind == "map" else self.items(event, events, depth)

    def alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            raise self.unreadable(f"`*{event.anchor}` refers to an anchor that is not there", event.start_mark)
        node = self.anchors[event.anchor]
        if node is None:
            raise self.unreadable(f"`*{event.anchor}` contains itself", event.start_mark)
        self.count += node.size
        self.refuse_huge(event)
        return replace(node, where=self.where(event.start_mark))

    def refuse_huge(self, event: Any) -> None:
        if self.count > MAX_NODES:
            message = f"more than {MAX_NODES} values once aliases are written out"
            raise self.unreadable(message, event.start_mark, "a recipe is never that large")

    def scalar(self, event: Any) -> Scalar:
        where = self.where(event.start_mark)
        if event.tag not in _SCALAR_TAGS | _TEXT_TAGS:
            self.refuse_tag(event)
            return Broken("", True, self.source, where)
        plain = event.style in (None, "") and event.tag not in _TEXT_TAGS
        if event.tag in _SCALAR_TAGS and event.tag is not None:
            plain = True
        return Scalar(event.value, plain, self.source, where)

    def items(self, event: Any, events: Iterator[Any], depth: int) -> Items:
        nodes = []
        while not isinstance(child := next(events), pyyaml.SequenceEndEvent):
            nodes.append(self.node(child, events, depth + 1))
        return Items(tuple(nodes), self.source, self.where(event.start_mark))

    def table(self, event: Any, events: Iterator[Any], depth: int) -> Table:
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        while not isinstance(child := next(events), pyyaml.MappingEndEvent):
            key = self.node(child, events, depth + 1)
            value = self.node(next(events), events, depth + 1)
            if not isinstance(key, Scalar):
                self.problems.append(Problem("a key must be text", where=key.where))
            elif key.text == _MERGE and key.plain:
                merged = self.merged(value) | merged
            elif key.text in entries:
                self.refuse_duplicate(key, entries[key.text].where)
            else:
                entries[key.text] = Entry(key.where, value)
        return Table(merged | entries, self.source, self.where(event.start_mark))

    def merged(self, value: Node) -> dict[str, Entry]:
        """The entries of a merge key's value; the first of several mappings wins."""
        entries: dict[str, Entry] = {}
        for node in value.nodes if isinstance(value, Items) else (value,):
            if isinstance(node, Table):
                entries = dict(node.entries) | entries
            else:
                self.problems.append(Problem("`<<` takes a mapping or a list of mappings", where=node.where))
        return entries

    def refuse_duplicate(self, key: Scalar, first: Position) -> None:
        place = f"line {first.line}, column {first.column}" if first.line else "before"
        message = f"duplicate key `{dotted((key.text,))}`, already given at {place}"
        self.problems.append(Problem(message, "remove one of the two", where=key.where))

    def refuse_tag(self, event: Any) -> None:
        tag = event.tag.replace(_CORE, "!!")
        message = f"the YAML tag `{tag}` is not supported"
        self.problems.append(Problem(message, "remove it", where=self.where(event.start_mark)))

    def where(self, mark: Any) -> Position:
        return self.source.position(mark.line, mark.column)

    def unreadable(self, message: str, mark: Any, fix: str = "") -> _Unreadable:
        return _Unreadable(Problem(message, fix, where=self.where(mark)))

    def syntax_error(self, error: pyyaml.MarkedYAMLError) -> _Unreadable:
        mark = error.problem_mark or error.context_mark
        lines = self.text.split("\n")
        message = f"not valid YAML: {error.problem}{' ' + error.context if error.context else ''}"
        if mark is None:
            return _Unreadable(Problem(message, where=Position(self.source.name)))
        number, column = mark.line, mark.column
        if not "\n".join(lines[number:])[column:].strip():
            # Something was never closed: where it was opened says more than the end of the file.
            opened = error.context_mark or mark
            number, column = min((opened.line, opened.column), _last_character(lines))
        fix = _advise(lines[number], column, message)
        return _Unreadable(Problem(message, fix, where=self.source.position(number, column)))


def _last_character(lines: list[str]) -> tuple[int, int]:
    """Line and column, from 0, of the last character that is not blank."""
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].strip():
            return number, len(lines[number].rstrip()) - 1
    return 0, 0


def _advise(line: str, column: int, message: str) -> str:
    """What to do about a syntax error, from the line it is in."""
    character = line[column : column + 1]
    if character == "\t" or line[: len(line) - len(line.lstrip())].count("\t"):
        return "indent with spaces, not tabs"
    if character and character in "@`%":
        return f"put quotes around a value that starts with `{character}`"
    if "${" in line and "{" in line.replace("${", ""):
        return "put quotes around `${...}` inside `{...}` and `[...]`"
    if "mapping values" in message:
        return "put quotes around a value that has `: ` in it, or check the indentation"
    return ""
