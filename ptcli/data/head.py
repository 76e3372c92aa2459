"""Rows of an entry one after the other: all of them, for training, and the first few, for planning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ptcli.data.model import Row
from ptcli.errors import RequestError, WorkError
from ptcli.recipe.data_files import data_format, local_files

if TYPE_CHECKING:
    from ptcli.data.read.sources import Source
    from ptcli.recipe.model import DataEntry

HEAD = 1000
"""Rows that stand for all the others when a recipe's columns are looked up."""
_MOST_BYTES = 64 * 2**20
"""A larger file that is compressed, or one value, takes longer to open than planning should."""


def stream(source: Source) -> Iterator[Row]:
    """The rows that an entry's `split` means, as they lie in its files.

    Raises WorkError at what is no row.
    """
    for part in source.slices:
        if any(
            bound is not None and (bound.endswith("%") or bound.startswith("-")) for bound in (part.start, part.stop)
        ):
            chosen = part.of(sum(1 for _ in _all(source)))
            yield from islice(_all(source), chosen.start, chosen.stop)
        else:
            yield from islice(_all(source), int(part.start or 0), None if part.stop is None else int(part.stop))


def _all(source: Source) -> Iterator[Row]:
    from ptcli.data.read.blocks import cut, read_rows
    from ptcli.data.read.text import Bad

    for file in source.files:
        for block in cut(file):
            for row in read_rows(block):
                if isinstance(row, Bad):
                    raise WorkError(f"{file.path}: a row {row.why}")
                yield row


def read_head(entry: DataEntry, rows: int = HEAD) -> list[Row] | None:
    """The first rows of local data, before the entry's transforms; None where that would take a download or a long
    read, and where there is nothing to read.
    """
    known = [file for file in local_files(entry.path) if data_format(file)]
    if not known or not _is_quick(known[0]):
        return None
    from ptcli.data.read.sources import resolve  # only now: planning on hub data needs no reader

    found: list[Row] = []
    with suppress(RequestError, WorkError, OSError):  # the check of the data says what is wrong with them
        found.extend(islice(_all(resolve(entry, ("path",))), rows))
    return found or None


def _is_quick(file: Path) -> bool:
    """Whether the beginning of a file can be read without the rest."""
    return file.suffix.lower() in (".jsonl", ".ndjson", ".parquet") or file.stat().st_size <= _MOST_BYTES
