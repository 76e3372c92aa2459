"""The columns that the strings of a block make up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ptcli.data.scan.lines import WORD, Ints, Lines, Mask
from ptcli.data.scan.strings import SHORTER, Pieces, Strings, as_arrow

SYSTEM, USER, ASSISTANT, OTHER = range(4)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 40


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
    pieces. None where a block is not UTF-8, or has no other row like its first one.
    """
    if not lines.is_ascii and not _is_text(memoryview(lines.data)[: lines.ends[-1]]):
        return None
    block = Strings(lines)
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


class _Found:
    """Columns that are found one after the other, each where the one before it ends in its row."""

    def __init__(self, block: Strings, style: tuple[bytes, bytes], wanted: set[str]):
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
        if len(name) >= WORD:
            opens = block.opens[self.at]
            self.sure &= block.closes[self.at] - opens == len(name)
            for begin in range(WORD, len(name), WORD):
                part = name[begin : begin + WORD]
                self.sure &= block.word(opens + begin) & SHORTER[len(part)] == _code(part)

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
        self.sure &= block.gaps[self.at] & SHORTER[len(self.colon)] == _code(self.colon)
        self.sure &= block.word(stop) & SHORTER[len(end)] == _code(end)
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
        if (stops - starts).max() <= WORD:
            codes = as_arrow(pa.uint64(), len(starts), self.block.code(starts, stops)).dictionary_encode()
            which = np.frombuffer(codes.indices.buffers()[1], np.int32)
            written = [code.to_bytes(WORD, "little").rstrip(b"\0") for code in codes.dictionary.to_pylist()]
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
    return np.uint64(int.from_bytes(text[:WORD], "little"))


_ROLE, _CONTENT = _code(b"role"), _code(b"content")


def _expand(first: Ints, counts: Ints) -> Ints:
    """The first strings of all messages, given those of chats and how many messages they have."""
    before = np.cumsum(counts) - counts
    return np.repeat(first - 4 * before, counts) + 4 * np.arange(int(counts.sum()))
