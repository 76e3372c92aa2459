"""How many training rows there can be at most, where that is cheap to tell."""

from __future__ import annotations

from pathlib import Path

from ptcli.builtin import DATASETS, PREFIX, data_path
from ptcli.recipe.data_files import held_out
from ptcli.recipe.model import DataEntry, Recipe

_MOST_BYTES = 64 * 2**20
"""Counting the lines of a larger file takes longer than planning should."""


def count_rows(recipe: Recipe) -> int | None:
    """At most so many training rows; None when that would need a download or a long read."""
    given = given_rows(recipe)
    share = recipe.data.eval
    return given if given is None or not isinstance(share, float | int) else given - held_out(share, given)


def given_rows(recipe: Recipe) -> int | None:
    """The same before a share of them is held out for evaluation."""
    if any(entry.weight is not None for entry in recipe.data.train):
        return None  # drawn until the last entry was read whole: how often the others are, is chance
    counts = [_entry_rows(entry) for entry in recipe.data.train]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return sum(known)


def _entry_rows(entry: DataEntry) -> int | None:
    lines = _lines(_file(entry)) if entry.split == "train" else None
    known = [count for count in (lines, entry.take) if count is not None]
    return min(known) if known else None


def _file(entry: DataEntry) -> Path | None:
    if entry.path.startswith(PREFIX):
        return data_path(entry.path) if entry.path.removeprefix(PREFIX) in DATASETS else None
    return Path(entry.path) if entry.path.endswith(".jsonl") else None


def _lines(path: Path | None) -> int | None:
    try:
        if path is None or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        with path.open("rb") as file:
            return sum(1 for line in file if not line.isspace())
    except OSError:
        return None
