"""Values of rows in messages: short, on one line, whatever they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LONGEST = 60
LEAVE_OUT = "mend them, or leave such rows out: filter: file.py:function"
"""What helps where only some rows are bad."""
_TYPES = {type(None): "null", bool: "a boolean", int: "a whole number", float: "a number", dict: "an object"}


def clip(text: Any, longest: int = _LONGEST) -> str:
    """Text on one line of at most so many characters."""
    shown = str(text[: longest + 1] if isinstance(text, str) else text)
    line = "".join(letter if letter.isprintable() else " " for letter in shown[: longest + 1])
    return line if len(line) <= longest else line[: longest - 1] + "…"


def quote(value: Any) -> str:
    """A value as it would stand in JSON, clipped."""
    if isinstance(value, str):
        return f'"{clip(value, 40)}"'
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return clip(value, 40) if abs(value) < 10**30 else "a very large number"
    if isinstance(value, float):
        return clip(value, 40)
    return typed(value)


def typed(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        if not value:
            return "an empty list"
        return f"a list of {_plural(value[0])}"
    return _TYPES.get(type(value), f"a value of type {clip(type(value).__name__, 20)}")


def _plural(value: Any) -> str:
    if isinstance(value, str):
        return "texts"
    if isinstance(value, dict):
        return "objects"
    if isinstance(value, list):
        return "lists"
    return "booleans" if isinstance(value, bool) else "nulls" if value is None else "numbers"


def rows_in_words(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def listed(names: Sequence[str], joint: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {joint} {names[-1]}"
