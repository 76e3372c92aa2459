"""The first rows of a recipe's training data, read without the rest: for trying out what works on rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from ptcli.errors import WorkError
from ptcli.recipe.model import DataEntry, Recipe
from ptcli.train.data import choose_reader, reason


def first_rows(recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """Up to `count` rows, the same number from the beginning of each entry of `data.train`, in turn.

    Columns have the recipe's names. Neither shuffled nor cut to a slice of a split: these rows stand for all the
    others. What is on the hub is streamed. Raises WorkError for an entry that cannot be read.
    """
    entries = recipe.data.train
    share = -(-count // len(entries))
    parts = [_first_of(entry, f"data.train.{index}", share) for index, entry in enumerate(entries)]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*parts))
    return [row for row in in_turn if row is not None][:count]


def _first_of(entry: DataEntry, key: str, count: int) -> list[dict[str, Any]]:
    reader, arguments = choose_reader(entry, key)
    if reader is load_dataset:
        arguments = arguments | {"split": entry.split.partition("[")[0], "streaming": True}
    try:
        rows = reader(**arguments)
        if isinstance(rows, DatasetDict):
            rows = rows[entry.split]
        if isinstance(rows, Dataset):
            rows = (rows[index] for index in range(min(count, len(rows))))
        found = [_renamed(row, entry.rename) for row in itertools.islice(iter(rows), count)]
    except Exception as error:  # `datasets` raises a dozen kinds
        raise WorkError(f"{key}: cannot read {entry.path}: {reason(error)}") from error
    if not found:
        raise WorkError(f"{key}: {entry.path} has no rows")
    return found


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(column, column): value for column, value in row.items()}
