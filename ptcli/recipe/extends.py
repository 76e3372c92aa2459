"""Reads a recipe file and the bases it extends into one tree."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ptcli.errors import Position, Problem
from ptcli.recipe.tree import MAX_NODES, Entry, Items, Node, Scalar, Source, Table, describe, merge
from ptcli.recipe.yaml import read_yaml

MAX_BYTES = 1 << 20
"""Size of a recipe file."""
MAX_CHAIN = 30
"""Length of a chain of bases."""


class RecipeFiles:
    """The files of one recipe. `problems` fills up while they are read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.order: dict[str, int] = {}
        """Names of the files, as errors show them, in the order in which they were read."""
        self.trees: dict[str, Table | None] = {}

    def read(self, path: Path, extra: Node | None = None) -> Table | None:
        """The merged tree of `path`, with `extra` in the place of its own `extends`. None when there is no mapping."""
        name = os.path.normpath(path)
        self.order.setdefault(name, len(self.order))
        try:
            text = _read_text(path)
        except _NotReadable as error:
            message, fix = error.args
            self.problems.append(Problem(message, fix, where=Position(name)))
            return None
        return self.read_text(text, path, (_identity(path),), extra)

    def read_text(self, text: str, path: Path, chain: tuple[str, ...], extra: Node | None = None) -> Table | None:
        name = os.path.normpath(path)
        source = Source(name, Path(os.path.abspath(path.parent)))
        root, problems = read_yaml(text, source)
        self.problems += problems
        if root is None or (isinstance(root, Scalar) and root.value is None and not problems):
            if not problems:
                fix = "write at least `method`, `model` and `data`"
                self.problems.append(Problem("the recipe is empty", fix, where=Position(name)))
            return None
        if not isinstance(root, Table):
            # What stands there is not repeated: it may be the wrong file, and hold anything.
            what = "a single value" if isinstance(root, Scalar) else describe(root)
            message = f"a recipe must be a mapping of keys to values, not {what}"
            self.problems.append(Problem(message, where=root.where))
            return None
        return self.with_bases(root, path, chain, extra)

    def with_bases(self, root: Table, path: Path, chain: tuple[str, ...], extra: Node | None) -> Table:
        own = root.entries.get("extends")
        entry = Entry(extra.where, extra) if extra else own
        merged: Node = Table({}, root.source, root.where)
        for where, text, source in self.base_names(entry) if entry else ():
            base = self.base(where, source.folder / os.path.expanduser(text), text, path, chain)
            merged = merge(merged, base) if base else merged
        rest = Table({key: e for key, e in root.entries.items() if key != "extends"}, root.source, root.where)
        result = merge(merged, rest)
        assert isinstance(result, Table)
        if result.size > MAX_NODES:
            self.problems.append(Problem(f"more than {MAX_NODES} values with all bases", where=root.where))
        return result

    def base_names(self, entry: Entry) -> Iterator[tuple[Position, str, Source]]:
        """Every base that is named: where, the text, and the source that says it."""
        is_list = isinstance(entry.node, Items)
        for node in entry.node.nodes if isinstance(entry.node, Items) else (entry.node,):
            where = node.where if is_list else entry.where
            if isinstance(node, Scalar) and node.value is None:
                continue
            if not isinstance(node, Scalar):
                message = f"`extends` takes a path or a list of paths, not {describe(node)}"
                self.problems.append(Problem(message, key=("extends",), where=where))
            elif "${" in node.text:
                self.problems.append(Problem("`extends` takes no `${...}`", "write the path", ("extends",), where))
            else:
                yield where, node.text, node.source

    def base(self, where: Position, path: Path, text: str, by: Path, chain: tuple[str, ...]) -> Table | None:
        # Shown relative to the working directory in the way the first recipe was given.
        shown = path if os.path.isabs(text) or text.startswith("~") else _beside(by, text, path)
        identity = _identity(path)
        if identity in chain:
            self.refuse(where, f"`extends` goes in a circle: {_circle(chain, identity)}", "remove one of the links")
            return None
        if len(chain) >= MAX_CHAIN:
            self.refuse(where, f"a chain of more than {MAX_CHAIN} bases", "")
            return None
        if identity not in self.trees:
            self.order.setdefault(os.path.normpath(shown), len(self.order))
            try:
                content = _read_text(path)
            except _NotReadable as error:
                self.refuse(where, f"the base {text[:200]!r} cannot be read: {error.args[0]}", error.args[1])
                self.trees[identity] = None
            else:
                self.trees[identity] = self.read_text(content, shown, (*chain, identity))
        return self.trees[identity]

    def refuse(self, where: Position, message: str, fix: str) -> None:
        self.problems.append(Problem(message, fix, key=("extends",), where=where))


class _NotReadable(Exception):
    """Carries why a file cannot be read, and the fix."""


def _read_text(path: Path) -> str:
    """Raises _NotReadable."""
    try:
        if path.is_dir():
            raise _NotReadable("it is a folder, not a recipe", "give the YAML file")
        if not path.is_file() and path.exists():
            raise _NotReadable("it is not a regular file", "give the YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _NotReadable("there is no such file", "check the path") from None
    except PermissionError:
        raise _NotReadable("no permission to read it", "change its permissions") from None
    except (OSError, ValueError) as error:
        raise _NotReadable(f"it cannot be read ({getattr(error, 'strerror', None) or error})", "") from None
    if len(content) > MAX_BYTES:
        raise _NotReadable(
            f"it is larger than {MAX_BYTES >> 20} MiB", "a recipe is a short YAML file; is it another one?"
        )
    return _decode(content)


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _NotReadable(f"it is not UTF-8 text (line {line})", "save it as UTF-8") from None


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def _beside(by: Path, text: str, path: Path) -> Path:
    """How to show a base: beside the file that names it, unless an override named it from elsewhere."""
    shown = by.parent / text
    return shown if _identity(shown) == _identity(path) else path


def _circle(chain: Sequence[str], identity: str) -> str:
    links = [*chain[chain.index(identity) :], identity]
    return " -> ".join(os.path.basename(link) for link in links)
