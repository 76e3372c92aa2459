"""The lines of a block, and where its quotes and backslashes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

WORD = 8
BEYOND = 2 * WORD
"""Bytes that are read with the last ones of a block, whatever they are."""
_AT_ONCE = 1 << 19
"""Bytes of a block that are looked at together."""
_LONGEST = 8 << 20
"""Bytes of a block, which has a long line then, beyond which it is not looked at: that takes several times its size."""


@dataclass(frozen=True)
class Marks:
    """Where some bytes of a block stand."""

    quotes: Ints
    before: Ints
    """For each line, the quotes before it."""
    slashes: Ints
    controls: Ints
    """Control characters other than line ends."""


class Lines(Sequence[bytes]):
    """The lines of a block, each of which begins and ends as one object does: cut off when they are asked for."""

    def __init__(self, data: bytes, ends: Ints, marks: Marks, is_ascii: bool):
        self.data, self.ends, self.marks, self.is_ascii = data, ends, marks, is_ascii
        """The data goes on for at least BEYOND bytes, of whatever kind, behind the last line's end."""
        self.starts = np.concatenate(([0], ends[:-1] + 1))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        return self.data[self.starts[at] : self.ends[at]]

    def longest(self, most: int) -> list[int]:
        """The numbers of the longest lines, the first ones first among those of one length."""
        lengths = self.starts - self.ends
        if len(lengths) <= most:
            return np.argsort(lengths, kind="stable").tolist()
        long = np.flatnonzero(lengths <= np.partition(lengths, most - 1)[most - 1])
        return long[np.argsort(lengths[long], kind="stable")][:most].tolist()


def lines_of(data: bytes, size: int | None = None) -> Lines | None:
    """The lines of a block; None where some are blank, or no objects written in one line each.

    Only the first `size` bytes of the data are the block. Data that do not go on behind it are copied.
    """
    size = len(data) if size is None else size
    if not (data.startswith(b"{") and data.endswith((b"}", b"}\n"), 0, size)) or size > _LONGEST:
        return None
    if len(data) < size + BEYOND:
        data = data[:size] + bytes(BEYOND)
    letters = np.frombuffer(data, np.uint8)[:size]
    marks, is_ascii = _marks(letters)
    kinds = letters[marks]
    is_quote = kinds == ord('"')
    others = np.flatnonzero(~is_quote)
    before = others - np.arange(len(others))
    quotes, others, kinds = marks[is_quote], marks[others], kinds[others]
    is_end = kinds == ord("\n")
    slashes, controls = others[kinds == ord("\\")], others[(kinds < 32) & ~is_end]
    ends, before = others[is_end], np.append(0, before[is_end])
    if letters[-1] != ord("\n"):
        ends = np.append(ends, size)
    before = before[: len(ends)]
    # Two objects that follow each other do not stand inside another, so that no row spans two lines.
    regular = (letters[ends - 1] == ord("}")).all() and (letters[ends[:-1] + 1] == ord("{")).all()
    return Lines(data, ends, Marks(quotes, before, slashes, controls), is_ascii) if regular else None


def _marks(letters: Bytes) -> tuple[Ints, bool]:
    """Where quotes, backslashes and control characters are, and whether all is ASCII: told of so many letters at once
    as fit into the fastest memory with what is made of them."""
    found, largest = [], 0
    for begin in range(0, len(letters), _AT_ONCE):
        part = letters[begin : begin + _AT_ONCE]
        marked = part ^ 2 < 33  # this puts the quote, which is 34, beside those below 32
        marked |= part == ord("\\")
        found.append(places(marked) + begin)
        largest = max(largest, part.max())
    return np.concatenate(found), largest < 128


def places(found: Mask) -> Ints:
    """Where a mask is true, which is at few places: `np.flatnonzero`, but that eight are passed over at once."""
    size = len(found) // WORD * WORD
    whole = found[:size].view(np.uint64)
    words = np.flatnonzero(whole != 0)
    within = np.flatnonzero(whole[words].view(np.bool_))
    return np.concatenate(((words[within >> 3] << 3) + (within & 7), size + np.flatnonzero(found[size:])))
