"""Rows after the transforms of their entry: made once, the same rows that the data checks saw, kept in the cache."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from ptcli.data.model import Row
from ptcli.data.transforms import ROW_KEYS, RowTransform, TransformError
from ptcli.errors import WorkError
from ptcli.recipe.code import USE, NotFound, find_module
from ptcli.recipe.model import DataEntry
from ptcli.train import cache
from ptcli.train.exact import FILE, read_rows, write_stream

_SOURCE_KEYS = ("path", "name", "revision", "split")


def transformed(
    entry: DataEntry, transform: RowTransform | None, rows: Iterable[Row], identity: Any, key: str
) -> Dataset:
    """The rows that come through the entry's transform, from the cache where they were made before.

    `identity`: what tells these rows from others, as JSON. Raises WorkError with the row that cannot be transformed.
    """
    take = entry.take if entry.shuffle is False else None
    made_of = {
        "versions": {name: version(name) for name in ("ptcli", "datasets")},
        "rows": identity,
        "entry": entry.model_dump(include={*_SOURCE_KEYS, *ROW_KEYS}),
        "steps": [getattr(step, "__name__", type(step).__name__) for step in transform.steps] if transform else [],
        "code": [_code(use) for use in (entry.map, entry.filter) if use],
        "take": take,
    }
    name = cache.key_of(made_of)
    folder = cache.make("rows", name, lambda folder: _write(rows, transform, entry, take, key, folder))
    if not (folder / FILE).exists():
        raise WorkError(f"{key}: no row of {entry.path} comes through `filter`")
    return read_rows(folder, name)


def _write(
    rows: Iterable[Row], transform: RowTransform | None, entry: DataEntry, take: int | None, key: str, folder: Path
) -> None:
    changed = through(_with_all_names(rows, entry, key), transform, key) if transform else rows
    write_stream(itertools.islice(changed, take), folder)


def through(rows: Iterable[Row], transform: RowTransform, key: str) -> Iterator[Row]:
    """The rows that come through a transform. Raises WorkError with the number of the row for which it fails."""
    for number, row in enumerate(rows):
        try:
            changed = transform(row)
        except TransformError as error:
            at = f"{key}.{error.key}" if error.key else key
            raise WorkError(f"{at}: row {number}: {error.message}") from error
        if changed is not None:
            yield changed


def _with_all_names(rows: Iterable[Row], entry: DataEntry, key: str) -> Iterator[Row]:
    """The rows; at their end, WorkError when a column that is to be renamed was in none of them."""
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(row)
        yield row
    missing = [] if entry.from_ else [name for name in entry.rename if name not in found]
    if missing:
        raise WorkError(f"{key}.rename: there is no column `{missing[0]}`; found {', '.join(found)}")


def _code(use: str) -> dict[str, str]:
    """The source that a function may run: its file, and the Python files beside it, which it may import."""
    match = USE.fullmatch(use)
    module = match["module"] if match else use
    try:
        path = Path(module) if module.endswith(".py") else find_module(module)
    except NotFound:
        path = None
    files = sorted(path.parent.glob("*.py")) if path else []
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
