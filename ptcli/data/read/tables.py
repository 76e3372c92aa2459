"""Rows of Parquet, Arrow and CSV files, by way of pyarrow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ptcli.data.model import Row
from ptcli.data.read.compressed import BROKEN
from ptcli.data.read.sources import DataFile
from ptcli.data.read.text import Bad, why

_BATCH = 1000
"""Rows that are turned into Python at once, at most."""
_BATCH_BYTES = 4 << 20
_CSV_BLOCKS = (4 << 20, 64 << 20, 1 << 30)
"""Bytes of a block of CSV: the second and third for a file with a longer row."""
_CONVERSION = re.compile(r"In CSV column #(\d+): .*conversion error")
_NULLS = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""What pandas, with which `datasets` reads CSV, takes for no value."""

_PIECES = 256
"""Pieces of an Arrow file at most: to find one, all batches before it are passed over."""
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Piece:
    """Row groups or batches `start` to `stop` of a file."""

    start: int
    stop: int
    size: int
    """Bytes on the disk."""
    rows: int | None = None
    """How many there are in it, where that is known."""
    fault: str = ""


def cut_table(file: DataFile) -> Iterator[Piece]:
    """The pieces of a file that can be read apart from each other: row groups of Parquet, batches of Arrow, all of
    a CSV file. Nothing of an empty CSV file."""
    import pyarrow

    try:
        if file.compression or file.format in ("CSV", "TSV"):
            pieces = [Piece(0, 1, file.size)] if file.size else []
        else:
            pieces = list(_row_groups(file) if file.format == "Parquet" else _batch_ranges(file))
    except (OSError, pyarrow.ArrowException) as error:
        pieces = [Piece(0, 0, file.size, fault=f"is no whole {file.format} file: {why(error)}")]
    yield from pieces


def _row_groups(file: DataFile) -> Iterator[Piece]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as parquet:
        groups = parquet.num_row_groups
        for group in range(groups):
            yield Piece(group, group + 1, file.size // groups, parquet.metadata.row_group(group).num_rows)


def _batch_ranges(file: DataFile) -> Iterator[Piece]:
    """Batches that follow each other, so many that they come to a few megabytes."""
    begin, size, rows = 0, 0, 0
    number = -1
    least = max(_PIECE_BYTES, file.size // _PIECES)
    for number, batch in enumerate(_arrow(file)):
        rows += batch.num_rows
        size += batch.nbytes
        if size >= least:
            yield Piece(begin, number + 1, size, rows)
            begin, size, rows = number + 1, 0, 0
    if number >= begin:
        yield Piece(begin, number + 1, size, rows)


def count_rows(file: DataFile, start: int, stop: int) -> int:
    """How many rows a piece has; one for what cannot be read."""
    import pyarrow

    try:
        return sum(batch.num_rows for batch in _batches(file, start, stop))
    except (*BROKEN, ValueError, pyarrow.ArrowException):
        return 1


def rows_of_table(file: DataFile, start: int, stop: int) -> Iterator[Row | Bad]:
    """The rows of a piece; last a Bad one where it cannot be read to its end."""
    import pyarrow

    try:
        for batch in _batches(file, start, stop):
            yield from _rows(batch)
    except (*BROKEN, ValueError, OverflowError, pyarrow.ArrowException) as error:
        yield Bad(f"cannot be read to its end: {why(error)}")


def _rows(batch: Any) -> Iterator[Row]:
    step = max(1, min(_BATCH, _BATCH_BYTES * batch.num_rows // max(batch.nbytes, 1)))
    stored = {field.name: field.type for field in batch.schema if "arrow.json" in str(field.type)}
    for start in range(0, batch.num_rows, step):
        for row in batch.slice(start, step).to_pylist():
            yield plain(row | {name: _from_json(row[name], kind) for name, kind in stored.items()})


def _from_json(value: Any, kind: Any) -> Any:
    """A value whose type has a place that is stored as JSON text, as `datasets` stores what has no common type."""
    import pyarrow

    if value is None:
        return None
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if isinstance(value, list):
        return [_from_json(each, kind.value_type) for each in value]
    if isinstance(value, dict):
        return {name: _from_json(each, kind.field(name).type) for name, each in value.items()}
    return value


def _batches(file: DataFile, start: int, stop: int) -> Iterator[Any]:
    if file.format in ("CSV", "TSV"):
        return _of_csv(file)
    if file.compression:
        raise ValueError(f"a compressed {file.format} file is not read; decompress it, it is compressed inside")
    return _of_parquet(file, start, stop) if file.format == "Parquet" else islice(_arrow(file), start, stop)


def _of_parquet(file: DataFile, start: int, stop: int) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path, buffer_size=1 << 20) as parquet:
        group = parquet.metadata.row_group(start)
        rows = max(1, min(_BATCH, _BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)))
        yield from parquet.iter_batches(rows, row_groups=range(start, stop), use_threads=False)


def _arrow(file: DataFile) -> Iterator[Any]:
    """The record batches of a file, which is mapped into memory: what is not looked at is not read."""
    import pyarrow
    import pyarrow.ipc

    with pyarrow.memory_map(file.path) as mapped:
        try:
            reader = pyarrow.ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            whole = pyarrow.ipc.open_file(mapped)
            yield from (whole.get_batch(number) for number in range(whole.num_record_batches))
            return
        yield from reader


# --- CSV -------------------------------------------------------------------------------------------------------------


def _of_csv(file: DataFile) -> Iterator[Any]:
    """Rows of a CSV file with types as its columns have them; as text where they change on the way."""
    import pyarrow

    for size in _CSV_BLOCKS:
        try:
            types = _types_of_csv(file, size)
            break
        except pyarrow.ArrowInvalid as error:
            if "straddling" not in str(error) or size == _CSV_BLOCKS[-1]:
                raise
    with _csv_input(file) as stream:
        yield from _open_csv(file, stream, size, types)


def _types_of_csv(file: DataFile, size: int) -> dict[str, Any]:
    """The type that all values of a column have: text where they change on the way, or a number with a fraction."""
    import pyarrow

    types: dict[str, Any] = {}
    while True:
        with _csv_input(file) as stream:
            reader = _open_csv(file, stream, size, types)
            types = {field.name: field.type for field in reader.schema}
            try:
                for _ in reader:
                    pass
                break
            except pyarrow.ArrowInvalid as error:
                column = _CONVERSION.match(str(error))
                if column is None:
                    raise
                name = reader.schema.names[int(column[1])]
                is_whole = pyarrow.types.is_integer(types[name])
                types[name] = pyarrow.float64() if is_whole else pyarrow.string()
    broken = [name for name, kind in types.items() if pyarrow.types.is_binary(kind)]
    if broken:
        raise ValueError(f"column `{broken[0]}` is not UTF-8")
    return types


def _open_csv(file: DataFile, stream: Any, size: int, types: dict[str, Any]) -> Any:
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter="\t" if file.format == "TSV" else ",", newlines_in_values=True)
    read = csv.ReadOptions(block_size=size, use_threads=False)
    convert = csv.ConvertOptions(strings_can_be_null=True, null_values=_NULLS, column_types=types)
    return csv.open_csv(stream, read, parse, convert)


def _csv_input(file: DataFile) -> Any:
    import bz2
    import gzip
    import lzma

    import pyarrow

    if file.compression == ".zst":
        return pyarrow.input_stream(file.path, compression="zstd")
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(file.compression, open)(file.path, "rb")


# --- values ----------------------------------------------------------------------------------------------------------


def plain(row: Row) -> Row:
    """A row of a table as JSON would have it: nulls that Arrow filled in where other rows have a key are left out of
    nested objects, and what JSON has no type for becomes text."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return {"bytes": len(value)} if isinstance(value, bytes) else str(value)
