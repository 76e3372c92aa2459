"""Plainly good rows of large files of JSON Lines, told a column at a time.

Made because `ptcli.data.fast` spends more on the Python objects of a row than on reading it: here Arrow parses a whole
block with the types that its first row has, and NumPy looks at the offsets and bytes of its columns, so that only the
digest is made row by row. What is not told this way (`sure` is False) goes to `ptcli.data.fast`, and a block that does
not parse with these types goes there whole: whatever is not understood here is slow, not wrong.

Imports pyarrow and numpy, which takes longer than reading a small file: only to be imported where there is a large one.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.json
import xxhash
from numpy.typing import NDArray

from ptcli.data import fast
from ptcli.data.fast import GoodRows, Schema, Schemas
from ptcli.data.model import Kind, Row
from ptcli.data.rules.checker import Checker, kind_of
from ptcli.data.rules.digests import PRIME, seed_of
from ptcli.data.rules.pairs import FEW, MOST, score_columns

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Digests = NDArray[np.uint64]

_LONGEST = 8 << 20
"""Bytes of a block, which has a long line then, beyond which it is not parsed: that takes several times its size."""
_LEAST_SURE = 0.5
"""Share of a block's rows below which they are better looked at together than one by one."""
_MOST_MISSES = 5
_WINDOW = 64
"""Bytes of two texts that are compared at once."""
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_TYPES: Mapping[Kind, Any] = {
    "str": pa.string(), "chat": pa.list_(_MESSAGE), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(),
}  # fmt: skip


# --- lines -----------------------------------------------------------------------------------------------------------


class Lines(Sequence[bytes]):
    """The lines of a block, each of which begins and ends as one object does: cut off when they are asked for."""

    def __init__(self, data: bytes, ends: Ints):
        self.data, self.ends = data, ends
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


def lines_of(data: bytes) -> Lines | None:
    """The lines of a block; None where some are blank, or no objects written in one line each."""
    if not (data.startswith(b"{") and data.endswith((b"}", b"}\n"))) or len(data) > _LONGEST:
        return None
    letters = np.frombuffer(data, np.uint8)
    ends = _places(letters == ord("\n"))
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    # Two objects that follow each other do not stand inside another, so that no row spans two lines.
    regular = (letters[ends - 1] == ord("}")).all() and (letters[ends[:-1] + 1] == ord("{")).all()
    return Lines(data, ends) if regular else None


def _places(found: Mask) -> Ints:
    """Where a mask is true, which is at few places: `np.flatnonzero`, but that eight are passed over at once."""
    size = len(found) // _WORD * _WORD
    words = np.flatnonzero(found[:size].view(np.uint64) != 0)
    within, at = np.nonzero(found[:size].reshape(-1, _WORD)[words])
    return np.concatenate((words[within] * _WORD + at, size + np.flatnonzero(found[size:])))


_WORD = 8


# --- blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What is told of the rows of a block."""

    sure: Mask
    """Rows that are plainly good."""
    digests: Digests
    """Of the rows that are, as `digests.digest` has them."""
    glued: Mask | None = None
    """Rows whose prompt and answer meet without a space, where that counts."""


class Layouts:
    """Those of a run, by schema and by what the other columns hold."""

    def __init__(self, schemas: Schemas):
        self.schemas = schemas
        self._known: dict[tuple[Schema, tuple[Kind, ...]], Layout | None] = {}

    def of(self, schema: Schema, kinds: tuple[Kind, ...]) -> Layout | None:
        key = (schema, kinds)
        if key not in self._known:
            judge = _judge_of(schema, self.schemas.facts.rewarded)
            taken = judge is not None and _TYPES.keys() >= set(kinds) - {"chat"} and "chat" not in kinds
            self._known[key] = Layout(schema, kinds, judge) if judge is not None and taken else None
        return self._known[key]


def look(lines: Lines, checker: Checker, layouts: Layouts, slow: Callable[[int], Row | None]) -> None:
    """As `fast.look`."""
    first = slow(0)
    schema = layouts.schemas.of(first) if first is not None else None
    if first is not None and schema is not None:
        kinds = tuple(kind_of(first[name]) for name in schema.names)
        layout = layouts.of(schema, kinds)
        judged = layout.judge(lines) if layout is not None else None
        if judged is not None:
            rows = GoodRows(checker.profile, fast.ALL_SEARCHES)
            rows.counts[schema] = {kinds: 0}
            _take(judged, lines, rows, schema, kinds, slow)
            rows.add_counts()
            return
    fast.go_on(lines, GoodRows(checker.profile, fast.searches(lines.data)), layouts.schemas, slow, 1, schema)


def _take(
    judged: Judged,
    lines: Lines,
    rows: GoodRows,
    schema: Schema,
    kinds: tuple[Kind, ...],
    slow: Callable[[int], Row | None],
) -> None:
    """Counts the rows after the first one, in order."""
    sure, glued = judged.sure, judged.glued
    if glued is not None and not rows.knows_glued and glued.any():
        sure[np.argmax(glued)] = False  # the hit has the words of the first one
    start = 1
    for number in (*np.flatnonzero(~sure).tolist(), len(sure)):
        if number > start:
            rows.add_sure(start, array("Q", judged.digests[start:number].tobytes()), schema, kinds)
            for at in np.flatnonzero(glued[start:number]) if glued is not None else ():
                rows.count_glued(start + int(at))
        if 0 < number < len(sure) and not rows.takes(lines[number], number, schema):
            slow(number)
        start = max(number + 1, 1)


class Layout:
    """How blocks are parsed and judged whose first row has certain columns."""

    def __init__(self, schema: Schema, kinds: tuple[Kind, ...], judge: _Judge):
        self._schema, self._judge = schema, judge
        self._types = {name: _TYPES[kind] for name, kind in (*schema.kinds, *zip(schema.names, kinds, strict=True))}
        self._kinds = dict(zip(schema.names, kinds, strict=True))
        self._misses = self._skipped = 0

    def judge(self, lines: Lines) -> Judged | None:
        """What is told of the rows; None where that is too little."""
        if self._skipped < 2**self._misses - 1:  # trying costs something, too
            self._skipped += 1
            return None
        self._skipped = 0
        judged = self._judge_all(lines)
        few = judged is None or judged.sure.mean() < _LEAST_SURE
        self._misses = min(self._misses + 1, _MOST_MISSES) if few else 0
        return None if few else judged

    def _judge_all(self, lines: Lines) -> Judged | None:
        table = self._parse(lines.data)
        if table is None or table.num_rows != len(lines) or any(each.num_chunks != 1 for each in table.columns):
            return None
        columns = {name: table[name].chunk(0) for name in table.column_names}
        sure = np.ones(len(lines), np.bool_)
        for name, column in columns.items():
            if column.null_count:
                sure &= column.is_valid().to_numpy(zero_copy_only=False)
            if self._kinds.get(name) in ("int", "float"):
                sure &= self._are_of_kind(name, column, lines)
        for one, other in score_columns(self._schema.plan.columns):
            sure &= _not_less(columns[one], columns[other])
        judged = self._judge(columns)
        return Judged(judged.sure & sure, judged.digests, judged.glued) if judged is not None else None

    def _parse(self, data: bytes) -> Any:
        """The table of a block; None where it is not of these columns and types."""
        columns = pa.schema(list(self._types.items()))
        how = pyarrow.json.ParseOptions(explicit_schema=columns, unexpected_field_behavior="error")
        whole = pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        try:
            table = pyarrow.json.read_json(pa.BufferReader(data), read_options=whole, parse_options=how)
            if not data.isascii():
                table.validate(full=True)  # Arrow reads broken UTF-8, too
            return table
        except (pa.ArrowException, OSError, ValueError):
            self._types |= {name: _TYPES["float"] for name, kind in self._kinds.items() if kind == "int"}
            return None

    def _are_of_kind(self, name: str, column: Any, lines: Lines) -> Mask:
        """Which numbers are written as the first row has them: with or without a fraction or an exponent."""
        if column.type == _TYPES["int"]:
            return np.ones(len(lines), np.bool_)
        values = _floats(column)
        with np.errstate(invalid="ignore"):
            fractions = np.isfinite(values) & (values != np.floor(values))
        if self._kinds[name] == "float" and fractions.all():
            return fractions
        written = lines.data.split(b'"' + name.encode() + b'":')[1:]
        if len(written) != len(lines):  # written otherwise, or in a text, too
            return fractions if self._kinds[name] == "float" else np.zeros(len(lines), np.bool_)
        whole = np.fromiter((_INTEGER.match(number) is not None for number in written), np.bool_, len(lines))
        if self._kinds[name] == "int":
            return whole & (np.abs(values) < 2**62)  # there are no larger ones in all ways of reading
        return ~whole & np.isfinite(values)


_INTEGER = re.compile(rb"\s*-?[0-9]+\s*[,}]")


def _floats(column: Any) -> NDArray[np.float64]:
    """Numbers; NaN where there is none."""
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def _not_less(better: Any, worse: Any) -> Mask:
    """Rows whose first number is surely not the lower one."""
    types = {better.type, worse.type}
    if not types <= {_TYPES["int"], _TYPES["float"]}:
        return np.zeros(len(better), np.bool_)
    one, other = _floats(better), _floats(worse)
    return one >= other if types == {_TYPES["float"]} else one > other  # large integers are rounded


# --- columns ---------------------------------------------------------------------------------------------------------

_ALPHANUMERIC: Mask = np.array([chr(code).isalnum() and code < 128 for code in range(256)])
_SPACE: Mask = np.array([chr(code) in " \n" for code in range(256)])
_PUNCTUATED: Mask = np.array([33 <= code < 127 for code in range(256)])
"""Letters, digits and punctuation: everything that ASCII prints, but the space."""
_TEMPLATE_TOKENS = re.compile(rb"<(?:[|<]|/?s>|(?:start|end)_of|(?:bos|eos)>)"), re.compile(rb"INST\]")
_BROKEN = re.compile(rb"\xc3(?:\x83\xc2|\xa2\xe2\x82\xac)"), re.compile(rb"\xef\xbf\xbd")
"""Wherever `text.plain` objects to a text, one of these is found, or a control character; not the other way round."""
_LEAD = 3
"""Bytes at the beginning of a text among which its first letter is looked for."""


class Texts:
    """A column of texts, or the contents of all messages of one."""

    def __init__(self, column: Any):
        _, offsets, data = column.buffers()
        self.data = memoryview(data) if data is not None else memoryview(b"")
        self.bytes: NDArray[np.uint8] = np.frombuffer(self.data, np.uint8)
        self.offsets: Ints = np.frombuffer(offsets, np.int32)[: len(column) + 1].astype(np.int64)
        self.starts, self.ends = self.offsets[:-1], self.offsets[1:]
        self.lengths = self.ends - self.starts

    def text(self, number: int) -> str:
        return str(self.data[self.starts[number] : self.ends[number]], "utf-8", "replace")

    def at(self, places: Ints) -> NDArray[np.uint8]:
        """The bytes at these places; any byte for a place outside."""
        return self.bytes[np.clip(places, 0, len(self.bytes) - 1)] if len(self.bytes) else np.zeros_like(places, "u1")

    @cached_property
    def last(self) -> NDArray[np.uint8]:
        """The last byte of each; any byte of one that is empty."""
        return self.at(self.ends - 1)

    @cached_property
    def lead(self) -> Ints:
        """The bytes of space before the first letter or digit; -1 where that is not told."""
        lead = np.full(len(self.starts), -1)
        left = np.arange(len(self.starts))
        for count in range(_LEAD):
            letters = self.at(self.starts[left] + count)
            left, letters = left[(inside := self.lengths[left] > count)], letters[inside]
            lead[left[_ALPHANUMERIC[letters]]] = count
            left = left[_SPACE[letters]]
        return lead

    @cached_property
    def good(self) -> Mask:
        """Texts with something to say, which is no JSON, and neither template tokens nor broken characters."""
        good = self.lead >= 0
        for number in np.flatnonzero(~good):
            good[number] = fast.good_answer(self.text(number))
        for places in self._suspicious():
            good[np.searchsorted(self.ends, places, side="right")] = False
        return good

    def _suspicious(self) -> Iterator[Ints]:
        """Places in texts that `text.plain` may object to."""
        codes, data = self.bytes, bytes(self.data)
        if len(codes) and (codes.min() < 9 or (codes - np.uint8(11)).min() < 32 - 11):  # more than tabs and line ends
            yield np.flatnonzero((codes < 32) & (codes != ord("\t")) & (codes != ord("\n")) & (codes != ord("\r")))
        inside, square = _TEMPLATE_TOKENS
        patterns = [inside] if b"<" in data else []
        if b"]" in data and ((codes[:-1] == ord("T")) & (codes[1:] == ord("]"))).any():
            patterns.append(square)
        if not data.isascii():
            patterns += _BROKEN
        for pattern in patterns:
            # What is found may begin in one text and end in the next, where it hides what begins there.
            found = [place for match in pattern.finditer(data) for place in (match.start(), match.end() - 1)]
            yield np.array(found, np.int64)

    def digests(self) -> Digests:
        return _digests(self.data, self.starts, self.ends)


_digest = xxhash.xxh3_64_digest


def _digests(data: memoryview, starts: Ints, ends: Ints, seeds: Iterable[int] = repeat(0)) -> Digests:
    """Of pieces of some data: the only thing that is made piece by piece, so it is made quickly."""
    places = zip(starts.tolist(), ends.tolist(), seeds, strict=False)
    hashes = [_digest(data[start:end], seed) for start, end, seed in places]
    return np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64)


_SYSTEM, _USER, _ASSISTANT, _OTHER = range(4)
_ROLES = {"system": _SYSTEM, "user": _USER, "assistant": _ASSISTANT}


class Chats:
    """A column of chats."""

    def __init__(self, column: Any):
        messages = column.values
        self.offsets: Ints = np.frombuffer(column.buffers()[1], np.int32)[: len(column) + 1].astype(np.int64)
        self.first, self.beyond = self.offsets[:-1], self.offsets[1:]
        self.counts = self.beyond - self.first
        self.contents = Texts(messages.field("content"))
        self.roles = _codes(Texts(messages.field("role")))
        if len(messages) != self.offsets[-1]:
            raise ValueError
        self._whole = ~np.zeros(len(messages), np.bool_)
        for each in (messages, messages.field("role"), messages.field("content")):
            if each.null_count:
                self._whole &= each.is_valid().to_numpy(zero_copy_only=False)

    @cached_property
    def last(self) -> Ints:
        """The number of each chat's last message; any number for one that is empty."""
        return np.clip(self.beyond - 1, 0, max(len(self.roles) - 1, 0))

    def every(self, messages: Mask) -> Mask:
        """Chats all of whose messages are among these."""
        bad = np.flatnonzero(~messages)
        every = self.counts > 0
        every[np.searchsorted(self.beyond, bad, side="right")] = False
        return every

    @cached_property
    def has_system(self) -> Mask:
        """Chats that begin with a system message."""
        begins = np.clip(self.first, 0, max(len(self.roles) - 1, 0))
        return (self.roles[begins] == _SYSTEM) & (self.counts > 0)

    def good(self, last: int) -> Mask:
        """An optional system message, then user and assistant in turn, to this last one."""
        if not len(self.roles):
            return np.zeros(len(self.counts), np.bool_)
        turn = np.arange(len(self.roles)) - np.repeat(self.first + self.has_system, self.counts)
        ordered = np.where(turn >= 0, self.roles == _USER + (turn & 1), self.roles == _SYSTEM)
        return self.every(ordered & self._whole & self.contents.good) & (self.roles[self.last] == last)

    def good_answers(self) -> Mask:
        """One message of the assistant."""
        if not len(self.roles):
            return np.zeros(len(self.counts), np.bool_)
        good = self._whole & self.contents.good & (self.roles == _ASSISTANT)
        return (self.counts == 1) & self.every(good)

    def digests(self, *, answers: bool = False) -> Digests:
        """As `digests.of_chat` has them of chats that are good, or of good answers."""
        offsets = self.contents.offsets
        seeds = repeat(seed_of(("assistant",))) if answers else self._seeds()
        return _digests(self.contents.data, offsets[self.first], offsets[self.beyond], seeds)

    def _seeds(self) -> list[int]:
        patterns = 2 * self.counts + self.has_system
        seeds = {pattern: seed_of(_turns(pattern)) for pattern in np.flatnonzero(np.bincount(patterns)).tolist()}
        return [seeds[pattern] for pattern in patterns.tolist()]


def _turns(pattern: int) -> tuple[str, ...]:
    """The roles of a good chat, given twice the number of its messages, and one more where it has a system message."""
    system = pattern % 2
    turns = ("user", "assistant") * (pattern // 4 + 1)
    return ("system",) * system + turns[: pattern // 2 - system]


def _codes(roles: Texts) -> Ints:
    """The roles of messages as numbers. Arrow's own functions would do, but take long to import."""
    codes = np.full(len(roles.starts), _OTHER)
    if len(roles.bytes) < _FOUR:
        return codes
    fours: NDArray[np.uint32] = np.ndarray((len(roles.bytes) - _FOUR + 1,), "<u4", roles.data, strides=(1,))
    begin, end = (fours[np.clip(at, 0, len(fours) - 1)] for at in (roles.starts, roles.ends - _FOUR))
    fifth = roles.at(roles.starts + _FOUR)
    for role, code in _ROLES.items():
        name = role.encode()
        same = (roles.lengths == len(name)) & (begin == _number(name[:_FOUR])) & (end == _number(name[-_FOUR:]))
        # No name has more than nine letters: what is not in the first or the last four is the fifth.
        codes[same & (fifth == name[_FOUR]) if len(name) > 2 * _FOUR else same] = code
    return codes


_FOUR = 4


def _number(letters: bytes) -> int:
    return int.from_bytes(letters, "little")


# --- judges ----------------------------------------------------------------------------------------------------------

_Judge = Callable[[Mapping[str, Any]], Judged | None]


def _judge_of(schema: Schema, rewarded: bool) -> _Judge | None:
    """What is asked of the values that are read; None where that is not asked here."""
    plan = schema.plan
    form, kinds = plan.form, {dict(schema.kinds)[name] for name in plan.values}
    unasked = (rewarded and schema.names) or "label" in schema.names or set(plan.read) != set(plan.values)
    if unasked or len(kinds) != 1 or (schema.label is not None):
        return None
    chats = kinds == {"chat"}
    if form in ("messages", "prompt", "text"):
        last = _ASSISTANT if form == "messages" else _USER
        return _chat(plan.values[0], last) if chats else _text(plan.values[0])
    if form not in ("pairs", "prompt-completion"):
        return None
    if not plan.explicit:
        return _chat_pair if chats else _text_pair
    answers = tuple(name for name in plan.values if name != "prompt")
    return (
        _prompted_chats(plan.read, answers) if chats else _prompted_texts(plan.read, answers, schema.glued is not None)
    )


def _combined(digests: Sequence[Digests]) -> Digests:
    """As `digests.combine`."""
    result = digests[0]
    for each in digests[1:]:
        result = (result * np.uint64(PRIME)) ^ each
    return result


def _text(name: str) -> _Judge:
    def judge(columns: Mapping[str, Any]) -> Judged:
        texts = Texts(columns[name])
        return Judged(texts.good, texts.digests())

    return judge


def _chat(name: str, last: int) -> _Judge:
    def judge(columns: Mapping[str, Any]) -> Judged:
        chats = Chats(columns[name])
        return Judged(chats.good(last), chats.digests())

    return judge


def _prompted_chats(read: Sequence[str], answers: Sequence[str]) -> _Judge:
    """A prompt and answers of one message each."""

    def judge(columns: Mapping[str, Any]) -> Judged:
        chats = {name: Chats(columns[name]) for name in read}
        sure = chats["prompt"].good(_USER)
        for name in answers:
            sure &= chats[name].good_answers()
        digests = {name: chats[name].digests(answers=name in answers) for name in read}
        if len(answers) == 2:
            one, other = (chats[name] for name in answers)
            sure &= _differ(sure, one.contents, one.last, other.contents, other.last)
        return Judged(sure, _combined([digests[name] for name in read]))

    return judge


def _chat_pair(columns: Mapping[str, Any]) -> Judged:
    """Two conversations that differ in the last turn."""
    one, other = Chats(columns["chosen"]), Chats(columns["rejected"])
    sure = one.good(_ASSISTANT) & other.good(_ASSISTANT)
    sure &= (one.counts == other.counts) & (one.has_system == other.has_system)
    sure &= _same_before_last(sure, one, other)
    sure &= _differ(sure, one.contents, one.last, other.contents, other.last)
    return Judged(sure, _combined([one.digests(), other.digests()]))


def _same_before_last(rows: Mask, one: Chats, other: Chats) -> Mask:
    """Which of these rows have the same contents before the last message of as many."""
    same = rows.copy()
    if np.array_equal(one.offsets, other.offsets):
        equal = one.contents.lengths == other.contents.lengths
        equal[one.last] = True
        same &= one.every(equal)
    else:
        for row in np.flatnonzero(rows).tolist():
            ranges = (slice(chats.first[row], chats.last[row]) for chats in (one, other))
            mine, others = (chats.contents.lengths[each] for chats, each in zip((one, other), ranges, strict=True))
            same[row] = np.array_equal(mine, others)
    shared = [
        (chats.contents.offsets[chats.first].tolist(), chats.contents.offsets[chats.last].tolist())
        for chats in (one, other)
    ]
    data, other_data = bytes(one.contents.data), bytes(other.contents.data)
    equals = [data[a:b] == other_data[c:d] for a, b, c, d in zip(*shared[0], *shared[1], strict=True)]
    return same & np.array(equals, np.bool_)


def _differ(rows: Mask, one: Texts, ones: Ints | slice, other: Texts, others: Ints | slice) -> Mask:
    """Which of these rows have two texts that differ in more than space around them."""
    lead, other_lead = one.lead[ones], other.lead[others]
    plain = (lead >= 0) & (other_lead >= 0) & _PUNCTUATED[one.last[ones]] & _PUNCTUATED[other.last[others]]
    differ = plain & (one.lengths[ones] - lead != other.lengths[others] - other_lead)
    numbers, other_numbers = np.arange(len(one.starts))[ones], np.arange(len(other.starts))[others]
    for row in np.flatnonzero(rows & ~differ).tolist():
        differ[row] = one.text(numbers[row]).strip() != other.text(other_numbers[row]).strip()
    return differ


_ALL = slice(None)


def _prompted_texts(read: Sequence[str], answers: Sequence[str], counts_glued: bool) -> _Judge:
    """A prompt and answers that do not repeat it."""

    def judge(columns: Mapping[str, Any]) -> Judged:
        texts = {name: Texts(columns[name]) for name in read}
        prompt = texts["prompt"]
        sure = prompt.good & ~((prompt.last == ord(" ")) | (prompt.last == ord("\t")))
        glued = np.zeros(len(sure), np.bool_)
        for answer in (texts[name] for name in answers):
            sure &= answer.good
            sure &= _not_repeated(sure, prompt, answer)
            begin = answer.at(answer.starts)
            if counts_glued:
                sure &= (begin < 128) & (prompt.last < 128)
                glued |= _ALPHANUMERIC[begin] & _PUNCTUATED[prompt.last]
        if len(answers) == 2:
            one, other = (texts[name] for name in answers)
            sure &= _differ(sure, one, _ALL, other, _ALL)
        digests = _combined([texts[name].digests() for name in read])
        return Judged(sure, digests, glued if counts_glued else None)

    return judge


def _not_repeated(rows: Mask, prompt: Texts, answer: Texts) -> Mask:
    """Which of these rows have an answer that does not begin with the prompt."""
    apart = (answer.lengths < prompt.lengths) | (answer.at(answer.starts) != prompt.at(prompt.starts))
    for row in np.flatnonzero(rows & ~apart).tolist():
        apart[row] = not answer.text(row).startswith(prompt.text(row))
    return apart


def _text_pair(columns: Mapping[str, Any]) -> Judged:
    """Two texts that share a beginning which looks like a prompt."""
    one, other = Texts(columns["chosen"]), Texts(columns["rejected"])
    sure = one.good & other.good & (one.lead >= 0)
    shared = _shared(one, other)
    # After a space or line end a letter begins, so that the letters that are shared are these bytes, too.
    sure &= _SPACE[one.at(one.starts + shared - 1)] & (shared > one.lead)
    letters = _letters(one, one.lengths), _letters(other, other.lengths), _letters(one, shared)
    shorter = np.minimum(letters[0], letters[1])
    sure &= (shorter - letters[2] >= FEW) & (letters[2] <= MOST * shorter)
    sure &= _differ(sure, one, _ALL, other, _ALL)
    return Judged(sure, _combined([one.digests(), other.digests()]))


def _letters(texts: Texts, lengths: Ints) -> Ints:
    """Letters of the first so many bytes of each text."""
    if not (texts.bytes > 127).any():
        return lengths
    begin = np.concatenate(([0], np.cumsum((texts.bytes & 0xC0) != 0x80)))
    return begin[texts.starts + lengths] - begin[texts.starts]


def _shared(one: Texts, other: Texts) -> Ints:
    """The bytes that two texts share at their beginning."""
    most = np.minimum(one.lengths, other.lengths)
    shared = np.zeros_like(most)
    windows = [_windows(texts) for texts in (one, other)]
    rows = np.arange(len(most))
    while len(rows):
        mine, others = (
            each[texts.starts[rows] + shared[rows]] for each, texts in zip(windows, (one, other), strict=True)
        )
        apart = mine.view(np.uint8).reshape(-1, _WINDOW) != others.view(np.uint8).reshape(-1, _WINDOW)
        first = apart.argmax(axis=1)
        ended = apart[np.arange(len(rows)), first]
        shared[rows] += np.where(ended, first, _WINDOW)
        rows = rows[~ended & (shared[rows] < most[rows])]
    return np.minimum(shared, most)


def _windows(texts: Texts) -> NDArray[np.void]:
    """The bytes from each place on."""
    padded = np.concatenate((texts.bytes, np.zeros(_WINDOW, np.uint8)))
    return np.ndarray((len(texts.bytes) + 1,), f"V{_WINDOW}", padded, strides=(1,))
