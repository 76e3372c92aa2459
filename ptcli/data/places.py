"""Texts with `{column}` places."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ptcli.data.model import Row
from ptcli.data.problems import TransformError

_PARTS = re.compile(r"(?P<escaped>\{\{|\}\}|\{\})|\{(?P<place>[^{}]+)\}|(?P<lone>[{}])|(?P<text>[^{}]+)")
_LITERAL = {"{{": "{", "}}": "}", "{}": "{}"}


@dataclass(frozen=True)
class Template:
    """A text with the value of a column wherever `{column}` stands; `{a.b}` is the key `b` of the column `a`.

    `{{` and `}}` are braces, and so is `{}`, which names nothing: `\\boxed{}` needs no care.
    """

    parts: tuple[tuple[str, bool], ...]
    """Texts, and names of columns, which are marked by True."""

    @staticmethod
    def parse(text: str) -> Template:
        """Raises TransformError for a brace without its other half."""
        parts: list[tuple[str, bool]] = []
        for found in _PARTS.finditer(text):
            if found["lone"]:
                message = f"there is a single `{found['lone']}` in the prompt; write `{found['lone'] * 2}` for a brace"
                raise TransformError(message, "prompt")
            place = found["place"]
            parts.append((place, True) if place else (_LITERAL.get(found[0], found[0]), False))
        return Template(tuple(parts))

    @property
    def columns(self) -> tuple[str, ...]:
        """The places, in order."""
        return tuple(text for text, is_place in self.parts if is_place)

    def fill(self, row: Row) -> str:
        """The text of a row. Raises TransformError for a place without a value."""
        return "".join(_shown(_value(row, text), text) if is_place else text for text, is_place in self.parts)


def _value(row: Row, place: str) -> Any:
    if place in row:
        return row[place]
    value: Any = row
    for name in place.split("."):
        if not isinstance(value, dict) or name not in value:
            raise TransformError(f"the row has nothing for `{{{place}}}`; it has {', '.join(row)}", "prompt")
        value = value[name]
    return value


def _shown(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise TransformError(f"`{place}` is null, and the prompt has a place for it", "prompt")
    return json.dumps(value, ensure_ascii=False, default=str)
