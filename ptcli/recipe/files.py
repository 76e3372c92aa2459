"""What can be said of a file that a recipe names, whatever is in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ptcli.recipe.local_models import POINTER
from ptcli.recipe.suggest import nearest

EMPTY = "is empty"


def unreadable(path: Path) -> str:
    """Why a file cannot be used, whatever is in it; "" when it can."""
    try:
        if not path.stat().st_size:
            return EMPTY
        with path.open("rb") as file:
            return (
                "is a Git LFS pointer, not the file: run `git lfs pull`" if file.read(len(POINTER)) == POINTER else ""
            )
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def near_sibling(path: Path) -> str:
    """A question that names a file beside a missing `path` that has nearly its name; "" without one."""
    try:
        near = nearest(path.name, [each.name for each in path.parent.iterdir()])
    except OSError:
        return ""
    return f"did you mean {path.parent / near}?" if near else ""


def near_builtin(name: str, known: Iterable[str]) -> str:
    known = [f"builtin:{each}" for each in known]
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"there is {', '.join(known)}"
