"""From a recipe's data entry to the files that hold its rows."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptcli.builtin import DATASETS, PREFIX, data_path
from ptcli.data.read.compressed import BROKEN, chunks
from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.recipe.data_files import data_format
from ptcli.recipe.model import DataEntry

Format = Literal["lines", "array", "Parquet", "CSV", "TSV", "Arrow"]
"""`lines`: a JSON value a line; `array`: one JSON array of them."""

_COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_SPACE = b" \t\r\n\xef\xbb\xbf"
_SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` writes: of one set, and of several splits."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words in names of files and folders that mean it, as `datasets` has them."""
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
        RequestError: for what is not there, and for a folder whose files are of several formats.
    """
    path = str(data_path(entry.path)) if _is_shipped(entry.path) else os.path.expanduser(entry.path)
    names, slices = _split(entry.split, key)
    if os.path.isdir(path):
        files = _in_folder(Path(path), names, entry, key)
    else:
        files = [found for found in sorted(glob.glob(path, recursive=True)) if os.path.isfile(found)]
        files = [path] if os.path.isfile(path) else files
        if not files and (os.path.isabs(path) or glob.has_magic(path)):
            raise RequestError(Problem(f"there is no file or folder {path}", "", key))
        if not files:
            return Source(entry.path, tuple(_from_hub(entry, names, key)), slices)
    return Source(entry.path, tuple(_described(files, entry.path, key)), slices)


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
    form: Any = data_format(Path(path))
    if form == "JSON":
        form = "array" if _begins_with_bracket(path, compression) else "lines"
    return DataFile(path, form, compression, os.stat(path).st_size)


def _begins_with_bracket(path: str, compression: str) -> bool:
    try:
        return next(chunks(path, compression), b"").lstrip(_SPACE).startswith(b"[")
    except BROKEN:
        return False


def _in_folder(folder: Path, names: Sequence[str], entry: DataEntry, key: KeyPath) -> list[str]:
    if any((folder / name).exists() for name in _SAVED):
        return [file for name in names for file in _saved(folder, name, key)]
    found = sorted(
        os.path.join(base, name)
        for base, folders, files in os.walk(folder)
        if not any(part.startswith((".", "__")) for part in Path(base).relative_to(folder).parts)
        for name in files
        if not name.startswith(".") and data_format(Path(name))
    )
    if not found:
        raise RequestError(
            Problem(f"the folder {folder} has no data files", "data are JSON, Parquet, CSV or Arrow", key)
        )
    by_split = {file: _split_of(Path(file).relative_to(folder)) for file in found}
    if not any(by_split.values()):
        by_split = dict.fromkeys(found, "train")
    chosen = [file for name in names for file in found if name in ("all", by_split[file])]
    if chosen:
        return chosen
    there = ", ".join(sorted({split for split in by_split.values() if split}))
    message = f"{entry.path} has no split `{'+'.join(names)}`"
    raise RequestError(Problem(message, f"it has {there}", (*key[:-1], "split")))


def _split_of(path: Path) -> str:
    words = re.split(r"[^A-Za-z]+", path.as_posix().lower())
    return next((split for split, meant in _SPLITS.items() if any(word in meant for word in words)), "")


def _saved(folder: Path, split: str, key: KeyPath) -> list[str]:
    """Arrow files of a set that `save_to_disk` wrote."""
    if (folder / "dataset_dict.json").exists():
        folder = folder / split
        if not folder.is_dir():
            there = ", ".join(sorted(each.name for each in folder.parent.iterdir() if each.is_dir()))
            message = f"{folder.parent} has no split `{split}`"
            raise RequestError(Problem(message, f"it has {there}", (*key[:-1], "split")))
    try:
        listed = json.loads((folder / "state.json").read_bytes())["_data_files"]
        return [str(folder / each["filename"]) for each in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return [str(path) for path in sorted(folder.glob("*.arrow"))]


# --- the hub ---------------------------------------------------------------------------------------------------------


def _from_hub(entry: DataEntry, names: Sequence[str], key: KeyPath) -> Iterator[DataFile]:
    """The Arrow files that `datasets` makes of the splits of a hub data set, in its cache."""
    import datasets

    for name in dict.fromkeys(names):
        try:
            rows = datasets.load_dataset(entry.path, name=entry.name, revision=entry.revision, split=name)
        except Exception as error:  # `datasets` raises a dozen kinds
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            fix = "download it on a machine that reaches the hub, or name a file"
            raise RequestError(Problem(f"the data set {entry.path} cannot be had: {why}", fix, key)) from error
        for file in rows.cache_files:
            yield DataFile(file["filename"], "Arrow", "", os.stat(file["filename"]).st_size)
