"""What `ptcli methods` says: each method's needs, whether the installed TRL has it, and what is not covered yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptcli.methods import METHODS, NOT_COVERED, Method
from ptcli.recipe.availability import is_shipped, trl_version

_FACTS = ("name", "title", "trainer", "online", "needs", "takes", "backends")


def method_lines() -> Iterator[str]:
    """A line for each method, and one for all trainers that no recipe can ask for yet."""
    installed = trl_version() or "(none)"
    for row in METHODS.values():
        yield _line(row, installed)
    others = ", ".join(name for name, trainer in NOT_COVERED.items() if is_shipped(trainer))
    if others:
        yield f"\nnot yet covered, though TRL {installed} has them: {others}"


def method_facts() -> list[dict[str, Any]]:
    """The same for programs. `covered`: recipes can ask for it; `available`: the installed TRL has its trainer."""
    covered = [_facts(row) for row in METHODS.values()]
    others = [{"name": name, "trainer": trainer, "covered": False} for name, trainer in NOT_COVERED.items()]
    return [each | {"available": is_shipped(each["trainer"])} for each in (*covered, *others)]


def _line(row: Method, installed: str) -> str:
    kind = "online " if row.online else "offline"
    needs = f"; needs {', '.join(row.needs)}" if row.needs else ""
    last = f" (the last with it: {row.last_release})" if row.last_release else ""
    missing = "" if is_shipped(row.trainer) else f"; not in the installed TRL {installed}{last}"
    return f"{row.name:13} {kind}  {row.title}: {' or '.join(row.datasets)} data{needs}{missing}"


def _facts(row: Method) -> dict[str, Any]:
    more = {"datasets": [str(kind) for kind in row.datasets], "last_release": row.last_release or None, "covered": True}
    return {name: getattr(row, name) for name in _FACTS} | more
