"""What format a data file is in, by its name, and how many rows are held out: for the checks before a run, and for
the worker that reads the file."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ptcli.builtin import DATASETS, PREFIX, data_path

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        ".json": "JSON",
        ".jsonl": "JSON",
        ".ndjson": "JSON",
        ".parquet": "Parquet",
        ".csv": "CSV",
        ".tsv": "TSV",
        ".arrow": "Arrow",
    }
)
"""File suffix -> format."""

_COMPRESSIONS = frozenset({".gz", ".zst", ".bz2", ".xz"})


def data_suffix(path: Path) -> str:
    """The suffix that says the format, lower case, those of compressions left out; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def data_format(path: Path) -> str:
    """The format that a file's name says; "" for none that can be read."""
    return FORMATS.get(data_suffix(path), "")


def held_out(share: float | int, rows: int) -> int:
    """How many of `rows` `data.eval` holds out: a fraction of them, or a number."""
    return share if isinstance(share, int) else round(rows * share)


def local_files(path: str) -> list[Path]:
    """The files behind the path of a data entry, sorted; none for a hub dataset, and for what is not there."""
    if path.startswith(PREFIX):
        return [data_path(path)] if path.removeprefix(PREFIX) in DATASETS else []
    place = Path(path)
    if place.is_dir():
        return sorted(each for each in place.rglob("*") if each.is_file())
    if place.is_file():
        return [place]
    found = glob.glob(path, recursive=True) if os.path.isabs(path) else []
    return sorted(each for each in map(Path, found) if each.is_file())
