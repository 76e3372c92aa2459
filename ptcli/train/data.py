"""Load a recipe's rows as `datasets.Dataset`s.

Always from files, never `from_list`: the latter drops columns that the first row lacks.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    concatenate_datasets,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)

from ptcli.builtin import data_path
from ptcli.data.head import stream
from ptcli.data.mixture import compile_transforms
from ptcli.data.read.sources import Source, resolve
from ptcli.data.read.tables import plain
from ptcli.data.transforms import RowTransform
from ptcli.errors import RequestError, WorkError
from ptcli.methods import METHODS
from ptcli.recipe.data_files import data_format, data_suffix, held_out, local_files
from ptcli.recipe.model import DataEntry, Recipe
from ptcli.train.alignment import align
from ptcli.train.transformed import transformed

_GUESSED = frozenset({"CSV", "TSV"})
SAVED = frozenset({"state.json", "dataset_dict.json"})
"""What `save_to_disk` writes beside its rows, which then have types of their own."""
BUILDERS = {"JSON": "json", "Parquet": "parquet", "CSV": "csv", "TSV": "csv", "Arrow": "arrow"}
"""Format -> builder of `datasets`."""


def load_data(recipe: Recipe) -> tuple[Dataset, Dataset | dict[str, Dataset] | None]:
    """The training rows and the evaluation rows. Raises WorkError that names the entry at fault."""
    train = _load_entries(recipe, recipe.data.train, "data.train")
    evaluation = recipe.data.eval
    if isinstance(evaluation, float | int):
        return _hold_out(train, evaluation, recipe.seed)
    if isinstance(evaluation, dict):
        return train, {
            name: _load_entries(recipe, entries, f"data.eval.{name}") for name, entries in evaluation.items()
        }
    return train, _load_entries(recipe, evaluation, "data.eval") if evaluation else None


def _hold_out(rows: Dataset, share: float | int, seed: int) -> tuple[Dataset, Dataset]:
    count = held_out(share, len(rows))
    if not 0 < count < len(rows):
        raise WorkError(f"data.eval: {share:g} of {len(rows)} rows is {count}; both parts need at least one row")
    parts = rows.train_test_split(test_size=count, seed=seed)
    return parts["train"], parts["test"]


def _load_entries(recipe: Recipe, entries: Sequence[DataEntry], key: str) -> Dataset:
    method = METHODS[recipe.method]
    transforms = compile_transforms(entries, method, recipe.data.train)
    loaded = [
        _load_entry(entry, transform, f"{key}.{index}", recipe.seed)
        for index, (entry, transform) in enumerate(zip(entries, transforms, strict=True))
    ]
    parts = align(loaded, key, keep_all=bool(method.reward_arguments))
    weights = [entry.weight for entry in entries if entry.weight is not None]
    if len(parts) == 1 or len(weights) < len(parts):
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    shares = [weight / sum(weights) for weight in weights]
    # Until the last entry was read whole: with any other strategy some rows would never be trained on.
    return interleave_datasets(parts, probabilities=shares, seed=recipe.seed, stopping_strategy="all_exhausted")


def _load_entry(entry: DataEntry, transform: RowTransform | None, key: str, seed: int) -> Dataset:
    rows = _load_rows(entry, transform, key)
    if entry.shuffle is not False:
        rows = rows.shuffle(seed=seed if entry.shuffle is True else entry.shuffle)
    if entry.take is not None:
        rows = rows.take(min(entry.take, len(rows)))
    if not len(rows):
        kept = " that `filter` keeps" if entry.filter else ""
        raise WorkError(f"{key}: {entry.path} has no rows in split `{entry.split}`{kept}")
    return rows


def _load_rows(entry: DataEntry, transform: RowTransform | None, key: str) -> Dataset:
    """All rows of the entry, transformed.

    `datasets` reads what needs no transform, unless it takes texts for dates, or guesses types as in CSV: then the rows
    come from the reader of the data checks, which changes nothing.
    """
    files = local_files(entry.path)
    formats = {data_format(file) for file in files}
    if transform is None and not formats & _GUESSED:
        rows = _read(entry, key)
        if not ("JSON" in formats and "timestamp[" in str(rows.features.arrow_schema)):
            return rows
    if files and not any(file.name in SAVED for file in files):
        identity = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return transformed(entry, transform, stream(resolve_source(entry, key)), identity, key)
    rows = _read(entry, key)
    return transformed(entry, transform, map(plain, rows), rows._fingerprint, key)


def resolve_source(entry: DataEntry, key: str) -> Source:
    """The files of an entry on this machine. Raises WorkError."""
    try:
        return resolve(entry, (key, "path"))
    except RequestError as error:
        raise WorkError(f"{key}: {error.problems[0].message}") from error


def _read(entry: DataEntry, key: str) -> Dataset:
    """The entry's split, whatever its path is: `datasets` raises a dozen kinds of errors, told apart only by text."""
    reader, arguments = choose_reader(entry, key)
    try:
        rows = reader(**arguments)
    except Exception as error:
        raise WorkError(f"{key}: cannot read {entry.path}: {reason(error)}") from error
    if isinstance(rows, DatasetDict):
        rows = _pick_split(rows, entry, key)
    return rows


def choose_reader(entry: DataEntry, key: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What of `datasets` reads the entry, and its arguments. Raises WorkError for a path that is not there."""
    path = str(data_path(entry.path.removeprefix("builtin:"))) if entry.path.startswith("builtin:") else entry.path
    if Path(path).is_dir():
        if (Path(path) / "state.json").exists() or (Path(path) / "dataset_dict.json").exists():
            return load_from_disk, {"dataset_path": path}
        return load_dataset, {"path": path, "name": entry.name, "split": entry.split}
    files = _match_files(path)
    if files:
        return load_dataset, _builder(files, key) | {"data_files": files, "split": entry.split}
    if Path(path).is_absolute() or glob.has_magic(path):
        raise WorkError(f"{key}: there is no file or folder {path}")
    arguments = {"path": path, "name": entry.name, "revision": entry.revision, "split": entry.split}
    return load_dataset, arguments


def _match_files(path: str) -> list[str]:
    """The file itself, or what the glob matches, sorted so that every machine sees one order."""
    if Path(path).is_file():
        return [path]
    return sorted(match for match in glob.glob(path, recursive=True) if Path(match).is_file())


def _builder(files: Sequence[str], key: str) -> dict[str, Any]:
    formats = {data_format(Path(file)) for file in files}
    if len(formats) > 1 or "" in formats:
        found = ", ".join(f"`{suffix}`" for suffix in sorted({data_suffix(Path(file)) for file in files}))
        raise WorkError(f"{key}: files of one entry must all be JSON, JSONL, Parquet, CSV or Arrow; found {found}")
    separator = {"sep": "\t"} if formats == {"TSV"} else {}
    return {"path": BUILDERS[formats.pop()], **separator}


def _pick_split(rows: DatasetDict, entry: DataEntry, key: str) -> Dataset:
    if entry.split not in rows:
        raise WorkError(f"{key}: {entry.path} has no split `{entry.split}`; it has {', '.join(sorted(rows))}")
    return rows[entry.split]


def reason(error: BaseException) -> str:
    """The innermost cause: `datasets` wraps the useful message in "An error occurred while generating the dataset"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
