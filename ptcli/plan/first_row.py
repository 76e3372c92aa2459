"""The first row of data that can be read without a download or a library: shipped rows and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptcli.data.head import read_head
from ptcli.data.transforms import TransformError, compile_transform
from ptcli.recipe.data_files import data_format, local_files
from ptcli.recipe.model import DataEntry

_CHATS = ("messages", "prompt", "completion", "chosen", "rejected")
"""Columns that hold chats or text (trl's `is_conversational`)."""
_FEW = 20
"""Rows of which the first that can be transformed is taken."""


def first_row(entry: DataEntry) -> dict[str, Any] | None:
    """The first row as the trainer gets it; None when that cannot be told cheaply, as after a function of the user's
    own."""
    files = local_files(entry.path)
    if entry.map or not files or data_format(files[0]) != "JSON":
        return None
    transform = compile_transform(entry.model_copy(update={"filter": None}))
    for row in read_head(entry, _FEW) or ():
        try:
            changed = transform(row) if transform else row
        except TransformError:
            continue
        if changed is not None:
            return changed
    return None


def is_conversational(row: Mapping[str, Any]) -> bool:
    """Whether the row holds a chat: a list of messages."""
    chats = [row[name] for name in _CHATS if name in row]
    return any(isinstance(chat, list) and chat and isinstance(chat[0], dict) and "role" in chat[0] for chat in chats)
