"""The first rows of a recipe's training data, read without the rest: for trying out what works on rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from ptcli.data.head import stream
from ptcli.data.mixture import compile_transforms
from ptcli.data.transforms import RowTransform
from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.recipe.data_files import local_files
from ptcli.recipe.model import DataEntry, Recipe
from ptcli.train.data import choose_reader, reason, resolve_source
from ptcli.train.transformed import through


def first_rows(recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """Up to `count` rows as the trainer gets them, the same number from the beginning of each entry of `data.train`,
    in turn.

    Neither shuffled nor cut to a slice of a split: these rows stand for all the others. What is on the hub is streamed.
    Raises WorkError for an entry that cannot be read, or whose rows cannot be transformed.
    """
    entries = recipe.data.train
    share = -(-count // len(entries))
    transforms = compile_transforms(entries, METHODS[recipe.method])
    parts = [
        _first_of(entry, transform, f"data.train.{index}", share)
        for index, (entry, transform) in enumerate(zip(entries, transforms, strict=True))
    ]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*parts))
    return [row for row in in_turn if row is not None][:count]


def _first_of(entry: DataEntry, transform: RowTransform | None, key: str, count: int) -> list[dict[str, Any]]:
    rows = _beginning(entry, key)
    try:
        found = list(itertools.islice(through(rows, transform, key) if transform else rows, count))
    except WorkError:
        raise
    except Exception as error:  # `datasets` raises a dozen kinds
        raise WorkError(f"{key}: cannot read {entry.path}: {reason(error)}") from error
    if not found:
        raise WorkError(f"{key}: {entry.path} has no rows{' that `filter` keeps' if entry.filter else ''}")
    return found


def _beginning(entry: DataEntry, key: str) -> Iterator[dict[str, Any]]:
    """The entry's rows, from its first, read as they are asked for."""
    if local_files(entry.path):
        yield from stream(resolve_source(entry.model_copy(update={"split": _whole(entry.split)}), key))
        return
    reader, arguments = choose_reader(entry, key)
    yield from reader(**arguments | {"split": _whole(entry.split), "streaming": True})


def _whole(split: str) -> str:
    return split.partition("[")[0]
