"""The entries of one list together: what each does to its rows so that all end in one dataset type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ptcli.data.head import read_head
from ptcli.data.model import Row
from ptcli.data.transforms import RowTransform, TransformError, compile_transform
from ptcli.methods import DatasetType, Method

if TYPE_CHECKING:
    from ptcli.recipe.model import DataEntry

ALPACA = "alpaca"
ReadHead = Callable[["DataEntry"], Sequence[Row] | None]


def compile_transforms(
    entries: Sequence[DataEntry],
    method: Method,
    beside: Sequence[DataEntry] = (),
    *,
    head: ReadHead = read_head,
) -> list[RowTransform | None]:
    """What each entry of a list does to its rows, None where that is nothing. `beside`: the training entries, for those
    of an evaluation set.

    Alpaca's layout becomes a prompt and a completion. Where the method does not take these, or an entry of the list or
    beside it has `messages`, it becomes messages.
    """
    messages = any(entry.from_ == ALPACA for entry in entries) and _wants_messages([*entries, *beside], method, head)
    return [compile_transform(entry, messages=messages) for entry in entries]


def _wants_messages(entries: Sequence[DataEntry], method: Method, head: ReadHead) -> bool:
    if DatasetType.LANGUAGE_MODELING not in method.datasets:
        return False
    if DatasetType.PROMPT_COMPLETION not in method.datasets:
        return True
    return any("messages" in _first_columns(entry, head) for entry in entries if entry.from_ != ALPACA)


def _first_columns(entry: DataEntry, head: ReadHead) -> frozenset[str]:
    """The columns of the first row that comes through; none where that cannot be told."""
    transform = compile_transform(entry)
    for row in head(entry) or ():
        try:
            changed = transform(row) if transform else row
        except TransformError:
            continue
        if changed is not None:
            return frozenset(changed)
    return frozenset()
