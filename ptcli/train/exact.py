"""Rows from Python to Arrow without a change: what is written is what comes back.

Readers that infer types turn texts that look like dates into dates, and fill keys that a message lacks with null. Here
the types of all rows are gathered first; a place whose values have no common type, or whose objects have not all the
same keys, is stored as JSON (`datasets.Json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, Json, List, Value
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable

from ptcli.errors import WorkError

FILE = "rows.arrow"
_LEAVES: Mapping[type, str] = {str: "string", bool: "bool", int: "int64", float: "float64"}
_WHOLE = range(-(2**63), 2**63)


class ListOf(NamedTuple):
    """Lists, and what is in them; None while all of them are empty."""

    inner: Kind


class DictOf(NamedTuple):
    """Objects with exactly these keys."""

    inner: dict[str, Kind]


Kind = None | str | ListOf | DictOf
"""The type of a place in all rows so far: None for nothing but null, a leaf's name in Arrow, or `json`."""

JSON = "json"


def grow(kind: Kind, value: Any) -> Kind:
    """The type of a place that also holds `value`."""
    if value is None or kind == JSON:
        return kind
    if isinstance(value, list):
        if not isinstance(kind, ListOf | None):
            return JSON
        inner = kind.inner if kind else None
        for each in value:
            inner = grow(inner, each)
        return ListOf(inner)
    if isinstance(value, dict):
        return _grow_dict(kind, value)
    leaf = _LEAVES.get(type(value), JSON)
    if leaf == "int64" and value not in _WHOLE:
        return JSON
    if kind is None or kind == leaf:
        return leaf
    return "float64" if {kind, leaf} == {"int64", "float64"} else JSON


def _grow_dict(kind: Kind, value: Mapping[str, Any]) -> Kind:
    if not value or not isinstance(kind, DictOf | None):
        return JSON
    inner = kind.inner if kind else dict.fromkeys(value)
    if inner.keys() != value.keys():
        return JSON
    return DictOf({name: grow(inner[name], each) for name, each in value.items()})


class Columns:
    """The types of a set's columns, which not all rows need have."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            self.kinds[name] = grow(self.kinds.get(name), value)

    @property
    def features(self) -> Features:
        return Features({name: _feature(kind) for name, kind in self.kinds.items()})


def _feature(kind: Kind) -> Any:
    if isinstance(kind, ListOf):
        return List(_feature(kind.inner))
    if isinstance(kind, DictOf):
        return {name: _feature(inner) for name, inner in kind.inner.items()}
    return Json() if kind == JSON else Value(kind or "null")


def encode(feature: Any, value: Any) -> Any:
    """A value as `datasets` writes it unchanged: what is stored as JSON is written out here, texts included, since it
    takes a text for JSON where it can be read so."""
    if value is None:
        return None
    if isinstance(feature, Json):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(feature, List):
        return [encode(feature.feature, each) for each in value]
    if isinstance(feature, Mapping):
        return {name: encode(inner, value.get(name)) for name, inner in feature.items()}
    return float(value) if getattr(feature, "dtype", "") == "float64" else value


def write_rows(rows: Iterable[Mapping[str, Any]], features: Features, folder: Path) -> None:
    """Write the rows, columns that one lacks as null, to a file in `folder`."""
    with ArrowWriter(features=features, path=str(folder / FILE)) as writer:
        for row in rows:
            writer.write({name: encode(feature, row.get(name)) for name, feature in features.items()})
        writer.finalize()


def write_stream(rows: Iterable[Mapping[str, Any]], folder: Path) -> int:
    """The same for rows that come once, of types not yet known: they wait in a file beside. The number of rows."""
    columns, waiting, count = Columns(), folder / "rows.jsonl", 0
    with waiting.open("w", encoding="utf-8") as file:
        for row in rows:
            columns.add(row)
            file.write(json.dumps(row, default=_plain) + "\n")
            count += 1
    if count:
        write_rows(_read_lines(waiting), columns.features, folder)
    waiting.unlink()
    return count


def _plain(value: Any) -> Any:
    """What a Parquet file holds and JSON does not: times as text, exact numbers as they are written."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    kind = "bytes, as of an image" if isinstance(value, bytes) else f"a {type(value).__name__}"
    raise WorkError(f"a row holds {kind}, which transforms cannot pass on; leave its column out with `columns`")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_rows(folder: Path, fingerprint: str) -> Dataset:
    """What was written to `folder`, from disk as it is used. `fingerprint`: a name for exactly these rows."""
    return Dataset(MemoryMappedTable.from_file(str(folder / FILE)), fingerprint=fingerprint)


def merge_features(first: Any, second: Any) -> Any:
    """The type that holds the values of both without a change. Raises TypeError where there is none."""
    if first == second or _is_null(second):
        return first
    if _is_null(first):
        return second
    if isinstance(first, List) and isinstance(second, List):
        return List(merge_features(first.feature, second.feature))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() == second.keys():
            return {name: merge_features(first[name], second[name]) for name in first}
        return Json()
    if isinstance(first, Json) or isinstance(second, Json):
        return Json()
    if {getattr(each, "dtype", "") for each in (first, second)} == {"int64", "float64"}:
        return Value("float64")
    if {getattr(each, "dtype", "") for each in (first, second)} == {"string", "large_string"}:
        return Value("large_string")
    raise TypeError


def _is_null(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype == "null"
