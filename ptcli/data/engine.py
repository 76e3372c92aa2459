"""Every row of some entries through their transforms and the row rules, in worker processes, block by block.

The parent cuts files into blocks and puts together, in their order, what the workers saw: a Profile, and rows for the
token rules. Workers are forks, so transforms and rules need not be picklable; what they are sent is a block.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ptcli.data.choosing import Chosen, all_jobs, sampled_jobs
from ptcli.data.looking import LONGEST_ROWS, Given, Job, Look, PreparedEntry, Seen, given, rows_of
from ptcli.data.model import Context, Hit, Profile, Row
from ptcli.data.read.blocks import SIZE, Block, bytes_of, cut, read_lines
from ptcli.data.read.sources import DataFile
from ptcli.data.rules import merge
from ptcli.data.workers import in_order

if TYPE_CHECKING:
    from ptcli.data.tokens import TokenChecker

__all__ = ["Examined", "PreparedEntry", "examine", "first_row"]

_SMALL = 8 << 20
"""Bytes of data for which starting workers takes longer than reading."""
_LARGE = 4 * SIZE
"""Bytes of a block, which has a very long line then, that is looked at with no other one beside it."""
_MOST_WORKERS = 16
"""With more of them memory grows, and the parent is what takes the time."""
_MOST_BYTES = 16 << 20
"""Bytes of the rows kept for the token rules, of the longest and of the others each."""

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Place:
    """Where the rows from `first` on are."""

    first: int
    entry: int
    file: DataFile
    start: int
    stop: int
    file_first: int
    """The number of the first row of the file."""
    is_text: bool
    """Whether its lines are bytes `start` to `stop` of the file; if not, `start` is the number of the first line."""


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
    numbered: bool = True
    """Whether row numbers are exact."""
    places: list[Place] = field(default_factory=list)
    """One for each block, in order."""
    _line_ends: dict[str, dict[int, int]] = field(default_factory=dict)
    """File -> first byte of a block -> lines that begin before it, counted when they are asked for."""

    def place(self, number: int) -> str:
        """Where a row is: `rows.jsonl:17` (lines from 1), or `rows.parquet, row 16` (from 0 in its file)."""
        at = bisect_right(self.places, number, key=lambda place: place.first) - 1
        if at < 0:
            return f"row {number}"
        place = self.places[at]
        name = os.path.basename(place.file.path)
        if not self.numbered:
            return f"{name}, about row {number}"
        if place.file.format == "lines":
            return f"{name}:{self._line(place, number - place.first)}"
        return f"{name}, row {number - place.file_first}"

    def _line(self, place: Place, row: int) -> int:
        """The line, from 1, of a row that is the `row`th of its block."""
        before = self._ends_before(place) if place.is_text else place.start
        lines = enumerate(_lines_of(place), before + 1)
        there = (number for number, line in lines if line and not line.isspace())
        return next(islice(there, row, None), before + 1)

    def _ends_before(self, place: Place) -> int:
        """The number, from 0, of the first line that begins in a block of a plain file."""
        known = self._line_ends.setdefault(place.file.path, {0: 0})
        if place.start not in known:
            last = max(start for start in known if start < place.start)
            known[place.start] = known[last] + _count_ends(place.file.path, last, place.start)
        return known[place.start]


def _count_ends(path: str, start: int, stop: int) -> int:
    """Lines that begin in these bytes of a file; lines before `stop`, less those before `start`."""
    count = 0
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(start - 1, 0))
        while (at := file.tell()) < stop - 1 and (data := file.read(min(1 << 20, stop - 1 - at))):
            count += data.count(b"\n")
    return count + (start == 0)


def _lines_of(place: Place) -> list[bytes]:
    """The lines of a block, read again; none where the file is gone."""
    if place.is_text:
        blocks: Iterator[Block] = iter([Block(place.file, place.start, place.stop)])
    else:
        blocks = (block for block in cut(place.file) if block.lines is not None and block.begins_line == place.start)
    try:
        return next((read_lines(block).split(b"\n") for block in blocks), [])
    except OSError:
        return []


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
    back for the token rules, spread as well, besides the longest. `full`: `tokens` checks every row in the workers.

    Raises:
        WorkError: when a worker was killed.
    """
    size = sum(entry.source.size for entry in entries)
    look = Look(entries, context, tokens if full else None)
    processes = _workers(workers, size)
    chosen = Chosen(look, processes)
    jobs = sampled_jobs(chosen, sample) if sample else all_jobs(chosen, token_rows / max(size, 1))
    together = _Together(Examined(Profile(), 0, estimated=sample is not None), chosen, token_rows)
    for job, seen in in_order(look, jobs, 0 if sample and sample <= _FEW else processes, _is_large):
        together.add(job, seen)
        if progress:
            progress(together.examined.bytes_read, None if sample else size)
    return together.finish()


def first_row(entries: Sequence[PreparedEntry]) -> Row | None:
    """The first row that training gets of the first entry that has one, in the order of the file."""
    look = Look(entries, None, None)
    for index, entry in enumerate(entries):
        for block in chain.from_iterable(map(cut, entry.source.files)):
            row = next((row for _, row, _ in rows_of(look, Job(index, block)) if row is not None), None)
            if row is not None:
                return row
    return None


_FEW = 2000
"""Rows of a sample for which no workers are started."""


def _workers(asked: int | None, size: int) -> int:
    """Processes to start; 0 for data that are read before workers have started."""
    available = min(asked or len(os.sched_getaffinity(0)), _MOST_WORKERS)
    return available if size > _SMALL and available > 1 else 0


def _is_large(job: Job) -> bool:
    try:
        return bytes_of(job.block) > _LARGE
    except OSError:
        return False


# --- putting together ------------------------------------------------------------------------------------------------


class _Together:
    """What the workers saw, in order."""

    def __init__(self, examined: Examined, chosen: Chosen, token_rows: int):
        self.examined = examined
        self.chosen = chosen
        self.most = token_rows
        self.next = 0
        self.sample: list[Given] = []
        self.longest: list[Given] = []
        self.file: tuple[DataFile, int] | None = None
        self.file_first = 0

    def add(self, job: Job, seen: Seen) -> None:
        examined = self.examined
        first = max(self.next, self.chosen.number_of(job))
        merge(examined.profile, seen.profile, first)
        self._note_place(job.block, job.entry, first, seen)
        self.sample += [(size, number + first, row) for size, number, row in seen.sample]
        self.longest += [(size, number + first, row) for size, number, row in seen.longest]
        if len(self.sample) > 4 * self.most or len(self.longest) > 4 * LONGEST_ROWS:
            self._drop_some()
        if seen.tally is not None:
            self._merge_tokens(seen.tally, first)
        self.next = first + seen.raw
        examined.bytes_read += job.block.size
        self.chosen.saw(job, seen)

    def _note_place(self, block: Block, entry: int, first: int, seen: Seen) -> None:
        is_text = block.lines is None
        start = block.start if is_text else block.begins_line
        if (block.file, entry) != self.file:
            self.file, self.file_first = (block.file, entry), first
            if block.file.format == "array" and seen.profile.rows:
                self.examined.profile.hit(_array(block.file), first)
        self.examined.places.append(Place(first, entry, block.file, start, block.stop, self.file_first, is_text))

    def _drop_some(self) -> None:
        self.longest = sorted(self.longest, key=lambda given: (-given[0], given[1]))[:LONGEST_ROWS]
        self.longest = list(_within(self.longest))
        step = -(-len(self.sample) // self.most) if self.most else 1
        self.sample = self.sample[::step] if step > 1 else self.sample
        while sum(size for size, _, _ in self.sample) > _MOST_BYTES and len(self.sample) > 1:
            self.sample = self.sample[::2]

    def _merge_tokens(self, tally: Any, first: int) -> None:
        from ptcli.data.tokens import merge as merge_tallies

        if self.examined.token_tally is None:
            self.examined.token_tally = tally
        else:
            merge_tallies(self.examined.token_tally, tally, first)

    def finish(self) -> Examined:
        examined = self.examined
        examined.rows = self.chosen.total(examined.profile.rows) if examined.estimated else examined.profile.rows
        examined.numbered = not examined.estimated or all(known.exact is not None for known in self.chosen.known)
        self.sample = _evenly(self.sample, self.most)
        self._drop_some()
        rows = {number: row for _, number, row in given([*self.sample, *self.longest])}
        examined.token_sample = sorted(rows.items(), key=lambda each: each[0])
        for file in {file.path: file for entry in self.chosen.entries for file in entry.source.files}.values():
            if file.has_changed():
                examined.profile.hit(_changed(file), 0)
        return examined


def _evenly(rows: list[Given], most: int) -> list[Given]:
    """So many rows, at even distances."""
    return [rows[at * len(rows) // most] for at in range(most)] if len(rows) > most else rows


def _within(rows: Sequence[Given]) -> Iterator[Given]:
    """The rows that come to no more than _MOST_BYTES, the first ones first."""
    held = 0
    for size, number, row in rows:
        if held + size <= _MOST_BYTES:
            held += size
            yield size, number, row


def _array(file: DataFile) -> Hit:
    message = f"{os.path.basename(file.path)} is one JSON array, not a row a line"
    return Hit("json-array-file", "warning", message, f"to have lines: jq -c '.[]' {os.path.basename(file.path)}")


def _changed(file: DataFile) -> Hit:
    message = f"{os.path.basename(file.path)} changed while it was read"
    return Hit("unreadable-file", "error", message, "check it again when it is whole", variant="changed")
