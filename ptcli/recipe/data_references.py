"""The files, folders and shipped sets that `data` names."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.data_files import data_format
from ptcli.recipe.files import EMPTY, near_builtin, near_sibling, unreadable
from ptcli.recipe.model import DataEntry

_FORMATS_FIX = "data are JSON, JSONL, Parquet, CSV or Arrow files"
_MAX_LISTED = 10_000
"""Entries of a folder that are looked at before it is taken to hold data."""


def check_data(entry: DataEntry, key: KeyPath) -> list[Problem]:
    path = entry.path
    if path.startswith("builtin:"):
        from ptcli.builtin import DATASETS

        if path.removeprefix("builtin:") not in DATASETS:
            return [Problem(f"there is no data set {path}", near_builtin(path, DATASETS), key)]
        return _check_split(entry, key)
    if os.path.isdir(path):
        return _check_data_folder(Path(path), key)
    if os.path.isfile(path):
        return _check_files([Path(path)], key) or _check_split(entry, key)
    if glob.has_magic(path):
        files = [Path(each) for each in sorted(glob.glob(path, recursive=True)) if os.path.isfile(each)]
        if not files:
            return [Problem(f"no file matches {path}", "", key)]
        return _check_files(files, key) or _check_split(entry, key)
    if os.path.lexists(path):
        what = "is a link to what is not there" if os.path.islink(path) else "is neither a file nor a folder"
        return [Problem(f"{path} {what}", "give a file or a folder of data", key)]
    if os.path.isabs(path):
        return [Problem(f"there is no file or folder {path}", near_sibling(Path(path)), key)]
    return [] if path.strip() else [Problem("the path of the data is empty", "name a file, a folder or a hub id", key)]


def _check_files(files: list[Path], key: KeyPath) -> list[Problem]:
    unknown = [path for path in files if not data_format(path)]
    if unknown:
        return [Problem(f"{unknown[0]} has no suffix of a data file", _FORMATS_FIX, key)]
    formats = sorted({data_format(path) for path in files})
    if len(formats) > 1:
        return [Problem(f"the files of one entry are {' and '.join(formats)}", "give each format its own entry", key)]
    # That a file has no rows is for the check of the data to say.
    found = ((path, unreadable(path)) for path in files)
    return [Problem(f"{path} {why}", "", key) for path, why in found if why not in ("", EMPTY)]


def _check_data_folder(folder: Path, key: KeyPath) -> list[Problem]:
    saved = ("state.json", "dataset_dict.json")  # what `save_to_disk` writes
    names = [Path(base, name) for base, _, files in os.walk(folder) for name in files[:_MAX_LISTED]]
    if any(path.name in saved or data_format(path) for path in names[:_MAX_LISTED]):
        return []
    what = "has no data files" if names else "is empty"
    return [Problem(f"the folder {folder} {what}", _FORMATS_FIX, key)]


def _check_split(entry: DataEntry, key: KeyPath) -> list[Problem]:
    """Files have one split, whose name `datasets` always makes "train"."""
    names = [part.partition("[")[0] for part in entry.split.split("+")]
    if all(name in ("train", "all") for name in names):
        return []
    message = f"{entry.path} is read as the one split `train`; there is no `{entry.split}`"
    return [Problem(message, "leave `split` out, or slice it: `train[:1000]`", (*key[:-1], "split"))]
