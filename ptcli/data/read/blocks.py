"""Files cut into blocks, which are read apart from each other, and the lines or rows of a block."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from ptcli.data.model import Row
from ptcli.data.read.compressed import BROKEN, Chunks
from ptcli.data.read.sources import DataFile
from ptcli.data.read.tables import cut_table, rows_of_table
from ptcli.data.read.text import LONGEST, TOO_LONG, Bad, decode_line, texts_of_array, texts_of_values, why

SIZE = 4 << 20
"""Bytes of a block of lines."""
_STEP = 1 << 15
"""Bytes in which a line end is looked for."""
_BOM = b"\xef\xbb\xbf"
TEXT = frozenset({"lines", "array", "values"})
"""Formats whose blocks are lines of JSON."""


@dataclass(frozen=True)
class Block:
    """A piece of a file; small to send, except where its lines had to be decompressed."""

    file: DataFile
    start: int = 0
    """First byte; of a table, the first of its row groups or batches."""
    stop: int = 0
    """First byte or row group of the next block."""
    lines: bytes | None = None
    """Whole lines, where they are not simply bytes `start` to `stop` of the file."""
    size: int = 0
    """Bytes on the disk that it stands for, for progress."""
    fault: str = ""
    """Why nothing more can be read of the file."""
    rows: int | None = None
    """How many rows it has, where that is known before it is read."""
    begins_line: int = 0
    """Of decompressed lines, the number of the first, from 0."""


def cut(file: DataFile) -> Iterator[Block]:
    """The blocks of a file, in order. What cannot be read of it is a block with a fault."""
    try:
        yield from _CUTTERS.get(file.format, _of_table)(file)
    except OSError as error:
        yield Block(file, fault=f"cannot be read: {error.strerror or why(error)}", size=file.size)


def read_rows(block: Block) -> Iterator[Row | Bad]:
    """The rows of a block, and what is none."""
    if block.fault:
        yield Bad(block.fault)
    elif block.file.format in TEXT:
        yield from map(decode_line, split_lines(read_lines(block)))
    else:
        yield from rows_of_table(block.file, block.start, block.stop)


def split_lines(lines: bytes) -> Iterator[bytes]:
    """The lines that are not empty, one at a time: of very short ones a list would be large."""
    for line in io.BytesIO(lines):
        if not line.isspace():
            yield line


def read_lines(block: Block) -> bytes:
    """The lines that begin in a block, the last one whole. Raises OSError."""
    return read_beyond(block, 0)[0]


def read_beyond(block: Block, beyond: int) -> tuple[bytes, int]:
    """The same lines, with up to so many bytes of what follows on them, and how many bytes are theirs. Nothing follows
    where they are so many that nobody can have them twice in memory."""
    if block.lines is not None:
        return block.lines, len(block.lines)
    with open(block.file.path, "rb", buffering=0) as file:
        start, stop = _extent(file, block)
        file.seek(start)
        data = _read(file, stop - start + (beyond if stop - start <= 4 * SIZE else 0))
    size = min(len(data), stop - start)
    if start == 0 and data.startswith(_BOM):
        return data.removeprefix(_BOM), max(size - len(_BOM), 0)
    return data, size


def bytes_of(block: Block) -> int:
    """Bytes that the lines of a block come to: many more than SIZE where one of them is long. Raises OSError."""
    if block.lines is not None or block.fault or block.file.format != "lines":
        return len(block.lines or b"")
    with open(block.file.path, "rb", buffering=0) as file:
        start, stop = _extent(file, block)
    return stop - start


def lines_from(block: Block) -> Iterator[bytes]:
    """The lines of a plain file that begin in a block, read only as far as they are asked for. Raises OSError."""
    with open(block.file.path, "rb") as file:
        start = _line_at(file, block.start, block.stop)
        file.seek(start)
        while start < block.stop and (line := file.readline(LONGEST)):
            start += len(line)
            if not line.isspace():
                yield line.removeprefix(_BOM) if start == len(line) else line


def _extent(file: IO[bytes], block: Block) -> tuple[int, int]:
    """First byte of the first line that begins in a block, and the byte after its last line's end."""
    start = _line_at(file, block.start, block.stop)
    if start >= block.stop:
        return block.stop, block.stop
    return start, _line_at(file, block.stop, min(block.stop + LONGEST, block.file.size))


def _line_at(file: IO[bytes], at: int, most: int) -> int:
    """The first place from `at` on at which a line begins; `most` where there is none before."""
    if at == 0:
        return 0
    at -= 1
    file.seek(at)
    while at < most and (data := file.read(min(_STEP, most - at))):
        found = data.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(data)
    return most


def _read(file: IO[bytes], count: int) -> bytes:
    """So many bytes, in one piece of memory; fewer at the end of the file."""
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


# --- text ------------------------------------------------------------------------------------------------------------


def _of_lines(file: DataFile) -> Iterator[Block]:
    if file.compression:
        yield from _decompressed(file)
        return
    size = os.stat(file.path).st_size
    for start in range(0, size, SIZE):
        stop = min(start + SIZE, size)
        yield Block(file, start, stop, size=stop - start)


def _decompressed(file: DataFile) -> Iterator[Block]:
    """Lines as they come out of a compressed file. What follows a fault is lost, what came before it is not."""
    kept: list[bytes] = []
    held = told = number = 0
    pieces = Chunks(file.path, file.compression)
    fault = ""
    try:
        for piece in pieces:
            kept.append(piece)
            held += len(piece)
            if held >= SIZE and b"\n" in piece:
                whole, kept = _whole_lines(kept)
                ends = whole.count(b"\n")
                block = Block(file, lines=_without_bom(whole, number), size=pieces.read - told, begins_line=number)
                del whole  # it may be large, and is not to be held twice
                yield block
                number, held, told = number + ends, len(kept[0]), pieces.read
                del block
            elif held > LONGEST:
                fault = f"has a line that {TOO_LONG}"
                break
    except BROKEN as error:
        fault = f"cannot be read to its end: {why(error)}"
    rest = b"".join(kept)
    rest = rest[: rest.rfind(b"\n") + 1] if fault else rest
    yield Block(file, lines=_without_bom(rest, number), size=file.size - told, begins_line=number)
    if fault:
        yield Block(file, lines=b"", fault=fault, begins_line=number + rest.count(b"\n"))


def _whole_lines(pieces: list[bytes]) -> tuple[bytes, list[bytes]]:
    """The lines that end in some pieces, and what is left."""
    joined = b"".join(pieces)
    pieces.clear()
    end = joined.rfind(b"\n") + 1
    return joined[:end], [joined[end:]]


def _without_bom(lines: bytes, number: int) -> bytes:
    return lines if number else lines.removeprefix(_BOM)


def _of_array(file: DataFile) -> Iterator[Block]:
    return _of_texts(file, texts_of_array)


def _of_values(file: DataFile) -> Iterator[Block]:
    return _of_texts(file, texts_of_values)


def _of_texts(file: DataFile, texts: Callable[[Iterable[bytes]], Iterator[bytes | Bad]]) -> Iterator[Block]:
    kept: list[bytes] = []
    held = told = 0
    pieces = Chunks(file.path, file.compression)
    fault = ""
    for text in texts(pieces):
        if isinstance(text, Bad):
            fault = text.why
            break
        if kept and held + len(text) >= SIZE:
            yield Block(file, lines=_joined(kept), size=pieces.read - told)
            held, told = 0, pieces.read
        kept.append(text)
        held += len(text)
        del text
    yield Block(file, lines=_joined(kept), size=file.size - told)
    if fault:
        yield Block(file, fault=fault)


def _joined(lines: list[bytes]) -> bytes:
    """Lines in one; the list is empty then, so that a long one is not held twice."""
    joined = b"\n".join(lines)
    lines.clear()
    return joined


def _of_table(file: DataFile) -> Iterator[Block]:
    for piece in cut_table(file):
        yield Block(file, piece.start, piece.stop, size=piece.size, fault=piece.fault, rows=piece.rows)


_CUTTERS: dict[str, Callable[[DataFile], Iterator[Block]]] = {
    "lines": _of_lines,
    "array": _of_array,
    "values": _of_values,
}
