"""Which rows are looked at, and which blocks hold them: all, those that an entry keeps, or a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

from ptcli.data.looking import Job, Look, PreparedEntry, Seen
from ptcli.data.read.blocks import Block, cut, lines_from
from ptcli.data.read.sources import DataFile
from ptcli.data.transforms import selection
from ptcli.data.workers import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COUNTED = 64 << 20
"""Bytes of an entry whose rows are counted before a sample is taken, which then is exact."""
_SPREAD = 64
"""Places of an entry that a sample comes from."""
_AHEAD = 4
"""The part of an entry that a sample may come to before its rows are counted instead: one in so many."""


@dataclass
class _Entry:
    """How many rows an entry has."""

    exact: int | None = None
    looked_at: int = 0
    consumed: float = 0
    """Bytes on the disk of the rows that were looked at."""
    numbered: int = 0
    """Rows that have a number already; those of all its blocks, kept or not."""

    def estimate(self, size: int) -> int:
        """Its rows, where it has `size` bytes."""
        if self.exact is not None:
            return self.exact
        return max(self.looked_at, round(self.looked_at * size / self.consumed)) if self.consumed else self.looked_at


class Chosen:
    """What is looked at of some entries, and what is known of their rows so far."""

    def __init__(self, look: Look, workers: int):
        self.look, self.workers = look, workers
        self.entries: Sequence[PreparedEntry] = look.entries
        self.known = [_Entry() for _ in self.entries]
        self._raw = [0 for _ in self.entries]

    def saw(self, job: Job, seen: Seen) -> None:
        """Take note of a block that was looked at."""
        known = self.known[job.entry]
        known.looked_at += seen.profile.rows
        known.consumed += seen.consumed
        self._raw[job.entry] += seen.raw

    def number_of(self, job: Job) -> int:
        """The number of the first row of a block, as well as it is known; 0 where it just follows the others."""
        if job.first is None and job.most is None:
            return 0
        before = sum(self._raw_rows(index) for index in range(job.entry))
        if job.first is not None:
            return before + job.first
        known = self.known[job.entry]
        if not known.consumed:
            return before
        files = self.entries[job.entry].source.files
        offset = sum(file.size for file in files[: files.index(job.block.file)]) + job.block.start
        return before + round(self._raw[job.entry] * offset / known.consumed)

    def _raw_rows(self, index: int) -> int:
        """The rows in the files of an entry."""
        known = self.known[index]
        if known.numbered or not known.consumed:
            return max(known.numbered, self._raw[index])
        return max(self._raw[index], round(self._raw[index] * self.entries[index].source.size / known.consumed))

    def total(self, seen: int) -> int:
        """The rows of all entries."""
        pairs = zip(self.known, self.entries, strict=True)
        return max(seen, sum(known.estimate(entry.source.size) for known, entry in pairs))


def all_jobs(chosen: Chosen, share: float) -> Iterator[Job]:
    """Every block; `share`: rows a byte that the token rules get. Of entries that keep only some rows, these are found
    first."""
    kept = {index: _kept(chosen, index) for index, entry in enumerate(chosen.entries) if not entry.keeps_all}
    for index, entry in enumerate(chosen.entries):
        if index in kept:
            blocks = kept[index].blocks()
            yield from (Job(index, block, keep=keep, wanted=_wanted(block, share)) for block, _, keep in blocks)
        else:
            yield from (Job(index, block, wanted=_wanted(block, share)) for block in _blocks(entry))


def _blocks(entry: PreparedEntry) -> Iterator[Block]:
    return chain.from_iterable(map(cut, entry.source.files))


def _wanted(block: Block, share: float) -> int:
    size = len(block.lines) if block.lines is not None else block.size
    return max(1, math.ceil(share * size))


# --- rows that are kept ----------------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """How often each row of an entry is kept."""

    entry: PreparedEntry
    rows: Sequence[int]
    """Rows of each block."""
    times: NDArray[Any]
    """One byte a row of the files."""

    def blocks(self) -> Iterator[tuple[Block, int, bytes]]:
        """Each block with the number of its first row and how often its rows are kept."""
        first = 0
        for block, count in zip(_blocks(self.entry), self.rows, strict=False):
            yield block, first, self.times[first : first + count].tobytes()
            first += count


def _kept(chosen: Chosen, index: int) -> _Kept:
    """What `split`, `shuffle` and `take` leave of an entry, after a first look at all its rows."""
    import numpy as np

    entry = chosen.entries[index]
    jobs = (Job(index, block, counts=True) for block in _blocks(entry))
    counted = [(seen.raw, seen.passed) for _, seen in in_order(chosen.look, jobs, chosen.workers)]
    passed = np.frombuffer(b"".join(each for _, each in counted), np.bool_)
    times = np.zeros(len(passed), np.uint8)
    if entry.source.whole and entry.take is None:
        times[passed] = 1
    else:
        parts = [np.arange(part.start, part.stop) for part in (each.of(len(passed)) for each in entry.source.slices)]
        rows = np.concatenate([part[passed[part]] for part in parts])
        if entry.take is not None:
            rows = rows[np.asarray(selection(len(rows), entry.shuffle, entry.take), np.int64)]
        np.add.at(times, rows, 1)
    chosen.known[index].exact = int(times.sum())
    chosen.known[index].numbered = len(passed)
    return _Kept(entry, [raw for raw, _ in counted], times)


# --- samples ---------------------------------------------------------------------------------------------------------


def sampled_jobs(chosen: Chosen, sample: int) -> Iterator[Job]:
    """Blocks from all over the files, with the rows of each that are looked at; `sample` rows in all."""
    shares = _shared(sample, [entry.source.size for entry in chosen.entries])
    counted = (index for index, rows in enumerate(shares) if _is_counted(chosen.entries[index], rows))
    kept = {index: _kept(chosen, index) for index in counted}
    for index, rows in enumerate(shares):
        yield from _some_of(kept[index], index, rows) if index in kept else _from_places(chosen, index, rows)


def _shared(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` shared out by size, each getting one at least."""
    whole, done, parts, shares = sum(sizes), 0, 0, []
    for size in sizes:
        parts += size
        share = max(1, (total * parts // whole if whole else total) - done)
        done += share
        shares.append(share)
    return shares


def _is_counted(entry: PreparedEntry, rows: int) -> bool:
    if entry.source.size <= _COUNTED or not entry.keeps_all:
        return True
    return _row_size(entry.source.files[0]) * rows * _AHEAD > entry.source.size


def _row_size(file: DataFile) -> float:
    """About the bytes of a row of a plain file of lines; 0 of others."""
    if file.format != "lines" or file.compression:
        return 0
    try:
        sizes = [len(line) for line in lines_from(Block(file, 0, min(file.size, 1 << 20)))]
    except OSError:
        return 0
    return sum(sizes) / len(sizes) if sizes else 0


def _some_of(kept: _Kept, index: int, rows: int) -> Iterator[Job]:
    """Rows at even distances among those that an entry keeps."""
    import numpy as np

    there = np.flatnonzero(kept.times)
    some = there[np.arange(rows) * len(there) // rows] if len(there) > rows else there
    kept.times[:] = 0
    kept.times[some] = 1
    file: DataFile | None = None
    for block, first, keep in kept.blocks():
        if any(keep) or block.fault or block.file != file:  # with its first block it is known where a file begins
            file = block.file
            yield Job(index, block, keep=keep, wanted=sum(keep), first=first)


def _from_places(chosen: Chosen, index: int, rows: int) -> Iterator[Job]:
    """The first rows of many parts of the files."""
    files = chosen.entries[index].source.files
    places = _shared(min(_SPREAD, rows), [file.size for file in files])
    shares = _shared(rows, [file.size for file in files])
    for file, share, count in zip(files, shares, places, strict=True):
        if file.format == "lines" and not file.compression:
            yield from _parts(index, file, share, count)
        elif file.format in ("Parquet", "Arrow") and not file.compression:
            yield from _of_pieces(chosen.known[index], index, file, share, count)
        else:
            yield Job(index, Block(file, size=file.size), most=share, wanted=share, onwards=True)
    known = chosen.known[index]
    if known.numbered and chosen.entries[index].transform is None:
        known.exact = known.numbered


def _parts(index: int, file: DataFile, rows: int, count: int) -> Iterator[Job]:
    for part, most in enumerate(_shared(rows, [1] * count)):
        start, stop = part * file.size // count, (part + 1) * file.size // count
        yield Job(index, Block(file, start, stop, size=stop - start), most=most, wanted=most)


def _of_pieces(known: _Entry, index: int, file: DataFile, rows: int, count: int) -> Iterator[Job]:
    """Row groups or batches from all over a table."""
    blocks = list(cut(file))
    firsts = list(accumulate((block.rows or 0 for block in blocks), initial=known.numbered))
    known.numbered = firsts[-1]
    some = [at * len(blocks) // count for at in range(count)] if len(blocks) > count else range(len(blocks))
    for at, most in zip(some, _shared(rows, [1] * len(some)), strict=True):
        yield Job(index, blocks[at], most=most, wanted=most, first=firsts[at])
