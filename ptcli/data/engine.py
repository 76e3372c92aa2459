"""Every row of some entries through their transforms and the row rules, in worker processes, block by block.

The parent cuts files into blocks and puts together, in their order, what the workers saw: a Profile, and rows for the
token rules. Workers are forks, so transforms and rules need not be picklable; what they are sent is a block.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from ptcli.data.looking import Job, Look, PreparedEntry, Seen, Wanted, rows_of
from ptcli.data.model import Context, Profile, Row
from ptcli.data.read.blocks import Block, cut, read_lines
from ptcli.data.read.sources import DataFile
from ptcli.data.rules import merge
from ptcli.data.transforms import selection
from ptcli.data.workers import in_order

if TYPE_CHECKING:
    from ptcli.data.tokens import TokenChecker

__all__ = ["Examined", "PreparedEntry", "examine", "first_row"]

_SMALL = 8 << 20
"""Bytes of data for which starting workers takes longer than reading."""
LONGEST = 64
"""The longest rows, which the token rules always see."""
_SPREAD = 64
"""Places of a file that a sample comes from."""
_SAMPLE_BYTES = 1 << 18
"""Bytes of a block of a sample."""

Progress = Callable[[int, int | None], None]


@dataclass
class Examined:
    """What was seen."""

    profile: Profile
    rows: int
    """Rows that training gets; an estimate where only some were looked at."""
    estimated: bool = False
    token_sample: list[tuple[int, Row]] = field(default_factory=list)
    token_tally: Any = None
    bytes_read: int = 0
    places: list[tuple[int, Block]] = field(default_factory=list)
    """The first row number of each block."""

    def place(self, number: int) -> str:
        """Where a row is: `rows.jsonl:17` (lines from 1), or `rows.parquet, row 16` (from 0 in its file)."""
        at = bisect_right(self.places, number, key=lambda place: place[0]) - 1
        if at < 0:
            return f"row {number}"
        first, block = self.places[at]
        name = os.path.basename(block.file.path)
        if self.estimated:
            return f"{name}, about row {number}"
        if block.file.format == "lines":
            return f"{name}:{self._line(at, number - first)}"
        return f"{name}, row {number - next(place[0] for place in self.places if place[1].file == block.file)}"

    def _line(self, at: int, row: int) -> int:
        """The line, from 1, of a row that is the `row`th of a block."""
        block = self.places[at][1]
        earlier = [each for _, each in self.places[:at] if each.file == block.file]
        before = sum(read_lines(each).count(b"\n") + (each.lines is not None) for each in earlier)
        lines = (number for number, line in enumerate(read_lines(block).split(b"\n"), 1) if line and not line.isspace())
        return before + next(islice(lines, row, None), 1)


def examine(
    entries: Sequence[PreparedEntry],
    context: Context,
    *,
    sample: int | None = None,
    token_rows: int = 1000,
    full: bool = False,
    tokens: TokenChecker | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Examined:
    """Look at the rows of one split.

    `sample`: only so many rows, from places spread over the files; all where None. `token_rows`: rows that are given
    back for the token rules, spread as well, besides the LONGEST. `full`: `tokens` checks every row in the workers.

    Raises:
        WorkError: when a worker was killed.
    """
    size = sum(entry.source.size for entry in entries)
    look = Look(entries, context, tokens if full else None)
    jobs = _sampled(entries, sample) if sample else _all(entries, look, token_rows / max(size, 1), workers)
    examined = Examined(Profile(), 0, estimated=sample is not None)
    together = _Together(examined, token_rows)
    for job, seen in in_order(look, jobs, _workers(workers, size)):
        together.add(job, seen)
        if progress:
            progress(examined.bytes_read, None if sample else size)
    together.finish(size, sample)
    return examined


def first_row(entries: Sequence[PreparedEntry]) -> Row | None:
    """The first row that training gets of the first entry that has one, in the order of the file."""
    look = Look(entries, None, None)
    for index, entry in enumerate(entries):
        for file in entry.source.files:
            for block in cut(file):
                row = next((row for _, row, _ in rows_of(look, Job(index, block)) if row is not None), None)
                if row is not None:
                    return row
    return None


def _workers(asked: int | None, size: int) -> int:
    """Processes to start; 0 for data that are read before workers have started."""
    available = asked or len(os.sched_getaffinity(0))
    return available if size > _SMALL and available > 1 else 0


# --- what to look at -------------------------------------------------------------------------------------------------


def _all(entries: Sequence[PreparedEntry], look: Look, share: float, workers: int | None) -> Iterator[Job]:
    """Every block. Of entries that keep only some rows, these are found first."""
    for index, entry in enumerate(entries):
        blocks = (block for file in entry.source.files for block in cut(file))
        if entry.source.whole and entry.take is None:
            yield from (Job(index, block, wanted=_wanted(block, share)) for block in blocks)
        else:
            yield from _kept(index, entry, look, share, workers)


def _wanted(block: Block, share: float) -> Wanted:
    """How many rows of a block the token rules get, of `share` rows a byte."""
    size = len(block.lines) if block.lines is not None else block.size
    return Wanted(max(1, math.ceil(share * size)))


def _kept(index: int, entry: PreparedEntry, look: Look, share: float, workers: int | None) -> Iterator[Job]:
    """The blocks with the rows of each that `split`, `shuffle` and `take` leave, which takes a look at all before."""
    jobs = [Job(index, block, counts=True) for file in entry.source.files for block in cut(file)]
    seen = [seen for _, seen in in_order(look, iter(jobs), _workers(workers, entry.source.size))]
    starts = list(accumulate((each.raw for each in seen), initial=0))
    there = [start + row for start, each in zip(starts, seen, strict=False) for row in each.numbers]
    passed = set(there)
    rows = [row for part in entry.source.slices for row in part.of(starts[-1]) if row in passed]
    kept = sorted(rows[position] for position in selection(len(rows), entry.shuffle, entry.take))
    for job, start, stop in zip(jobs, starts, starts[1:], strict=False):
        own = kept[bisect_left(kept, start) : bisect_left(kept, stop)]
        keep = frozenset(row - start for row in own)
        yield Job(index, job.block, keep=keep, wanted=_wanted(job.block, share))


def _sampled(entries: Sequence[PreparedEntry], sample: int) -> Iterator[Job]:
    """Blocks from all over the files, with the rows of each that are wanted."""
    files = [(index, file) for index, entry in enumerate(entries) for file in entry.source.files]
    size = sum(file.size for _, file in files)
    for index, file in files:
        rows = max(1, round(sample * file.size / max(size, 1)))
        blocks = list(_spread(file, min(rows, _SPREAD)))
        each = -(-rows // max(len(blocks), 1))
        yield from (Job(index, block, most=each, wanted=Wanted(each)) for block in blocks)


def _spread(file: DataFile, count: int) -> Iterator[Block]:
    if file.format == "lines" and not file.compression:
        if file.size <= count * _SAMPLE_BYTES:
            count = max(1, file.size // _SAMPLE_BYTES)
        for number in range(count):
            start = number * file.size // count
            stop = min(start + _SAMPLE_BYTES, file.size) if count > 1 else file.size
            yield Block(file, start, stop, size=stop - start)
        return
    # What cannot be entered in the middle gives its beginning.
    blocks = list(cut(file)) if file.format == "Parquet" else list(islice(cut(file), 1))
    step = max(1, len(blocks) // count)
    yield from blocks[::step][:count]


# --- putting together ------------------------------------------------------------------------------------------------


class _Together:
    """What the workers saw, in order."""

    def __init__(self, examined: Examined, token_rows: int):
        self.examined = examined
        self.most = token_rows
        self.raw = 0
        self.read = 0
        self.sample: list[tuple[int, Row]] = []
        self.longest: list[tuple[int, int, Row]] = []

    def add(self, job: Job, seen: Seen) -> None:
        examined = self.examined
        merge(examined.profile, seen.profile, self.raw)
        examined.places.append((self.raw, job.block))
        self.sample += [(number + self.raw, row) for number, row in seen.sample]
        longest = [*self.longest, *((size, number + self.raw, row) for size, number, row in seen.longest)]
        self.longest = sorted(longest, key=lambda each: (-each[0], each[1]))[:LONGEST]
        if seen.tally is not None:
            self._merge_tokens(seen.tally)
        self.raw += seen.raw
        self.read += seen.bytes
        examined.bytes_read += job.block.size

    def _merge_tokens(self, tally: Any) -> None:
        from ptcli.data.tokens import merge as merge_tallies

        if self.examined.token_tally is None:
            self.examined.token_tally = tally
        else:
            merge_tallies(self.examined.token_tally, tally, self.raw)

    def finish(self, size: int, sample: int | None) -> None:
        examined = self.examined
        examined.rows = examined.profile.rows
        if sample and self.read:
            examined.rows = max(examined.rows, round(examined.profile.rows * size / self.read))
        step = max(1, len(self.sample) // self.most)
        rows = dict(self.sample[::step])
        rows |= {number: row for _, number, row in self.longest}
        examined.token_sample = sorted(rows.items(), key=lambda each: each[0])
