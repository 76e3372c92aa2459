"""Tools of a row, where they are rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ptcli.data.model import Hit
from ptcli.data.rules.facts import Seen
from ptcli.data.rules.words import quote, typed


def tools(seen: Seen) -> Iterator[Hit]:
    """`tools` is a list of functions with names, or the JSON of one."""
    value = seen.row["tools"]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            yield _bad(f"`tools` is text that is not JSON ({quote(value)})")
            return
    if value is None:
        return
    if not isinstance(value, list):
        yield _bad(f"`tools` is {typed(value)}, not a list")
    elif not all(_named(tool) for tool in value):
        yield _bad("a tool of `tools` has no `function` with a `name`")


def _named(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return isinstance(name, str) and bool(name.strip())


def _bad(detail: str) -> Hit:
    return Hit("bad-tools", "error", detail, 'write each tool as {"type": "function", "function": {"name": …}}')
