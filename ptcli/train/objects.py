"""Load what a recipe names as `file.py:name` or `package.module:name`: rewards and callbacks."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ptcli.errors import WorkError

_REFERENCE = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)", re.DOTALL)


def is_object_reference(use: str) -> bool:
    """True for `file.py:name` and `package.module:name`; false for a model path, `builtin:NAME` included."""
    return not use.startswith("builtin:") and _REFERENCE.fullmatch(use) is not None


def load_object(use: str) -> Any:
    """The object that `use` names. Raises WorkError when the module cannot be imported or lacks the name."""
    match = _REFERENCE.fullmatch(use)
    if match is None:
        raise WorkError(f"`{use}` is not a `file.py:name` or `package.module:name`")
    module = _load_module(match["module"], use)
    try:
        return getattr(module, match["name"])
    except AttributeError as error:
        raise WorkError(f"`{use}`: {match['module']} has no `{match['name']}`") from error


def import_class(path: str) -> Any:
    """The object behind an import string of METHODS (`module:Class`)."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _load_module(module: str, use: str) -> ModuleType:
    try:
        return _load_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:
        raise WorkError(f"`{use}` cannot be imported: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> ModuleType:
    """Execute the file once, as a module of its own name: two files called rewards.py do not meet."""
    path = path.resolve()
    name = f"ptcli_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    _make_siblings_importable(path.parent)
    sys.modules[name] = module  # before execution: dataclasses and pickle look the module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make_siblings_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
