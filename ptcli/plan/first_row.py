"""The first row of data that can be read without a download or a library: shipped rows and plain JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptcli.builtin import DATASETS, PREFIX, data_path
from ptcli.recipe.model import DataEntry

_CHATS = ("messages", "prompt", "completion", "chosen", "rejected")
"""Columns that hold chats or text (trl's `is_conversational`)."""
_LONGEST_LINE = 2**20
"""Bytes of a line that are read at most."""


def first_row(entry: DataEntry) -> dict[str, Any] | None:
    """The first row with its columns renamed; None when it cannot be told cheaply."""
    path = _file(entry)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            row = json.loads(file.readline(_LONGEST_LINE))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    rename = entry.rename
    return {str(rename.get(name, name)): value for name, value in row.items()}


def is_conversational(row: Mapping[str, Any]) -> bool:
    """Whether the row holds a chat: a list of messages."""
    chats = [row[name] for name in _CHATS if name in row]
    return any(isinstance(chat, list) and chat and isinstance(chat[0], dict) and "role" in chat[0] for chat in chats)


def _file(entry: DataEntry) -> Path | None:
    if entry.path.startswith(PREFIX):
        return data_path(entry.path) if entry.path.removeprefix(PREFIX) in DATASETS else None
    return Path(entry.path) if entry.path.endswith((".jsonl", ".ndjson")) else None
