"""What a worker does with a block: rows through their transform and the row rules."""

from __future__ import annotations

import heapq
import os
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ptcli.data.fast import Schemas, look
from ptcli.data.model import Context, Hit, Profile, Row
from ptcli.data.read.blocks import (
    TEXT,
    Block,
    bytes_of,
    cut,
    lines_from,
    read_beyond,
    read_lines,
    read_rows,
    split_lines,
)
from ptcli.data.read.sources import Source
from ptcli.data.read.tables import count_rows
from ptcli.data.read.text import LONGEST, TOO_LONG, Bad, decode_line
from ptcli.data.rules import Checker
from ptcli.data.rules.facts import Facts
from ptcli.data.transforms import TransformError

if TYPE_CHECKING:
    from ptcli.data.tokens import TokenChecker

LONGEST_ROWS = 64
"""The longest rows, which the token rules always see."""
_LONGEST = 16
"""The longest rows of one block that are given back."""
_MOST_GIVEN = 4 << 20
"""Bytes of a row beyond which it is not given back: sending it would cost several times its size."""
_MOST_FAULTS = 10_000
"""Rows of one block that cannot be read, after which the rest of it is only counted."""
_TOKEN_BATCH = 512
LARGE = 16 << 20
"""Bytes of data for which importing pyarrow takes less time than it saves."""

_Read = TypeVar("_Read")
Transform = Callable[[Row], Row | None]
Sized = tuple[Row | Bad, int]
"""A row, or what is none, and its bytes."""
Given = tuple[int, int, Row | bytes]
"""Bytes, number, and row or line of what is given back for the token rules."""


@dataclass(frozen=True)
class PreparedEntry:
    """An entry with its files looked up."""

    source: Source
    transform: Transform | None = None
    shuffle: int | None = None
    """Seed of the shuffling; None where the order is the file's."""
    take: int | None = None
    key: str = "data.train.0"

    @property
    def keeps_all(self) -> bool:
        """Whether neither `split` nor `take` leaves rows out."""
        return self.source.whole and self.take is None


@dataclass(frozen=True)
class Job:
    """A block to look at."""

    entry: int
    block: Block
    counts: bool = False
    """Only say which rows there are."""
    keep: bytes | None = None
    """How often each row of the block is kept; None for once."""
    most: int | None = None
    """Rows to look at."""
    onwards: bool = False
    """Go on with the blocks that follow in the file, until there are `most` rows."""
    wanted: int = 0
    """Rows that the token rules get of the block, besides its longest."""
    first: int | None = None
    """The number of its first row among all, where that is known."""


@dataclass
class Seen:
    """What was seen in a block. Row numbers count from its first row."""

    profile: Profile = field(default_factory=Profile)
    raw: int = 0
    """Rows of the block, whether kept or not."""
    passed: bytes = b""
    """Of a job that counts: for each row 1 where it comes through the transform, else 0."""
    sample: list[Given] = field(default_factory=list)
    longest: list[Given] = field(default_factory=list)
    tally: Any = None
    bytes: int = 0
    """Bytes of the rows that were looked at."""
    consumed: float = 0
    """Bytes on the disk that these rows stand for."""


class Look:
    """Looks at blocks; made once, and then in every worker by the fork."""

    def __init__(self, entries: Sequence[PreparedEntry], context: Context | None, tokens: TokenChecker | None):
        self.entries, self.context, self.tokens = entries, context, tokens
        self.schemas = Schemas(Facts(context)) if context is not None else None
        self._lengths: list[int] = []
        """Of the longest lines that this process saw."""
        self._columnar: Any = None
        self._beyond = 0
        if self.schemas is not None and tokens is None and sum(entry.source.size for entry in entries) > LARGE:
            from ptcli.data import columnar, scan  # before the fork, so that workers share them

            self._columnar, self._lines_of, self._layouts = columnar, scan.lines_of, columnar.Layouts(self.schemas)
            self._beyond = scan.BEYOND

    def __call__(self, job: Job) -> Seen:
        if job.counts:
            return self._count(job)
        assert self.context is not None
        seen, checker = Seen(), Checker(self.context)
        seen.profile = checker.profile
        if self.tokens is None and self._is_as_written(job):
            self._look_at_lines(job, seen, checker)
        else:
            self._look_at_rows(job, seen, checker)
        seen.consumed = seen.consumed or job.block.size
        return seen

    def _look_at_rows(self, job: Job, seen: Seen, checker: Checker) -> None:
        reservoir = _Reservoir(job.wanted, job.block.start)
        batch: list[tuple[int, Row]] = []
        for number, row, size in rows_of(self, job, seen):
            if row is None:
                continue
            checker.row(row, number)
            if self.tokens is not None:
                batch = self._tokenize(batch, number, row)
            else:
                reservoir.add(number, row, size)
        seen.sample, seen.longest = list(given(reservoir.rows)), list(given(reservoir.longest))
        if self.tokens is not None:
            self.tokens.add(batch)
            seen.tally = self.tokens.reset()

    def _is_as_written(self, job: Job) -> bool:
        """Whether every row of a block is looked at, each as a line has it."""
        lines = job.block.file.format in TEXT and not job.block.fault
        return lines and job.keep is None and job.most is None and self.entries[job.entry].transform is None

    def _look_at_lines(self, job: Job, seen: Seen, checker: Checker) -> None:
        """The same for lines, most of which need not become rows."""
        read = _or_fault(job.block, partial(read_beyond, beyond=self._beyond))
        if isinstance(read, Bad):
            seen.profile.hit(_unreadable(job.block, read), 0)
            return
        data, size = read
        columns = self._lines_of(data, size) if self._columnar else None
        if columns is None and size < len(data):
            data = data[:size]
        lines = columns if columns is not None else _split(data)
        unreadable: set[int] = set()

        def slow(number: int) -> Row | None:
            row = decode_line(lines[number]) if len(unreadable) < _MOST_FAULTS else None
            if isinstance(row, Bad):
                seen.profile.hit(_unreadable(job.block, row), number)
                unreadable.add(number)
            elif row is not None:
                checker.row(row, number)
                return row
            return None

        assert self.schemas is not None
        if columns is not None:
            self._columnar.look(columns, checker, self._layouts, slow)
        else:
            look(lines, data, checker, self.schemas, slow)
        seen.raw, seen.bytes = len(lines), size
        some = random.Random(job.block.start).sample(range(len(lines)), min(job.wanted, len(lines)))
        seen.sample = list(_short(lines, some))
        longest = columns.longest(_LONGEST) if columns is not None else _longest(lines)
        seen.longest = list(self._not_shorter(_short(lines, longest)))

    def _not_shorter(self, lines: Iterable[Given]) -> Iterator[Given]:
        """Those that may be among the LONGEST_ROWS of all: sending the others costs more than finding them."""
        for line in lines:
            if len(self._lengths) < LONGEST_ROWS:
                heapq.heappush(self._lengths, line[0])
                yield line
            elif line[0] > self._lengths[0]:
                heapq.heapreplace(self._lengths, line[0])
                yield line

    def _count(self, job: Job) -> Seen:
        """Which rows there are, of a block whose rows are all read before any is chosen."""
        if self.entries[job.entry].transform is None and not job.block.fault:
            rows = _count_as_written(job.block)
            return Seen(raw=rows, passed=b"\1" * rows)
        passed = bytes(row is not None for _, row, _ in rows_of(self, job))
        return Seen(raw=len(passed), passed=passed)

    def _tokenize(self, batch: list[tuple[int, Row]], number: int, row: Row) -> list[tuple[int, Row]]:
        batch.append((number, row))
        if len(batch) < _TOKEN_BATCH:
            return batch
        assert self.tokens is not None
        self.tokens.add(batch)
        return []


def rows_of(look: Look, job: Job, seen: Seen | None = None) -> Iterator[tuple[int, Row | None, int]]:
    """Number, row after the entry's transform, and size in bytes of each row of a block; None for rows that are not
    kept. What cannot be read or transformed is a hit of `seen`'s profile."""
    transform = look.entries[job.entry].transform
    seen = seen if seen is not None else Seen()
    faults = kept = 0
    for number, (row, size) in enumerate(_sized(job, seen)):
        seen.raw, seen.bytes = number + 1, seen.bytes + size
        times = job.keep[number] if job.keep is not None and number < len(job.keep) else job.keep is None
        if isinstance(row, Bad):
            faults += 1
            if faults <= _MOST_FAULTS:
                seen.profile.hit(_unreadable(job.block, row), number)
            times = 0
        changed = row if times and not isinstance(row, Bad) else None
        if changed is not None and transform:
            changed = _through(transform, changed, number, seen)
        for _ in range(times if changed is not None else 1):
            yield number, changed, size
        kept += changed is not None
        if job.most is not None and kept >= job.most:
            return


# --- rows of a block -------------------------------------------------------------------------------------------------


def _sized(job: Job, seen: Seen) -> Iterator[Sized]:
    """The rows of a job's block, read on as they are asked for; how far that is on the disk is noted in `seen`."""
    block = job.block
    if job.onwards:
        return _onwards(block, seen)
    if job.most is not None and block.file.format == "lines" and not (block.file.compression or block.fault):
        return _from_disk(block, seen)
    return _of_block(block)


def _from_disk(block: Block, seen: Seen) -> Iterator[Sized]:
    try:
        for line in lines_from(block):
            seen.consumed += len(line)
            yield decode_line(line), len(line)
    except OSError as error:
        yield Bad(f"cannot be read: {error.strerror}"), 0
    seen.consumed = block.size


def _onwards(block: Block, seen: Seen) -> Iterator[Sized]:
    """The rows of a file from its beginning."""
    for each in cut(block.file):
        before, part = seen.consumed, each.size / max(len(each.lines or b""), 1)
        for row, size in _of_block(each):
            seen.consumed += size * part if each.lines is not None else 0
            yield row, size
        seen.consumed = before + each.size


def _of_block(block: Block) -> Iterator[Sized]:
    if block.fault or block.file.format not in TEXT:
        yield from ((row, 0 if isinstance(row, Bad) else _size(row)) for row in read_rows(block))
        return
    lines = _or_fault(block, read_lines)
    if isinstance(lines, Bad):
        yield lines, 0
        return
    for line in split_lines(lines):
        yield decode_line(line), len(line)


def _or_fault(block: Block, read: Callable[[Block], _Read]) -> _Read | Bad:
    """What is read of a block of lines."""
    try:
        return read(block) if bytes_of(block) <= LONGEST else Bad(f"has a line that {TOO_LONG}")
    except OSError as error:
        return Bad(f"cannot be read: {error.strerror}")


def _count_as_written(block: Block) -> int:
    if block.file.format not in TEXT:
        return count_rows(block.file, block.start, block.stop)
    lines = _or_fault(block, read_lines)
    if isinstance(lines, Bad):
        return 1
    blank = lines[:1].isspace() or any(b"\n" + space in lines for space in (b"\n", b"\r", b" ", b"\t", b"\v", b"\f"))
    return sum(1 for _ in split_lines(lines)) if blank else lines.count(b"\n") + (lines[-1:] not in (b"\n", b""))


def _size(row: Row) -> int:
    try:
        return len(msgspec.json.encode(row))
    except Exception:  # whatever JSON cannot hold
        return 1


def _split(data: bytes) -> list[bytes]:
    """The lines that are not blank."""
    return [line for line in data.split(b"\n") if line and not line.isspace()]


def _longest(lines: Sequence[bytes]) -> list[int]:
    """The numbers of the longest ones."""
    return heapq.nlargest(_LONGEST, range(len(lines)), key=list(map(len, lines)).__getitem__)


def _short(lines: Sequence[bytes], numbers: Iterable[int]) -> Iterator[Given]:
    """Those lines that can be given back; they become rows where they are still wanted in the end."""
    for number in numbers:
        line = lines[number]
        if len(line) <= _MOST_GIVEN:
            yield len(line), number, line


def given(rows: Iterable[Given]) -> Iterator[tuple[int, int, Row]]:
    """Those that can be sent to another process, as rows."""
    for size, number, found in rows:
        row = decode_line(found) if isinstance(found, bytes) else found
        try:
            pickle.dumps(row)
        except Exception:  # nested too deeply, or what JSON has not
            continue
        if isinstance(row, dict):
            yield size, number, row


def _through(transform: Transform, row: Row, number: int, seen: Seen) -> Row | None:
    try:
        return transform(row)
    except TransformError as error:
        where = f"`{error.key}`: " if error.key else ""
        seen.profile.hit(Hit("transform-failed", "error", f"{where}{error.message}"), number)
        return None


def _unreadable(block: Block, bad: Bad) -> Hit:
    name = os.path.basename(block.file.path)
    what = "it" if block.fault else {"lines": "a line", "array": "an element"}.get(block.file.format, "it")
    return Hit("unreadable-file", "error", f"{name}: {what} {bad.why}", "mend or remove it")


class _Reservoir:
    """So many rows of a stream of unknown length, each as likely as any other, and the longest."""

    def __init__(self, most: int, seed: int):
        self.rows: list[Given] = []
        self._most, self._random, self._count = most, random.Random(seed), 0
        self._heap: list[tuple[int, int, Given]] = []

    @property
    def longest(self) -> list[Given]:
        return [given for _, _, given in self._heap]

    def add(self, number: int, row: Row, size: int) -> None:
        if size > _MOST_GIVEN:
            return
        self._count += 1
        if len(self.rows) < self._most:
            self.rows.append((size, number, row))
        elif (place := int(self._random.random() * self._count)) < self._most:
            self.rows[place] = (size, number, row)
        if len(self._heap) < _LONGEST:
            heapq.heappush(self._heap, (size, -self._count, (size, number, row)))
        elif size > self._heap[0][0]:
            heapq.heapreplace(self._heap, (size, -self._count, (size, number, row)))
