"""From a recipe's data entry to the files that hold its rows."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptcli.builtin import DATASETS, PREFIX, data_path
from ptcli.data.read.compressed import BROKEN, Chunks
from ptcli.data.read.folders import files_of_splits
from ptcli.data.read.text import Bad, decode_line, texts_of_values
from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.recipe.data_files import data_format
from ptcli.recipe.hub import why_unreachable
from ptcli.recipe.model import DataEntry

Format = Literal["lines", "array", "values", "Parquet", "CSV", "TSV", "Arrow"]
"""`lines`: a JSON value a line; `array`: one JSON array of them; `values`: JSON values that go over several lines."""

_COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_SPACE = b" \t\r\n\xef\xbb\xbf"
_SMALL = 256 << 10
"""Bytes of a file whose values may go over several lines: `datasets` reads larger ones in pieces, line by line."""
_PART = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class DataFile:
    """One file."""

    path: str
    format: Format
    compression: str = ""
    """Its suffix, as `.gz`; empty for a plain file."""
    size: int = 0
    """Bytes on the disk."""
    changed: int = 0
    """When it was last changed, in nanoseconds."""

    def has_changed(self) -> bool:
        """Whether it is no more what it was when it was found."""
        try:
            now = os.stat(self.path)
        except OSError:
            return True
        return (now.st_size, now.st_mtime_ns) != (self.size, self.changed)


@dataclass(frozen=True)
class Slice:
    """`[start:stop]` of the rows, each a number of rows, from the end where it is negative, or a share of them."""

    start: str | None = None
    stop: str | None = None

    def of(self, rows: int) -> range:
        """The rows it means, of so many."""
        return range(rows)[slice(_bound(self.start, rows), _bound(self.stop, rows))]


def _bound(text: str | None, rows: int) -> int | None:
    if text is None:
        return None
    return round(rows * int(text[:-1]) / 100) if text.endswith("%") else int(text)


@dataclass(frozen=True)
class Source:
    """What an entry reads."""

    name: str
    """The entry's path, as the recipe has it."""
    files: tuple[DataFile, ...] = ()
    slices: tuple[Slice, ...] = (Slice(),)
    """Which rows of them, one part after the other."""

    @property
    def whole(self) -> bool:
        """True when all rows are meant, once."""
        return self.slices == (Slice(),)

    @property
    def size(self) -> int:
        """Bytes of the files on the disk."""
        return sum(file.size for file in self.files)


def resolve(entry: DataEntry, key: KeyPath) -> Source:
    """The files of an entry, in the order in which every machine reads them.

    Raises:
        RequestError: for what is not there or cannot be opened, and for a folder whose files are of several formats.
    """
    path = str(data_path(entry.path)) if _is_shipped(entry.path) else os.path.expanduser(entry.path)
    names, slices = _split(entry.split, key)
    if os.path.isdir(path):
        return Source(entry.path, tuple(_described(files_of_splits(Path(path), names, key), entry.path, key)), slices)
    files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if files:
        _check_names(entry, names, key)
        return Source(entry.path, tuple(_described(files, entry.path, key)), slices)
    if os.path.exists(path):
        raise RequestError(Problem(f"{path} is neither a file nor a folder", "write its rows to a file", key))
    if os.path.isabs(path) or glob.has_magic(path):
        raise RequestError(Problem(f"there is no file or folder {path}", "", key))
    return Source(entry.path, tuple(_from_hub(entry, names, key)), slices)


def _check_names(entry: DataEntry, names: Sequence[str], key: KeyPath) -> None:
    wrong = [name for name in names if name not in ("train", "all")]
    if wrong:
        message = f"{entry.path} is read as the one split `train`; there is no `{wrong[0]}`"
        raise RequestError(Problem(message, "slice it: `train[:1000]`", (*key[:-1], "split")))


def _is_shipped(path: str) -> bool:
    return path.startswith(PREFIX) and path.removeprefix(PREFIX) in DATASETS


def _split(text: str, key: KeyPath) -> tuple[list[str], tuple[Slice, ...]]:
    """`train[:10]+train[20:]` as names and slices."""
    parts = [_PART.fullmatch(part.strip()) for part in text.split("+")]
    if not all(parts):
        message = f"`split: {text}` is not a split, with or without a slice"
        raise RequestError(Problem(message, "as `train`, `train[:1000]` or `train[10%:]`", (*key[:-1], "split")))
    matches = [part for part in parts if part]
    return [match["name"] for match in matches], tuple(Slice(match["start"], match["stop"]) for match in matches)


# --- files -----------------------------------------------------------------------------------------------------------


def _described(paths: Iterable[str], name: str, key: KeyPath) -> Iterator[DataFile]:
    paths = list(paths)
    formats = {data_format(Path(path)) for path in paths}
    if len(formats) > 1 or "" in formats:
        found = " and ".join(sorted(form or "unknown files" for form in formats))
        raise RequestError(Problem(f"the files of {name} are {found}", "give each format its own entry", key))
    for path in paths:
        try:
            yield _describe(path)
        except OSError as error:
            raise RequestError(Problem(f"{path} cannot be read: {error.strerror}", "", key)) from error


def _describe(path: str) -> DataFile:
    compression = next((suffix for suffix in _COMPRESSIONS if path.lower().endswith(suffix)), "")
    stat = os.stat(path)
    with open(path, "rb"):
        pass  # what may not be read is said here
    form: Any = data_format(Path(path))
    if form == "JSON":
        form = _kind_of_json(path, compression, stat.st_size)
    return DataFile(path, form, compression, stat.st_size, stat.st_mtime_ns)


def _kind_of_json(path: str, compression: str, size: int) -> Format:
    try:
        beginning = next(iter(Chunks(path, compression)), b"").lstrip(_SPACE)
    except BROKEN:
        return "lines"
    if beginning.startswith(b"["):
        return "array"
    return "values" if size <= _SMALL and _goes_over_lines(beginning) else "lines"


def _goes_over_lines(beginning: bytes) -> bool:
    """Whether the first line is no value, and the whole is values one after the other."""
    if not beginning.startswith(b"{") or isinstance(decode_line(beginning.partition(b"\n")[0]), dict):
        return False
    return not any(isinstance(text, Bad) for text in texts_of_values([beginning]))


# --- the hub ---------------------------------------------------------------------------------------------------------


def _from_hub(entry: DataEntry, names: Sequence[str], key: KeyPath) -> Iterator[DataFile]:
    """The Arrow files that `datasets` makes of the splits of a hub data set, in its cache."""
    unreachable = why_unreachable()
    if unreachable:
        os.environ["HF_HUB_OFFLINE"] = "1"  # what is in the cache is found without half a minute of retries
    import datasets

    for name in dict.fromkeys(names):
        try:
            rows = datasets.load_dataset(entry.path, name=entry.name, revision=entry.revision, split=name)
        except Exception as error:  # `datasets` raises a dozen kinds
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            why = f"it is not in the cache, and {unreachable}" if unreachable else why
            fix = "download it on a machine that reaches the hub, or name a file"
            raise RequestError(Problem(f"the data set {entry.path} cannot be had: {why}", fix, key)) from error
        for file in rows.cache_files:
            yield _describe(file["filename"])
