"""The files of a split in a folder, as `datasets` finds them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.recipe.data_files import data_format

_SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` writes: of one set, and of several splits."""
_NO_DATA = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", *_SAVED})
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words in names of files and folders that mean it."""
_SHARD = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_BETWEEN = r"[-._ 0-9]"

FIX = "data are JSON, Parquet, CSV or Arrow"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / name).exists() for name in _SAVED)


def files_of_splits(folder: Path, splits: Sequence[str], key: KeyPath) -> list[str]:
    """The data files of some splits, one after the other. Raises RequestError for a split that is not there."""
    find = _saved if is_saved(folder) else _found
    return [file for split in splits for file in find(folder, split, key)]


def _found(folder: Path, split: str, key: KeyPath) -> list[str]:
    names = _data_files(folder, key)
    if not names:
        raise RequestError(Problem(f"the folder {folder} has no data files", FIX, key))
    by_split = _sharded(names) or _by_words(names, of_folders=True) or _by_words(names, of_folders=False)
    by_split = by_split or {"train": names}
    chosen = [name for each in by_split.values() for name in each] if split == "all" else by_split.get(split, [])
    if not chosen:
        raise RequestError(_no_split(folder, split, by_split, key))
    return [str(folder / name) for name in chosen]


def _no_split(folder: Path, split: str, there: object, key: KeyPath) -> Problem:
    names = ", ".join(sorted(there))  # type: ignore[call-overload]
    return Problem(f"{folder} has no split `{split}`", f"it has {names}", (*key[:-1], "split"))


def _data_files(folder: Path, key: KeyPath) -> list[str]:
    """Names below the folder, sorted. Hidden ones, and what is in folders like `__pycache__`, are left out."""

    def fail(error: OSError) -> None:
        raise RequestError(Problem(f"{error.filename} cannot be read: {error.strerror}", "", key)) from error

    found = []
    for base, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in files:
            path = Path(base, name)
            if not name.startswith(".") and name not in _NO_DATA and data_format(path) and path.is_file():
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def _sharded(names: Sequence[str]) -> dict[str, list[str]]:
    """`data/SPLIT-00000-of-00001.parquet`, with any name of a split."""
    by_split: dict[str, list[str]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            by_split.setdefault(match["split"], []).append(name)
    return by_split


def _by_words(names: Sequence[str], *, of_folders: bool) -> dict[str, list[str]]:
    """By the words in the names of folders, or else of files; a name with two of them is in both splits."""
    found = {split: [name for name in names if _means(words, name, of_folders)] for split, words in _SPLITS.items()}
    return {split: files for split, files in found.items() if files}


def _means(words: Sequence[str], name: str, of_folders: bool) -> bool:
    path = PurePosixPath(name)
    if of_folders:
        pattern = re.compile(rf"(?:.*{_BETWEEN})?(?:{'|'.join(words)})(?:{_BETWEEN}.*)?")
        return any(pattern.fullmatch(part) for part in path.parent.parts)
    return re.fullmatch(rf"(?:.*{_BETWEEN})?(?:{'|'.join(words)}){_BETWEEN}.*", path.name) is not None


def _saved(folder: Path, split: str, key: KeyPath) -> list[str]:
    """Arrow files of a set that `save_to_disk` wrote."""
    if (folder / "dataset_dict.json").exists():
        there = [each.name for each in sorted(folder.iterdir()) if each.is_dir()]
        if split not in there:
            raise RequestError(_no_split(folder, split, there, key))
        folder = folder / split
    try:
        listed = json.loads((folder / "state.json").read_bytes())["_data_files"]
        return [str(folder / each["filename"]) for each in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return [str(path) for path in sorted(folder.glob("*.arrow"))]
