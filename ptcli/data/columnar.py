"""Plainly good rows of large files of JSON Lines, told a column at a time.

Made because `ptcli.data.fast` spends more on the Python objects of a row than on reading it: here `ptcli.data.scan`
finds the columns of a whole block, and NumPy looks at their offsets and bytes, so that only the digest is made row by
row. What is not told this way (`sure` is False) goes to `ptcli.data.fast`, and a block most of whose rows are not goes
there whole: whatever is not understood here is slow, not wrong.

Imports numpy and pyarrow, which takes longer than reading a small file: only to be imported where there is a large one.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise, repeat

import numpy as np
import xxhash
from numpy.typing import NDArray

from ptcli.data import fast, scan
from ptcli.data.fast import GoodRows, Schema, Schemas
from ptcli.data.model import Kind, Row
from ptcli.data.rules.checker import Checker, kind_of
from ptcli.data.rules.digests import PRIME, seed_of
from ptcli.data.rules.pairs import FEW, MOST, score_columns
from ptcli.data.scan import ASSISTANT, SYSTEM, USER, Columns, Lines, Messages, Numbers, Pieces

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Digests = NDArray[np.uint64]

_LEAST_SURE = 0.5
"""Share of a block's rows below which they are better looked at together than one by one."""
_MOST_MISSES = 5
_WINDOW = 64
"""Bytes of two texts that are compared at once."""
_KINDS: Mapping[Kind, str] = {"str": "str", "chat": "chat", "bool": "number", "int": "number", "float": "number"}
"""How columns are written that hold something."""


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

    def spread(self, rows: Mask) -> Judged:
        """The same for more rows, of which these are the ones that it is known of."""
        sure, digests = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.uint64)
        sure[rows], digests[rows] = self.sure, self.digests
        if self.glued is None:
            return Judged(sure, digests)
        glued = np.zeros(len(rows), np.bool_)
        glued[rows] = self.glued
        return Judged(sure, digests, glued)


class Layouts:
    """Those of a run, by schema, what the other columns hold, and the order of all."""

    def __init__(self, schemas: Schemas):
        self.schemas = schemas
        self._known: dict[tuple[Schema, tuple[Kind, ...], tuple[str, ...]], Layout | None] = {}

    def of(self, schema: Schema, kinds: tuple[Kind, ...], order: tuple[str, ...]) -> Layout | None:
        key = (schema, kinds, order)
        if key not in self._known:
            judge = _judge_of(schema, self.schemas.facts.rewarded)
            taken = judge is not None and _KINDS.keys() >= set(kinds) - {"chat"} and "chat" not in kinds
            self._known[key] = Layout(schema, kinds, order, judge) if judge is not None and taken else None
        return self._known[key]


def look(lines: Lines, checker: Checker, layouts: Layouts, slow: Callable[[int], Row | None]) -> None:
    """As `fast.look`."""
    first = slow(0)
    schema = layouts.schemas.of(first) if first is not None else None
    if first is not None and schema is not None:
        kinds = tuple(kind_of(first[name]) for name in schema.names)
        layout = layouts.of(schema, kinds, tuple(first))
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
    """How blocks are read and judged whose first row has certain columns."""

    def __init__(self, schema: Schema, kinds: tuple[Kind, ...], order: tuple[str, ...], judge: _Judge):
        self._schema, self._judge = schema, judge
        self._kinds = dict(zip(schema.names, kinds, strict=True))
        written = {name: _KINDS[kind] for name, kind in (dict(schema.kinds) | self._kinds).items()}
        self._columns = [(name, written[name]) for name in order]
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
        columns = scan.read(lines, self._columns, self._schema.plan.read)
        if columns is None or columns.regular.mean() < _LEAST_SURE:
            return None
        judged = self._judge(Table(columns))
        sure = judged.sure
        for name, numbers in columns.numbers.items():
            sure &= _are_of_kind(self._kinds[name], numbers)
        for one, other in score_columns(self._schema.plan.columns):
            sure &= _not_less(columns.numbers.get(one), columns.numbers.get(other), sure)
        return judged if columns.regular.all() else judged.spread(columns.regular)


def _are_of_kind(kind: Kind, numbers: Numbers) -> Mask:
    """Which numbers are written as the first row has them: with or without a fraction or an exponent."""
    if kind == "bool":
        return numbers.truth
    if kind == "int":
        return numbers.whole & (np.abs(numbers.values) < 2**62)  # there are no larger ones in all ways of reading
    return ~numbers.whole & np.isfinite(numbers.values)


def _not_less(better: Numbers | None, worse: Numbers | None, rows: Mask) -> Mask:
    """Rows whose first number is surely not the lower one."""
    if better is None or worse is None:
        return np.zeros_like(rows)
    with np.errstate(invalid="ignore"):
        equal = (better.values == worse.values) & (np.abs(better.values) < 2**53)  # large integers are rounded
        return (better.values > worse.values) | equal


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
    """Texts that stand in one buffer, in order: all of a block, or those of a column."""

    def __init__(self, pieces: Pieces, of: tuple[Texts, Ints] | None = None):
        self._of = of
        """More texts in the same buffer, and which of them these are."""
        self.pieces = pieces
        self.bytes: NDArray[np.uint8] = np.frombuffer(pieces.buffer, np.uint8)
        self.starts, self.ends = pieces.starts, pieces.ends
        self.lengths = self.ends - self.starts

    def some(self, numbers: Ints) -> Texts:
        """Those of these numbers."""
        starts, ends = self.starts[numbers], self.ends[numbers]
        return Texts(replace(self.pieces, starts=starts, ends=ends), (self, numbers))

    def text(self, number: int) -> str:
        return str(self.pieces.buffer[self.starts[number] : self.ends[number]], "utf-8")

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
        if self._of is not None:
            return self._of[0].lead[self._of[1]]
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
        if self._of is not None:
            return self._of[0].good[self._of[1]]
        good = self.lead >= 0
        for number in np.flatnonzero(~good):
            good[number] = fast.good_answer(self.text(number))
        for places in self._suspicious():
            good[np.searchsorted(self.ends, places, side="right")] = False
        return good

    def _suspicious(self) -> Iterator[Ints]:
        """Places in texts that `text.plain` may object to."""
        codes, pieces = self.bytes, self.pieces
        if not pieces.plain:
            yield np.flatnonzero((codes < 32) & (codes != ord("\t")) & (codes != ord("\n")) & (codes != ord("\r")))
        inside, square = _TEMPLATE_TOKENS
        patterns = [inside] if pieces.angles else []
        if (self.at(scan.places(codes == ord("]")) - 1) == ord("T")).any():
            patterns.append(square)
        if not pieces.plain and not pieces.data.isascii():
            patterns += _BROKEN
        for pattern in patterns:
            # What is found may begin in one text and end in the next, where it hides what begins there.
            found = [place for match in pattern.finditer(pieces.data) for place in (match.start(), match.end() - 1)]
            yield np.array(found, np.int64)

    def part(self) -> Part:
        return Part(self.pieces.buffer, self.starts, self.ends, np.zeros(1, np.uint64))


@dataclass(frozen=True)
class Part:
    """What a column adds to the digests of rows."""

    data: memoryview
    starts: Ints
    ends: Ints
    """Where in the data each row's part is."""
    seeds: Digests
    """One, or one for each row."""


def _digests(parts: Sequence[Part]) -> Digests:
    """As `digests.of_parts`: the only thing that is made row by row, so it is made quickly."""
    data, seeds = parts[0].data, _combined([part.seeds for part in parts])
    if all(np.array_equal(one.ends, other.starts) for one, other in pairwise(parts)):
        begins, ends = parts[0].starts.tolist(), parts[-1].ends.tolist()
    else:
        data, begins, ends = _behind_each_other(parts)
    seeded = seeds.tolist() if len(seeds) > 1 else repeat(int(seeds[0]), len(begins))
    places = zip(begins, ends, seeded, strict=True)
    found = b"".join([_digest(data[begin:end], seed) for begin, end, seed in places])
    lengths = [(part.ends - part.starts).astype(np.uint64) for part in parts[:-1]]
    return _combined([np.frombuffer(found, ">u8").astype(np.uint64), *lengths])


_digest = xxhash.xxh3_64_digest


def _behind_each_other(parts: Sequence[Part]) -> tuple[memoryview, list[int], list[int]]:
    """The parts of every row, one row behind the other, with where these begin and end."""
    columns = [map(slice, part.starts.tolist(), part.ends.tolist()) for part in parts]
    slices = chain.from_iterable(zip(*columns, strict=True))
    ends = np.cumsum(sum(part.ends - part.starts for part in parts))
    return memoryview(b"".join(map(parts[0].data.__getitem__, slices))), [0, *ends[:-1].tolist()], ends.tolist()


def _combined(numbers: Sequence[Digests]) -> Digests:
    """As `digests.combine`."""
    result = np.zeros(1, np.uint64)
    for each in numbers:
        result = (result * np.uint64(PRIME)) ^ each
    return result


class Chats:
    """A column of chats, none of which is empty."""

    def __init__(self, messages: Messages, texts: Texts):
        self.counts, self.roles = messages.counts, messages.roles
        self.contents = texts.some(messages.contents)
        self.beyond = np.cumsum(self.counts)
        self.first = self.beyond - self.counts
        self.last = self.beyond - 1

    def every(self, messages: Mask) -> Mask:
        """Chats all of whose messages are among these."""
        bad = np.flatnonzero(~messages)
        every = np.ones(len(self.counts), np.bool_)
        every[np.searchsorted(self.beyond, bad, side="right")] = False
        return every

    @cached_property
    def has_system(self) -> Mask:
        """Chats that begin with a system message."""
        return self.roles[self.first] == SYSTEM

    def good(self, last: int) -> Mask:
        """An optional system message, then user and assistant in turn, to this last one."""
        turn = np.arange(len(self.roles)) - np.repeat(self.first + self.has_system, self.counts)
        ordered = np.where(turn >= 0, self.roles == USER + (turn & 1), self.roles == SYSTEM)
        return self.every(ordered & self.contents.good) & (self.roles[self.last] == last)

    def good_answers(self) -> Mask:
        """One message of the assistant."""
        good = self.contents.good & (self.roles == ASSISTANT)
        return (self.counts == 1) & self.every(good)

    def part(self, *, answers: bool = False) -> Part:
        """As `digests.chat_part` has it of chats that are good, or of good answers."""
        contents = self.contents
        seeds = np.array([seed_of(("assistant",))], np.uint64) if answers else self._seeds()
        return Part(contents.pieces.buffer, contents.starts[self.first], contents.ends[self.last], seeds)

    def _seeds(self) -> Digests:
        patterns = 2 * self.counts + self.has_system
        some = np.flatnonzero(np.bincount(patterns))
        seeds = np.zeros(some[-1] + 1, np.uint64)
        seeds[some] = [seed_of(_turns(pattern)) for pattern in some.tolist()]
        return seeds[patterns]


def _turns(pattern: int) -> tuple[str, ...]:
    """The roles of a good chat, given twice the number of its messages, and one more where it has a system message."""
    system = pattern % 2
    turns = ("user", "assistant") * (pattern // 4 + 1)
    return ("system",) * system + turns[: pattern // 2 - system]


class Table:
    """The columns that are judged."""

    def __init__(self, columns: Columns):
        texts = Texts(columns.pieces)
        self.texts = {name: texts.some(numbers) for name, numbers in columns.texts.items()}
        self.chats = {name: Chats(messages, texts) for name, messages in columns.chats.items()}


# --- judges ----------------------------------------------------------------------------------------------------------

_Judge = Callable[[Table], Judged]


def _judge_of(schema: Schema, rewarded: bool) -> _Judge | None:
    """What is asked of the values that are read; None where that is not asked here."""
    plan = schema.plan
    form, kinds = plan.form, {dict(schema.kinds)[name] for name in plan.values}
    unasked = (rewarded and schema.names) or "label" in schema.names or set(plan.read) != set(plan.values)
    if unasked or len(kinds) != 1 or (schema.label is not None):
        return None
    chats = kinds == {"chat"}
    if form in ("messages", "prompt", "text"):
        last = ASSISTANT if form == "messages" else USER
        return _chat(plan.values[0], last) if chats else _text(plan.values[0])
    if form not in ("pairs", "prompt-completion"):
        return None
    if not plan.explicit:
        return _chat_pair if chats else _text_pair
    answers = tuple(name for name in plan.values if name != "prompt")
    return (
        _prompted_chats(plan.read, answers) if chats else _prompted_texts(plan.read, answers, schema.glued is not None)
    )


def _text(name: str) -> _Judge:
    def judge(table: Table) -> Judged:
        texts = table.texts[name]
        return Judged(texts.good, _digests([texts.part()]))

    return judge


def _chat(name: str, last: int) -> _Judge:
    def judge(table: Table) -> Judged:
        chats = table.chats[name]
        return Judged(chats.good(last), _digests([chats.part()]))

    return judge


def _prompted_chats(read: Sequence[str], answers: Sequence[str]) -> _Judge:
    """A prompt and answers of one message each."""

    def judge(table: Table) -> Judged:
        chats = table.chats
        sure = chats["prompt"].good(USER)
        for name in answers:
            sure &= chats[name].good_answers()
        if len(answers) == 2:
            one, other = (chats[name] for name in answers)
            sure &= _differ(sure, one.contents, one.last, other.contents, other.last)
        return Judged(sure, _digests([chats[name].part(answers=name in answers) for name in read]))

    return judge


def _chat_pair(table: Table) -> Judged:
    """Two conversations that differ in the last turn."""
    one, other = table.chats["chosen"], table.chats["rejected"]
    sure = one.good(ASSISTANT) & other.good(ASSISTANT)
    sure &= (one.counts == other.counts) & (one.has_system == other.has_system)
    sure &= _same_before_last(sure, one, other)
    sure &= _differ(sure, one.contents, one.last, other.contents, other.last)
    return Judged(sure, _digests([one.part(), other.part()]))


def _same_before_last(rows: Mask, one: Chats, other: Chats) -> Mask:
    """Which of these rows have the same contents before the last message of as many."""
    same = rows.copy()
    if np.array_equal(one.counts, other.counts):
        equal = one.contents.lengths == other.contents.lengths
        equal[one.last] = True
        same &= one.every(equal)
    else:
        for row in np.flatnonzero(rows).tolist():
            ranges = (slice(chats.first[row], chats.last[row]) for chats in (one, other))
            mine, others = (chats.contents.lengths[each] for chats, each in zip((one, other), ranges, strict=True))
            same[row] = np.array_equal(mine, others)
    shared = [
        (chats.contents.starts[chats.first].tolist(), chats.contents.starts[chats.last].tolist())
        for chats in (one, other)
    ]
    data = one.contents.pieces.data
    equals = [data[a:b] == data[c:d] for a, b, c, d in zip(*shared[0], *shared[1], strict=True)]
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

    def judge(table: Table) -> Judged:
        texts = table.texts
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
        digests = _digests([texts[name].part() for name in read])
        return Judged(sure, digests, glued if counts_glued else None)

    return judge


def _not_repeated(rows: Mask, prompt: Texts, answer: Texts) -> Mask:
    """Which of these rows have an answer that does not begin with the prompt."""
    apart = (answer.lengths < prompt.lengths) | (answer.at(answer.starts) != prompt.at(prompt.starts))
    for row in np.flatnonzero(rows & ~apart).tolist():
        apart[row] = not answer.text(row).startswith(prompt.text(row))
    return apart


def _text_pair(table: Table) -> Judged:
    """Two texts that share a beginning which looks like a prompt."""
    one, other = table.texts["chosen"], table.texts["rejected"]
    sure = one.good & other.good & (one.lead >= 0)
    shared = _shared(one, other)
    # After a space or line end a letter begins, so that the letters that are shared are these bytes, too.
    sure &= _SPACE[one.at(one.starts + shared - 1)] & (shared > one.lead)
    letters = _letters(one, one.lengths), _letters(other, other.lengths), _letters(one, shared)
    shorter = np.minimum(letters[0], letters[1])
    sure &= (shorter - letters[2] >= FEW) & (letters[2] <= MOST * shorter)
    sure &= _differ(sure, one, _ALL, other, _ALL)
    return Judged(sure, _digests([one.part(), other.part()]))


def _letters(texts: Texts, lengths: Ints) -> Ints:
    """Letters of the first so many bytes of each text."""
    if texts.pieces.plain:
        return lengths
    begin = np.concatenate(([0], np.cumsum((texts.bytes & 0xC0) != 0x80)))
    return begin[texts.starts + lengths] - begin[texts.starts]


def _shared(one: Texts, other: Texts) -> Ints:
    """The bytes that two texts share at their beginning; 0 where they stand at the very end of the buffer."""
    most = np.minimum(one.lengths, other.lengths)
    shared = np.zeros_like(most)
    places = max(len(one.bytes) - _WINDOW + 1, 0)
    windows = np.ndarray((places,), f"V{_WINDOW}", one.bytes, strides=(1,))
    rows = np.flatnonzero(np.maximum(one.starts, other.starts) + most < places)
    while len(rows):
        mine, others = (windows[texts.starts[rows] + shared[rows]] for texts in (one, other))
        apart = mine.view(np.uint8).reshape(-1, _WINDOW) != others.view(np.uint8).reshape(-1, _WINDOW)
        first = apart.argmax(axis=1)
        ended = apart[np.arange(len(rows)), first]
        shared[rows] += np.where(ended, first, _WINDOW)
        rows = rows[~ended & (shared[rows] < most[rows])]
    return np.minimum(shared, most)
