"""What a worker does with a block: rows through their transform and the row rules."""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ptcli.data.model import Context, Hit, Profile, Row
from ptcli.data.read.blocks import Block, read_lines, read_rows
from ptcli.data.read.sources import Source
from ptcli.data.read.text import Bad, decode_line
from ptcli.data.rules import Checker
from ptcli.data.transforms import TransformError

if TYPE_CHECKING:
    from ptcli.data.tokens import TokenChecker

_LONGEST = 16
"""The longest rows of one block that are given back."""
_MOST_FAULTS = 10_000
"""Rows of one block that cannot be read, after which the rest of it is not looked at."""
_TOKEN_BATCH = 512

Transform = Callable[[Row], Row | None]


@dataclass(frozen=True)
class PreparedEntry:
    """An entry with its files looked up."""

    source: Source
    transform: Transform | None = None
    shuffle: int | None = None
    """Seed of the shuffling; None where the order is the file's."""
    take: int | None = None
    key: str = "data.train.0"


@dataclass(frozen=True)
class Wanted:
    """Rows that the token rules get of a block."""

    rows: int = 0


@dataclass(frozen=True)
class Job:
    """A block to look at."""

    entry: int
    block: Block
    counts: bool = False
    """Only say which rows there are."""
    keep: frozenset[int] | None = None
    """The rows of the block that are kept; None for all."""
    most: int | None = None
    """Rows to look at."""
    wanted: Wanted = Wanted()


@dataclass
class Seen:
    """What was seen in a block. Row numbers count from its first row."""

    profile: Profile = field(default_factory=Profile)
    raw: int = 0
    """Rows of the block, whether kept or not."""
    numbers: Sequence[int] = ()
    """Of a job that counts: the rows that come through the transform."""
    sample: list[tuple[int, Row]] = field(default_factory=list)
    longest: list[tuple[int, int, Row]] = field(default_factory=list)
    """(size in bytes, number, row)."""
    tally: Any = None
    bytes: int = 0
    """Bytes of the rows that were looked at."""


class Look:
    """Looks at blocks; made once, and then in every worker by the fork."""

    def __init__(self, entries: Sequence[PreparedEntry], context: Context | None, tokens: TokenChecker | None):
        self.entries, self.context, self.tokens = entries, context, tokens

    def __call__(self, job: Job) -> Seen:
        if job.counts:
            rows = list(rows_of(self, job))
            return Seen(raw=len(rows), numbers=[number for number, row, _ in rows if row is not None])
        assert self.context is not None
        seen, checker = Seen(), Checker(self.context)
        seen.profile = checker.profile
        reservoir = _Reservoir(job.wanted.rows, job.block.start)
        batch: list[tuple[int, Row]] = []
        for number, row, size in rows_of(self, job, seen):
            if row is None:
                continue
            checker.row(row, number)
            if self.tokens is not None:
                batch = self._tokenize(batch, number, row)
            else:
                reservoir.add(number, row, size)
        seen.sample, seen.longest = reservoir.rows, reservoir.longest
        if self.tokens is not None:
            self.tokens.add(batch)
            seen.tally = self.tokens.reset()
        return seen

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
    for number, (row, size) in enumerate(_sized(job.block)):
        seen.raw, seen.bytes = number + 1, seen.bytes + size
        if isinstance(row, Bad):
            faults += 1
            seen.profile.hit(_unreadable(job.block, row), number)
            if faults >= _MOST_FAULTS:
                return
            yield number, None, size
            continue
        if job.keep is not None and number not in job.keep:
            yield number, None, size
            continue
        changed = _through(transform, row, number, seen) if transform else row
        yield number, changed, size
        kept += changed is not None
        if job.most is not None and kept >= job.most:
            return


def _sized(block: Block) -> Iterator[tuple[Row | Bad, int]]:
    if block.fault or block.file.format not in ("lines", "array"):
        yield from ((row, 0 if isinstance(row, Bad) else _size(row)) for row in read_rows(block))
        return
    try:
        lines = read_lines(block)
    except OSError as error:
        yield Bad(f"cannot be read: {error.strerror}"), 0
        return
    for line in lines.split(b"\n"):
        if line and not line.isspace():
            yield decode_line(line), len(line) + 1


def _size(row: Row) -> int:
    try:
        return len(msgspec.json.encode(row))
    except Exception:  # whatever JSON cannot hold
        return 1


def _through(transform: Transform, row: Row, number: int, seen: Seen) -> Row | None:
    try:
        return transform(row)
    except TransformError as error:
        where = f"`{error.key}`: " if error.key else ""
        seen.profile.hit(Hit("transform-failed", "error", f"{where}{error.message}"), number)
        return None


def _unreadable(block: Block, bad: Bad) -> Hit:
    name = os.path.basename(block.file.path)
    what = "a line" if block.file.format == "lines" and not block.fault else "it"
    return Hit("unreadable-file", "error", f"{name}: {what} {bad.why}", "mend or remove it")


class _Reservoir:
    """So many rows of a stream of unknown length, each as likely as any other, and the longest."""

    def __init__(self, most: int, seed: int):
        self.rows: list[tuple[int, Row]] = []
        self._most, self._random, self._count = most, random.Random(seed), 0
        self._heap: list[tuple[int, int, Row]] = []

    @property
    def longest(self) -> list[tuple[int, int, Row]]:
        return [(size, -number, row) for size, number, row in self._heap]

    def add(self, number: int, row: Row, size: int) -> None:
        self._count += 1
        if len(self.rows) < self._most:
            self.rows.append((number, row))
        elif (place := int(self._random.random() * self._count)) < self._most:
            self.rows[place] = (number, row)
        if len(self._heap) < _LONGEST:
            heapq.heappush(self._heap, (size, -number, row))
        elif size > self._heap[0][0]:
            heapq.heapreplace(self._heap, (size, -number, row))
