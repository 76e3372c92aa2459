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

ReadHead = Callable[["DataEntry"], Sequence[Row] | None]


def compile_transforms(
    entries: Sequence[DataEntry], method: Method, head: ReadHead = read_head
) -> list[RowTransform | None]:
    """What each entry of a list does to its rows, None where that is nothing.

    Alpaca's layout becomes a prompt and a completion. Where the method does not take these, or an entry beside it has
    `messages`, it becomes messages.
    """
    transforms = [compile_transform(entry) for entry in entries]
    layouts = [entry.from_ == "alpaca" for entry in entries]
    if not any(layouts):
        return transforms
    takes = DatasetType.PROMPT_COMPLETION in method.datasets or DatasetType.LANGUAGE_MODELING not in method.datasets
    others = [pair for pair, alpaca in zip(zip(entries, transforms, strict=True), layouts, strict=True) if not alpaca]
    if takes and not any("messages" in _first_columns(entry, transform, head) for entry, transform in others):
        return transforms
    return [compile_transform(entry, messages=True) for entry in entries]


def _first_columns(entry: DataEntry, transform: RowTransform | None, head: ReadHead) -> frozenset[str]:
    """The columns of the first row that comes through; none where that cannot be told."""
    for row in head(entry) or ():
        try:
            changed = transform(row) if transform else row
        except TransformError:
            continue
        if changed is not None:
            return frozenset(changed)
    return frozenset()
