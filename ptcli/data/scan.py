"""The strings of a block of JSON Lines, found by their quotes, and the columns that they make up.

A JSON parser builds every value. Here NumPy finds the quotes and backslashes of a whole block, and the few bytes
between one string and the next say whether a row is written as the first one of its block is: the same columns in the
same order, with the same space between them. Rows that are not (`Columns.regular` is False) are for others to read.
That such a row is JSON is known by then: everything between strings is compared, and so are escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # here, and not in every worker at its first block
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Codes = NDArray[np.uint64]
"""The first eight bytes of something, as a number; zero bytes behind what is shorter."""

_WORD = 8
BEYOND = 2 * _WORD
"""Bytes that are read with the last ones of a block, whatever they are."""
_SHORTER: Codes = np.array([(1 << 8 * size) - 1 for size in range(_WORD)] + [2**64 - 1], np.uint64)
"""What is left of a code of so many bytes."""
_ESCAPED: Bytes = np.zeros(256, np.uint8)
_ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')
_COMMON: Mask = np.isin(np.arange(256), list(b'"\\/nrt'))
"""What stands behind the backslash of most escapes."""
_DIGITS: NDArray[np.int32] = np.full(256, -(1 << 16), np.int32)
_DIGITS[list(b"0123456789abcdefABCDEF")] = [*range(16), *range(10, 16)]
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 40
_MEMORY = pa.system_memory_pool()
"""Of which `ptcli.data.workers` has the freed memory kept; Arrow's own gives it back to the system after every block."""
SYSTEM, USER, ASSISTANT, OTHER = range(4)
_AT_ONCE = 1 << 18
"""Bytes of a block that are looked at together."""
_LONGEST = 8 << 20
"""Bytes of a block, which has a long line then, beyond which it is not looked at: that takes several times its size."""


# --- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marks:
    """Where some bytes of a block stand."""

    quotes: Ints
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
    marked, is_ascii = _marked(letters)
    marks = places(marked)
    kinds = letters[marks]
    is_quote = kinds == ord('"')
    others = np.flatnonzero(~is_quote)
    quotes, others, kinds = marks[is_quote], marks[others], kinds[others]
    slashes, ends = others[kinds == ord("\\")], others[kinds == ord("\n")]
    controls = others[(kinds < 32) & (kinds != ord("\n"))]
    if letters[-1] != ord("\n"):
        ends = np.append(ends, size)
    # Two objects that follow each other do not stand inside another, so that no row spans two lines.
    regular = (letters[ends - 1] == ord("}")).all() and (letters[ends[:-1] + 1] == ord("{")).all()
    return Lines(data, ends, Marks(quotes, slashes, controls), is_ascii) if regular else None


def _marked(letters: Bytes) -> tuple[Mask, bool]:
    """Which are quotes, backslashes or control characters, and whether all are ASCII: told of so many at once as are in
    the fastest memory."""
    found, largest = np.empty(len(letters), np.bool_), 0
    for begin in range(0, len(letters), _AT_ONCE):
        part, marked = letters[begin : begin + _AT_ONCE], found[begin : begin + _AT_ONCE]
        np.less(part ^ 2, 33, out=marked)  # this puts the quote, which is 34, beside those below 32
        marked |= part == ord("\\")
        largest = max(largest, part.max())
    return found, largest < 128


# --- what is found -----------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Messages:
    """A column of chats."""

    counts: Ints
    """Messages of each chat: at least one."""
    contents: Ints
    """For each message, the number of its content among the pieces."""
    roles: Ints
    """For each message SYSTEM, USER, ASSISTANT or OTHER."""


@dataclass(frozen=True)
class Numbers:
    """A column of what is written without quotes."""

    values: NDArray[np.float64]
    """NaN for what is no number."""
    whole: Mask
    """Numbers without a fraction or an exponent."""
    truth: Mask
    """`true` and `false`."""


@dataclass(frozen=True)
class Columns:
    """What the regular rows of a block hold."""

    regular: Mask
    """Of all rows, those that are written as the first one. The columns are of these alone."""
    pieces: Pieces
    texts: Mapping[str, Ints]
    """Column -> for each row, the number of its text among the pieces."""
    chats: Mapping[str, Messages]
    numbers: Mapping[str, Numbers]


Column = tuple[str, str]
"""A name, and `str`, `chat` or `number`."""


def read(lines: Lines, columns: Sequence[Column], wanted: Iterable[str]) -> Columns | None:
    """The columns of a block of lines, as far as they can be told.

    `columns` are those of the first row, in its order; of those of text and of chats, only the wanted are among the
    pieces. None where a block is not UTF-8, or has no other
    row like its first one.
    """
    if not lines.is_ascii and not _is_text(memoryview(lines.data)[: lines.ends[-1]]):
        return None
    block = _Block(lines)
    if not len(block.opens):
        return None
    found = _Found(block, _style(lines[0]), set(wanted))
    for number, column in enumerate(columns):
        found.take(*column, last=number == len(columns) - 1)
    return found.columns()


def _is_text(data: memoryview) -> bool:
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _style(line: bytes) -> tuple[bytes, bytes]:
    """What stands between a key and its value, and between two values: the usual, or the same without a space."""
    found = re.match(rb'\{"[^"\\]*"(: ?)', line)
    spaced = found is None or found[1] == b": "
    return (b": ", b", ") if spaced else (b":", b",")


# --- strings -----------------------------------------------------------------------------------------------------


class _Block:
    """Where the strings of a block are. Rows with an odd quote, a wrong escape or a control character are irregular."""

    def __init__(self, lines: Lines):
        data, starts, ends = lines.data, lines.starts, lines.ends
        self.ends = ends
        self.letters: Bytes = np.frombuffer(data, np.uint8)
        self._words: Codes = np.frombuffer(data, "<u8", len(data) // _WORD)
        self.regular: Mask = np.ones(len(ends), np.bool_)
        self.refuse(lines.marks.controls)
        quotes = lines.marks.quotes
        self.escapes, self.plain = np.zeros(0, np.int64), lines.is_ascii
        self.angles = b"<" in data
        if len(lines.marks.slashes):
            quotes = self._note_escapes(quotes, lines.marks.slashes)
        begin = np.searchsorted(quotes, starts)
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
        return self.word(starts) & _SHORTER[np.minimum(ends - starts, _WORD)]

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

    def _note_escapes(self, quotes: Ints, slashes: Ints) -> Ints:
        """Notes where escapes begin; the quotes that are no part of one."""
        follows = np.diff(slashes, prepend=-2) == 1
        if follows.any():  # of several in a row every other one is escaped
            count = np.arange(len(slashes))
            within = count - np.maximum.accumulate(np.where(follows, 0, count))
            slashes = slashes[within & 1 == 0]
        self.escapes, kinds = slashes, self.letters[slashes + 1]
        uncommon = slashes[~_COMMON[kinds]]
        if len(uncommon):
            self._look_at(uncommon)
        escaped = slashes[kinds == ord('"')] + 1
        if not len(escaped):
            return quotes
        kept = np.ones(len(quotes), np.bool_)
        kept[np.searchsorted(quotes, escaped)] = False
        return quotes[kept]

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
        every = _as_arrow(pa.binary(), len(offsets) - 1, offsets, self.letters)
        parts = _as_arrow(pa.int32(), len(starts), np.arange(0, len(offsets), 2, np.int32))
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


def places(found: Mask) -> Ints:
    """Where a mask is true, which is at few places: `np.flatnonzero`, but that eight are passed over at once."""
    size = len(found) // _WORD * _WORD
    whole = found[:size].view(np.uint64)
    words = np.flatnonzero(whole != 0)
    within = np.flatnonzero(whole[words].view(np.bool_))
    return np.concatenate(((words[within >> 3] << 3) + (within & 7), size + np.flatnonzero(found[size:])))


def _as_arrow(kind: Any, count: int, *buffers: NDArray[Any]) -> Any:
    return pa.Array.from_buffers(kind, count, [None, *map(pa.py_buffer, buffers)])


# --- columns -----------------------------------------------------------------------------------------------------


class _Found:
    """Columns that are found one after the other, each where the one before it ends in its row."""

    def __init__(self, block: _Block, style: tuple[bytes, bytes], wanted: set[str]):
        self.block, self.wanted = block, wanted
        self.colon, self.comma = style
        self.sure = block.regular.copy()
        self.at: Ints = block.first.copy()
        """The string that each row goes on with."""
        self.texts: dict[str, Ints] = {}
        self.chats: dict[str, tuple[Ints, Ints]] = {}
        self.numbers: dict[str, tuple[Ints, Ints]] = {}
        self._list: Ints | None = None
        """For each row, the number of the list that was taken last, among those of the block."""

    def take(self, name: str, kind: str, *, last: bool) -> None:
        """Takes a column. A row that has no string left is not sure any more: no comma follows on its last one."""
        self.at = np.minimum(self.at, len(self.block.opens) - 1)
        self._take_key(name.encode())
        {"str": self._take_text, "chat": self._take_chat, "number": self._take_number}[kind](name, last)

    def _take_key(self, name: bytes) -> None:
        """The next string of a row is this one."""
        block = self.block
        self.sure &= block.codes[self.at] == _code(name)
        if len(name) >= _WORD:
            opens = block.opens[self.at]
            self.sure &= block.closes[self.at] - opens == len(name)
            for begin in range(_WORD, len(name), _WORD):
                part = name[begin : begin + _WORD]
                self.sure &= block.word(opens + begin) & _SHORTER[len(part)] == _code(part)

    def _ends(self, last: bool) -> bytes:
        return b"}" if last else self.comma

    def _take_text(self, name: str, last: bool) -> None:
        text = np.minimum(self.at + 1, len(self.block.opens) - 1)
        self.sure &= self._is(self.at, self.colon) & self._is(text, self._ends(last))
        self.texts[name] = text
        self.at = self.at + 2

    def _is(self, strings: Ints, gap: bytes) -> Mask:
        """Where these bytes follow on a string, and nothing else up to the next one."""
        return self.block.gaps[strings] == _code(gap)

    def _take_number(self, name: str, last: bool) -> None:
        block, end = self.block, self._ends(last)
        start, stop = block.closes[self.at] + 1 + len(self.colon), block.after[self.at] - len(end)
        self.sure &= (start < stop) & (stop - start <= _LONGEST_NUMBER)
        for place, text in ((start - len(self.colon), self.colon), (stop, end)):
            self.sure &= block.word(place) & _SHORTER[len(text)] == _code(text)
        self.numbers[name] = start, stop
        self.at = self.at + 1

    def _take_chat(self, name: str, last: bool) -> None:
        """A list of messages of two keys each: four strings a message after the column's name."""
        self.sure &= self._is(self.at, self.colon + b"[{")
        closing = self._closings
        if not len(closing):
            self.sure[:] = False
        if not self.sure.any():
            return
        # Where a row is sure, there is no end of a list between one chat and the next.
        self._list = np.searchsorted(closing, self.at) if self._list is None else self._list + 1
        self._list = np.minimum(self._list, len(closing) - 1)
        close = closing[self._list]
        self.sure &= self._is(close, b"}]" + self._ends(last)) & (close > self.at) & ((close - self.at) & 3 == 0)
        self.chats[name] = self.at + 1, close
        self.at = close + 1

    @cached_property
    def _closings(self) -> Ints:
        """Strings after which a list of messages ends."""
        ends = [b"}]" + end for end in (b"}", self.comma)]
        return np.flatnonzero((self.block.gaps == _code(ends[0])) | (self.block.gaps == _code(ends[1])))

    def columns(self) -> Columns | None:
        block = self.block
        self.sure &= self.at == block.first + block.counts
        if not self.sure.any():
            return None
        places = {name: self._messages(*self.chats[name]) for name in self.chats}
        sure = self.sure
        kept: list[Ints] = [self.texts[name][sure] for name in self.texts if name in self.wanted]
        chats: dict[str, tuple[Ints, Ints, Ints]] = {}
        for name, (counts, first, swapped) in places.items():
            messages = _expand(first[sure], counts[sure])
            turned = np.repeat(swapped[sure], counts[sure]) if swapped.any() else 0
            chats[name] = counts[sure], messages + 3 - 2 * turned, messages + 1 + 2 * turned
        kept += [contents for name, (_, contents, _) in chats.items() if name in self.wanted]
        numbers = {name: self._numbers(start[sure], stop[sure]) for name, (start, stop) in self.numbers.items()}
        wanted = np.zeros(len(block.opens), np.bool_)
        for strings in kept:
            wanted[strings] = True
        roles = {name: self._roles(roles) for name, (_, _, roles) in chats.items()}
        number = np.cumsum(wanted) - 1
        return Columns(
            sure,
            block.decoded(np.flatnonzero(wanted)),
            {name: number[strings[sure]] for name, strings in self.texts.items() if name in self.wanted},
            {
                name: Messages(counts, number[contents], roles[name])
                for name, (counts, contents, _) in chats.items()
                if name in self.wanted
            },
            numbers,
        )

    def _messages(self, first: Ints, close: Ints) -> tuple[Ints, Ints, Ints]:
        """For each row the messages of a chat, the first of their strings, and 1 where contents come before roles."""
        block = self.block
        rows = np.flatnonzero(self.sure)
        counts = np.zeros_like(first)
        counts[rows] = (close[rows] - first[rows] + 1) // 4
        swapped = np.zeros_like(first)
        swapped[rows] = block.codes[first[rows]] == _CONTENT
        strings = _expand(first[rows], counts[rows])
        row = np.repeat(rows, counts[rows])
        role, content = (_ROLE, _CONTENT) if not swapped.any() else self._keys(swapped[row])
        good = (block.codes[strings] == role) & (block.codes[strings + 2] == content)
        for at, gap in enumerate((self.colon, self.comma, self.colon)):
            good &= block.gaps[strings + at] == _code(gap)
        between = block.gaps[strings + 3] == _code(b"}" + self.comma + b"{")
        between[np.cumsum(counts[rows]) - 1] = True  # looked at before
        self.sure[row[~(good & between)]] = False
        return counts, first, swapped

    def _keys(self, swapped: Ints) -> tuple[Any, Any]:
        turned = swapped.astype(np.bool_)
        return np.where(turned, _CONTENT, _ROLE), np.where(turned, _ROLE, _CONTENT)

    def _roles(self, strings: Ints) -> Ints:
        block = self.block
        codes = block.codes[strings]
        found = np.full(len(strings), OTHER)
        found[codes == _code(b"user")] = USER
        found[codes == _code(b"system")] = SYSTEM
        long = (codes == _code(b"assistan")) & (block.closes[strings] - block.opens[strings] == 9)
        found[long & (block.letters[block.opens[strings] + 8] == ord("t"))] = ASSISTANT
        return found

    def _numbers(self, starts: Ints, stops: Ints) -> Numbers:
        """What is written there, each different one read once."""
        if (stops - starts).max() <= _WORD:
            codes = _as_arrow(pa.uint64(), len(starts), self.block.code(starts, stops)).dictionary_encode()
            which = np.frombuffer(codes.indices.buffers()[1], np.int32)
            written = [code.to_bytes(_WORD, "little").rstrip(b"\0") for code in codes.dictionary.to_pylist()]
        else:
            data, known = self.block.letters.tobytes(), dict[bytes, int]()
            places = zip(starts.tolist(), stops.tolist(), strict=True)
            which = np.array([known.setdefault(data[start:stop], len(known)) for start, stop in places])
            written = list(known)
        found = np.array([_read_number(each) for each in written])[which]
        return Numbers(found[:, 0], found[:, 1] == 1, found[:, 2] == 1)


def _read_number(written: bytes) -> tuple[float, bool, bool]:
    """Value, whether it is whole, and whether it is a truth value, of what is written without quotes."""
    number = _NUMBER.fullmatch(written) is not None
    whole = number and not set(written) & set(b".eE")
    return float(written) if number else np.nan, whole, written in (b"true", b"false")


def _code(text: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(text[:_WORD], "little"))


_ROLE, _CONTENT = _code(b"role"), _code(b"content")


def _expand(first: Ints, counts: Ints) -> Ints:
    """The first strings of all messages, given those of chats and how many messages they have."""
    before = np.cumsum(counts) - counts
    return np.repeat(first - 4 * before, counts) + 4 * np.arange(int(counts.sum()))
