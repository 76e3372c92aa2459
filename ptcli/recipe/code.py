"""Looks functions and classes up in source code that is not imported: `file.py:name` and `package.module:name`."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ptcli.recipe.suggest import nearest

USE = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)", re.DOTALL)
"""`file.py:name` or `package.module:name`."""

_MAX_IMPORTS = 5
"""Modules to follow an imported name through."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class NotFound(Exception):
    """There is nothing of that name. Carries the message and the fix."""

    def __init__(self, message: str, fix: str = ""):
        self.message, self.fix = message, fix
        super().__init__(message)


@dataclass(frozen=True)
class Found:
    """What a name stands for."""

    node: ast.AST | None
    """Its definition, or the literal assigned to it; None when only running the code would tell."""


def find_object(use: str, *, follow: bool = True) -> Found:
    """What `use` names. Raises NotFound when it is certain that it names nothing, which the module itself tells; what
    it imports is read only to `follow` the name to its definition."""
    match = USE.fullmatch(use)
    if match is None:
        raise NotFound(f"{use!r} is not a `file.py:name` or `package.module:name`")
    if match["module"].endswith(".py"):
        path: Path | None = _source_file(Path(match["module"]))
    else:
        path = find_module(match["module"])
    depth = 0 if follow else _MAX_IMPORTS
    return _look_up(path, match["name"], match["module"], depth) if path else Found(None)


@functools.cache
def shipped_rewards() -> frozenset[str]:
    """Names of the reward functions that TRL ships, which its own scripts take without a module."""
    try:
        source = find_module("trl.rewards")
    except NotFound:
        return frozenset()
    text = source.read_text(encoding="utf-8") if source else ""
    return frozenset(re.findall(r"\b(?:get_)?\w+_(?:reward|punishment)\b", text))


def has_module(name: str) -> bool:
    """Whether there is a top-level module or package of that name. Imports nothing."""
    return _top_spec(name) is not None


# --- files -----------------------------------------------------------------------------------------------------------


def _source_file(path: Path) -> Path:
    if os.path.isdir(path):
        raise NotFound(f"{path} is a folder, not a Python file")
    if not os.path.isfile(path):
        siblings = [each.name for each in path.parent.glob("*.py")] if os.path.isdir(path.parent) else []
        near = nearest(path.name, siblings)
        raise NotFound(f"there is no file {path}", f"did you mean {near}?" if near else "")
    return path


def find_module(dotted: str) -> Path | None:
    """Source file of a module, without importing it or its parents; None when it has no source. Raises NotFound.

    `importlib.util.find_spec` would import the parents of a dotted name, and those of `trl.rewards` take a second.
    """
    if dotted in sys.modules:  # also os.path, which is no submodule of anything
        return _source_of(getattr(sys.modules[dotted], "__file__", None))
    first, *rest = dotted.split(".")
    spec = _top_spec(first)
    if spec is None:
        raise NotFound(f"there is no module {first}", "install it, or name a file: `path/to/file.py:name`")
    for depth, name in enumerate(rest, 1):
        folders = spec.submodule_search_locations
        parent = ".".join(dotted.split(".")[:depth])
        below = PathFinder.find_spec(name, list(folders)) if folders else None
        if below is None:
            near = nearest(name, _modules_in(folders or ()))
            raise NotFound(f"{parent} has no module {name}", f"did you mean {parent}.{near}?" if near else "")
        spec = below
    return _source_of(spec.origin)


def _source_of(origin: str | None) -> Path | None:
    return Path(origin) if origin and origin.endswith(".py") else None


def _top_spec(name: str) -> ModuleSpec | None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module that is being run has no spec
        found = None
    return found or PathFinder.find_spec(name, [str(Path.cwd())])  # where the trainer's processes find it


def _modules_in(folders: Iterable[str]) -> list[str]:
    return [path.stem for folder in folders for path in Path(folder).glob("*") if path.suffix in ("", ".py")]


# --- names -----------------------------------------------------------------------------------------------------------


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise NotFound(f"{path}{line} is not valid Python: {getattr(error, 'msg', error)}") from error


def _look_up(path: Path, name: str, module: str, depth: int = 0) -> Found:
    """The last binding of `name` at the top of a module, through imports of it where they can be followed."""
    tree = _parse(path)
    bound: dict[str, ast.stmt] = {}
    for statement in _top_statements(tree.body):
        for each in _names_bound(statement):
            bound[each] = statement
    lazy = set(_lazy_names(tree))
    if name not in bound:
        if name in lazy or {"*", "__getattr__"} & bound.keys():
            return Found(None)
        raise _no_name(module, name, bound, lazy)
    statement = bound[name]
    if isinstance(statement, ast.ImportFrom) and depth < _MAX_IMPORTS:
        return _follow(path, statement, name, depth)
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return Found(statement.value if isinstance(statement.value, ast.Constant) else None)
    return Found(statement if isinstance(statement, Definition) else None)


def _no_name(module: str, name: str, bound: dict[str, ast.stmt], lazy: set[str]) -> NotFound:
    public = [each for each, node in bound.items() if isinstance(node, Definition) and not each.startswith("_")]
    public += sorted(lazy - set(public))
    near = nearest(name, public)
    fix = f"did you mean `{near}`?" if near else f"it has {', '.join(public[:8])}" if public else ""
    return NotFound(f"{module} has no `{name}`", fix)


def _top_statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, also inside `if`, `try`, `with` and loops."""
    for statement in body:
        yield statement
        if isinstance(statement, Definition):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _top_statements(getattr(statement, field, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from _top_statements(handler.body)


def _names_bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, Definition):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or (alias.name if isinstance(statement, ast.ImportFrom) else alias.name.split(".")[0])
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For | ast.With):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _lazy_names(tree: ast.Module) -> Iterator[str]:
    """Names in the `_import_structure` with which trl and transformers say what their lazy modules have."""
    for statement in _top_statements(tree.body):
        source = ast.dump(statement) if isinstance(statement, ast.Assign | ast.Expr) else ""
        if "id='_import_structure'" not in source:
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                yield node.value


def _follow(path: Path, statement: ast.ImportFrom, name: str, depth: int) -> Found:
    """What an imported name is, as far as the source says; what cannot be found is not called missing."""
    original = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
    try:
        target = _imported_file(path, statement)
        return _look_up(target, original, str(statement.module), depth + 1) if target else Found(None)
    except NotFound:
        return Found(None)


def _imported_file(path: Path, statement: ast.ImportFrom) -> Path | None:
    parts = statement.module.split(".") if statement.module else []
    if statement.level:
        base = path.parents[statement.level - 1].joinpath(*parts)
    elif os.path.isfile(path.parent.joinpath(*parts).with_suffix(".py")):
        base = path.parent.joinpath(*parts)  # a sibling of a user's file
    else:
        return find_module(".".join(parts))
    return next((each for each in (base.with_suffix(".py"), base / "__init__.py") if os.path.isfile(each)), None)
