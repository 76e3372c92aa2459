"""Files cut into blocks, which are read apart from each other, and the lines or rows of a block."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ptcli.data.model import Row
from ptcli.data.read.compressed import BROKEN, chunks
from ptcli.data.read.sources import DataFile
from ptcli.data.read.text import Bad, decode_line, texts_of_array

SIZE = 4 << 20
"""Bytes of a block of lines."""
_BATCH = 1000
"""Rows of a table that are turned into Python at once."""


@dataclass(frozen=True)
class Block:
    """A piece of a file; small to send, except where its lines had to be decompressed."""

    file: DataFile
    start: int = 0
    """First byte; of a Parquet file, the row group."""
    stop: int = 0
    lines: bytes | None = None
    """Whole lines, where they are not simply bytes `start` to `stop` of the file."""
    size: int = 0
    """Bytes on the disk that it stands for, for progress."""
    fault: str = ""
    """Why nothing more can be read of the file."""


def cut(file: DataFile) -> Iterator[Block]:
    """The blocks of a file, in order."""
    if file.format == "lines":
        yield from _ranges(file) if not file.compression else _decompressed(file)
    elif file.format == "array":
        yield from _of_array(file)
    elif file.format == "Parquet":
        yield from _row_groups(file)
    else:
        yield Block(file, size=file.size)


def read_rows(block: Block) -> Iterator[Row | Bad]:
    """The rows of a block, and what is none."""
    if block.fault:
        yield Bad(block.fault)
    elif block.file.format in ("lines", "array"):
        for line in read_lines(block).split(b"\n"):
            if line and not line.isspace():
                yield decode_line(line)
    else:
        yield from _of_table(block)


def read_lines(block: Block) -> bytes:
    """The lines that begin in a block, the last one whole. Raises OSError."""
    if block.lines is not None:
        return block.lines
    with open(block.file.path, "rb") as file:
        if block.start:
            file.seek(block.start - 1)
            if file.read(1) != b"\n" and not _skip_line(file, block.stop):
                return b""
        at = file.tell()
        data = file.read(max(block.stop - at, 0))
        if data and not data.endswith(b"\n"):
            data += file.readline()
    return data.removeprefix(b"\xef\xbb\xbf") if block.start == 0 else data


def _skip_line(file: Any, stop: int) -> bool:
    """Go to the next line; False when none begins before `stop`."""
    while file.tell() < stop:
        if file.readline(1 << 20).endswith(b"\n"):
            return file.tell() < stop
    return False


# --- lines -----------------------------------------------------------------------------------------------------------


def _ranges(file: DataFile) -> Iterator[Block]:
    size = os.stat(file.path).st_size
    for start in range(0, size, SIZE):
        stop = min(start + SIZE, size)
        yield Block(file, start, stop, size=stop - start)


def _decompressed(file: DataFile) -> Iterator[Block]:
    """Lines as they come out of a compressed file. What follows a fault is lost, what came before it is not."""
    kept: list[bytes] = []
    held, told = 0, 0
    try:
        for piece in chunks(file.path, file.compression):
            kept.append(piece)
            held += len(piece)
            if held >= SIZE and b"\n" in piece:
                whole, _, rest = b"".join(kept).rpartition(b"\n")
                yield Block(file, lines=whole, size=0)
                kept, held = [rest], len(rest)
    except BROKEN as error:
        yield Block(file, lines=b"".join(kept))
        yield Block(file, fault=f"cannot be read to its end: {_why(error)}", size=file.size - told)
        return
    yield Block(file, lines=b"".join(kept).removeprefix(b"\xef\xbb\xbf"), size=file.size - told)


def _of_array(file: DataFile) -> Iterator[Block]:
    kept: list[bytes] = []
    held = 0
    for text in texts_of_array(chunks(file.path, file.compression)):
        if isinstance(text, Bad):
            yield Block(file, lines=b"\n".join(kept))
            yield Block(file, fault=text.why, size=file.size)
            return
        kept.append(text)
        held += len(text)
        if held >= SIZE:
            yield Block(file, lines=b"\n".join(kept))
            kept, held = [], 0
    yield Block(file, lines=b"\n".join(kept), size=file.size)


# --- tables ----------------------------------------------------------------------------------------------------------


def _row_groups(file: DataFile) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            groups = parquet.num_row_groups
    except (OSError, pyarrow.ArrowException) as error:
        yield Block(file, fault=f"is no whole Parquet file: {_why(error)}", size=file.size)
        return
    for group in range(groups):
        yield Block(file, group, size=file.size // groups)


def _of_table(block: Block) -> Iterator[Row | Bad]:
    import pyarrow

    try:
        for batch in _batches(block):
            stored = {field.name: field.type for field in batch.schema if "arrow.json" in str(field.type)}
            for start in range(0, batch.num_rows, _BATCH):
                for row in batch.slice(start, _BATCH).to_pylist():
                    yield plain(row | {name: _from_json(row[name], kind) for name, kind in stored.items()})
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield Bad(f"cannot be read to its end: {_why(error)}")


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


def _batches(block: Block) -> Iterator[Any]:
    file = block.file
    if file.format == "Parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            yield from parquet.iter_batches(_BATCH, row_groups=[block.start])
    elif file.format == "Arrow":
        yield from _of_arrow(file)
    else:
        yield from _of_csv(file)


def _of_arrow(file: DataFile) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    with pyarrow.memory_map(file.path) as mapped:
        try:
            reader = pyarrow.ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            whole = pyarrow.ipc.open_file(file.path)
            yield from (whole.get_batch(number) for number in range(whole.num_record_batches))
            return
        yield from reader


def _of_csv(file: DataFile) -> Iterator[Any]:
    """Rows of a CSV file with types as its columns have them; as text where they change on the way."""
    import pyarrow
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter="\t" if file.format == "TSV" else ",", newlines_in_values=True)
    read = csv.ReadOptions(block_size=64 << 20)
    convert = csv.ConvertOptions(strings_can_be_null=True)
    try:
        with _csv_input(file) as stream:
            for _ in csv.open_csv(stream, read, parse, convert):
                pass
    except pyarrow.ArrowInvalid:
        with _csv_input(file) as stream:
            names = csv.open_csv(stream, read, parse).schema.names
        types = dict.fromkeys(names, pyarrow.string())
        convert = csv.ConvertOptions(strings_can_be_null=True, column_types=types)
    with _csv_input(file) as stream:
        yield from csv.open_csv(stream, read, parse, convert)


def _csv_input(file: DataFile) -> Any:
    import pyarrow

    if file.compression in ("", ".xz"):
        return pyarrow.input_stream(file.path, compression=None)
    kind = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[file.compression]
    return pyarrow.input_stream(file.path, compression=kind)


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


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_json(text: bytes) -> bool:
    """Whether a whole text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
