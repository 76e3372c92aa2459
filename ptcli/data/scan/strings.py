"""The strings of a block, where they are and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # here, and not in every worker at its first block
from numpy.typing import NDArray

from ptcli.data.scan.lines import WORD, Bytes, Ints, Lines, Mask

Codes = NDArray[np.uint64]
"""The first eight bytes of something, as a number; zero bytes behind what is shorter."""

SHORTER: Codes = np.array([(1 << 8 * size) - 1 for size in range(WORD)] + [2**64 - 1], np.uint64)
"""What is left of a code of so many bytes."""
_ESCAPED: Bytes = np.zeros(256, np.uint8)
_ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')
_COMMON: Mask = np.isin(np.arange(256), list(b'"\\/nrt'))
"""What stands behind the backslash of most escapes."""
_DIGITS: NDArray[np.int32] = np.full(256, -(1 << 16), np.int32)
_DIGITS[list(b"0123456789abcdefABCDEF")] = [*range(16), *range(10, 16)]
_MEMORY = pa.system_memory_pool()
"""Its freed memory is kept, by `ptcli.data.workers`; Arrow's own goes back to the system, to be had anew each time."""


@dataclass(frozen=True)
class Pieces:
    """Texts that stand in one buffer, in order."""

    buffer: memoryview
    starts: Ints
    ends: Ints
    plain: bool
    """Whether there are surely no characters but those of ASCII, and no control characters but tabs and line ends."""
    angles: bool
    """Whether there may be `<`."""

    @cached_property
    def data(self) -> bytes:
        """A copy of the buffer: only made where bytes are searched."""
        return bytes(self.buffer)


class Strings:
    """Where the strings of a block are. Rows with an odd quote, a wrong escape or a control character are irregular."""

    def __init__(self, lines: Lines):
        data, starts, ends = lines.data, lines.starts, lines.ends
        self.ends = ends
        self.letters: Bytes = np.frombuffer(data, np.uint8)
        self._words: Codes = np.frombuffer(data, "<u8", len(data) // WORD)
        self.regular: Mask = np.ones(len(ends), np.bool_)
        self.refuse(lines.marks.controls)
        quotes, begin = lines.marks.quotes, lines.marks.before
        self.escapes, self.plain = np.zeros(0, np.int64), lines.is_ascii
        self.angles = b"<" in data
        if len(lines.marks.slashes):
            escaped = self._note_escapes(lines.marks.slashes)
            if len(escaped):
                kept = np.ones(len(quotes), np.bool_)
                kept[np.searchsorted(quotes, escaped)] = False
                quotes, begin = quotes[kept], begin - np.searchsorted(escaped, starts)
        counts = np.diff(begin, append=len(quotes))
        if (counts & 1).any():
            odd = (counts & 1).astype(np.bool_)
            self.regular[odd] = False
            quotes = quotes[~np.repeat(odd, counts)]
            counts = np.where(odd, 0, counts)
            begin = np.cumsum(counts) - counts
        self.opens, self.closes = quotes[0::2] + 1, quotes[1::2]
        """The first byte of each string, and the one after its last."""
        self.first: Ints = begin // 2
        """The first string of each row."""
        self.counts: Ints = counts // 2
        some = self.counts > 0
        self.after: Ints = np.append(self.opens[1:] - 1, 0)[: len(self.opens)]
        """Where what follows a string ends: at the next one, or with the line."""
        self.after[(self.first + self.counts - 1)[some]] = ends[some]
        self.regular &= some
        self.regular[some] &= self.opens[self.first[some]] == starts[some] + 2
        self.codes = self.code(self.opens, self.closes)
        self.gaps = self.code(self.closes + 1, self.after)

    def code(self, starts: Ints, ends: Ints) -> Codes:
        """The first eight bytes of what begins and ends there."""
        return self.word(starts) & SHORTER[np.minimum(ends - starts, WORD)]

    def word(self, places: Ints) -> Codes:
        """The eight bytes from each place on; of a place far behind the end, the last ones. Made of two words that they
        stand in, because NumPy takes longer to read what is not aligned."""
        at = np.minimum(places >> 3, len(self._words) - 2)
        low = ((places & 7) << 3).view(np.uint64)
        return (self._words[at] >> low) | (self._words[at + 1] << np.uint64(1) << (np.uint64(63) - low))

    def row_of(self, places: Ints) -> Ints:
        return np.searchsorted(self.ends, places)

    def refuse(self, places: Ints) -> None:
        """Makes the rows irregular that have something at these places."""
        if len(places):
            self.regular[self.row_of(places)] = False

    def _note_escapes(self, slashes: Ints) -> Ints:
        """Notes where escapes begin; the quotes that are part of one."""
        follows = np.diff(slashes, prepend=-2) == 1
        if follows.any():  # of several in a row every other one is escaped
            count = np.arange(len(slashes))
            within = count - np.maximum.accumulate(np.where(follows, 0, count))
            slashes = slashes[within & 1 == 0]
        self.escapes, kinds = slashes, self.letters[slashes + 1]
        uncommon = slashes[~_COMMON[kinds]]
        if len(uncommon):
            self._look_at(uncommon)
        return slashes[kinds == ord('"')] + 1

    def _look_at(self, escapes: Ints) -> None:
        """Refuses rows with wrong escapes, and those with surrogates, a pair of which is one letter."""
        self.plain = False
        kinds = self.letters[escapes + 1]
        self.refuse(escapes[(_ESCAPED[kinds] == 0) & (kinds != ord("u"))])
        long = escapes[kinds == ord("u")]
        codes = self._letter_codes(long)
        self.refuse(long[(codes < 0) | (codes >> 11 == 0xD800 >> 11)])

    def decoded(self, strings: Ints) -> Pieces:
        """These strings, which are in order and regular rows', without their escapes."""
        starts, ends = self.opens[strings], self.closes[strings]
        string = np.searchsorted(starts, self.escapes, side="right") - 1
        inside = (string >= 0) & (self.escapes < ends[string]) if len(starts) else np.zeros(len(string), np.bool_)
        escapes, string = self.escapes[inside], string[inside]
        if not len(escapes):
            letters, begins = self._joined(starts, ends)
            return self._pieces(letters, begins)
        # What an escape stands for is written over its end, where the next part begins.
        kinds = self.letters[escapes + 1]
        long = np.flatnonzero(kinds == ord("u"))
        codes = self._letter_codes(escapes[long])
        stops = escapes + 1
        stops[long] += 5 - _utf8_length(codes)
        firsts = np.arange(len(starts)) + np.searchsorted(escapes, starts)
        starts, ends = (np.sort(np.append(*each), kind="stable") for each in ((starts, stops), (ends, escapes)))
        letters, begins = self._joined(starts, ends)
        at = begins[string + 1 + np.arange(len(string))]
        letters[at] = _ESCAPED[kinds]
        _write_utf8(letters, at[long], codes)
        return self._pieces(letters, np.append(begins[firsts], begins[-1]))

    def _pieces(self, letters: Bytes, begins: Ints) -> Pieces:
        return Pieces(letters.data, begins[:-1], begins[1:], self.plain, self.angles or not self.plain)

    def _joined(self, starts: Ints, ends: Ints) -> tuple[Bytes, Ints]:
        """Parts of the block, which are in order, behind each other; where they begin, and where the last one ends."""
        offsets = np.empty(2 * len(starts), np.int32)
        offsets[0::2], offsets[1::2] = starts, ends
        # The parts, and what is between them. Not by `pa.array`, which imports pandas where there is one.
        every = as_arrow(pa.binary(), len(offsets) - 1, offsets, self.letters)
        parts = as_arrow(pa.int32(), len(starts), np.arange(0, len(offsets), 2, np.int32))
        _, begins, data = pc.take(every, parts, memory_pool=_MEMORY).buffers()
        letters = np.frombuffer(data if data is not None else b"", np.uint8)
        letters = letters if letters.flags.writeable else letters.copy()
        return letters, np.frombuffer(begins, np.int32)[: len(starts) + 1].astype(np.int64)

    def _letter_codes(self, places: Ints) -> Ints:
        """What is written as `\\uXXXX` at these places; negative where it is not."""
        digits = [_DIGITS[self.letters[np.minimum(places + at, len(self.letters) - 1)]] for at in (2, 3, 4, 5)]
        return (digits[0] << 12) + (digits[1] << 8) + (digits[2] << 4) + digits[3]


def _utf8_length(codes: Ints) -> Ints:
    """Bytes of characters below 0x10000."""
    return np.where(codes < 0x80, 1, np.where(codes < 0x800, 2, 3))


def _write_utf8(letters: Bytes, at: Ints, codes: Ints) -> None:
    """Writes characters below 0x10000 to these places."""
    lengths = _utf8_length(codes)
    letters[at] = np.choose(lengths - 1, (codes, 0xC0 | codes >> 6, 0xE0 | codes >> 12))
    last = at + lengths - 1
    letters[last[lengths > 1]] = (0x80 | codes & 0x3F)[lengths > 1]
    letters[(at + 1)[lengths > 2]] = (0x80 | codes >> 6 & 0x3F)[lengths > 2]


def as_arrow(kind: Any, count: int, *buffers: NDArray[Any]) -> Any:
    return pa.Array.from_buffers(kind, count, [None, *map(pa.py_buffer, buffers)])
