"""What format a data file is in, by its name, and how many rows are held out: for the checks before a run, and for
the worker that reads the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

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
