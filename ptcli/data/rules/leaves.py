"""The JSON types of what lies inside values that reach reward functions or templates as they are."""

from __future__ import annotations

from typing import Any

from ptcli.data.model import Profile
from ptcli.data.rules.facts import Seen

MOST_LEAVES = 1024
_DEEPEST = 8
_MOST_ELEMENTS = 32


def record(profile: Profile, seen: Seen, row: int) -> None:
    """Notes the leaves of nested columns that rewards are handed, and of the arguments of tool calls."""
    if seen.facts.rewarded:
        for column, value in seen.row.items():
            if (
                isinstance(value, dict | list)
                and value
                and column not in seen.plan.values
                and seen.facts.passed(column)
            ):
                _walk(profile, column, value, row, _DEEPEST)
    for column, chat in seen.chats.items():
        for message in chat:
            calls = message.get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                function = call.get("function") if isinstance(call, dict) else None
                arguments = function.get("arguments") if isinstance(function, dict) else None
                if isinstance(arguments, dict):
                    _walk(profile, f"{column}[].tool_calls[].function.arguments", arguments, row, _DEEPEST)


def _walk(profile: Profile, path: str, value: Any, row: int, depth: int) -> None:
    if isinstance(value, dict):
        if depth:
            for key, each in value.items():
                _walk(profile, f"{path}.{key[:64]}", each, row, depth - 1)
    elif isinstance(value, list):
        if depth:
            for each in value[:_MOST_ELEMENTS]:
                _walk(profile, f"{path}[]", each, row, depth - 1)
    elif value is not None:
        types = profile.leaves.get(path)
        if types is None:
            if len(profile.leaves) >= MOST_LEAVES:
                return
            types = profile.leaves[path] = {}
        types.setdefault(type(value).__name__, row)
