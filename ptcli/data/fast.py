"""Plainly good rows of JSON Lines: told by typed decoding and little more, and counted as `rules.Checker` counts them.

What such a row is stands in `ptcli.data.rules`. Every other row goes to `Checker`, and so does the first one of a kind
in each block, from which the others are counted on: whatever is not understood here is slow, not wrong.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, Literal

import msgspec

from ptcli.data.model import MOST_ROWS, OTHER_COLUMNS, Kind, Profile, Row, Severity
from ptcli.data.rules.checker import Checker, add_neighbour, kind_of
from ptcli.data.rules.digests import Part, chat_part, of_parts, part_of, text_part
from ptcli.data.rules.facts import Facts, Plan, common, plan_of
from ptcli.data.rules.pairs import score_columns, well_cut
from ptcli.data.rules.shapes import FORMAT_COLUMNS
from ptcli.data.rules.text import glued, has_word, plain

Judge = Callable[[Any, bool], bool]
"""Whether a decoded row is plainly good; the flag says that its line is suspicious, so that texts must be looked at."""

_MOST_SCHEMAS = 64
_LOOKED_AT = frozenset(("margin", "tools", "chat_template_kwargs", "conversations", "image", "images"))
"""Columns whose values rules look at."""
_NO_NAME = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')
"""What msgspec has in no name of a field."""
_FORMS = frozenset(("messages", "text", "prompt", "prompt-completion", "unpaired", "pairs", "steps"))
_GLUED: tuple[str, Severity, str] = ("boundary-whitespace", "warning", "glued")
"""The hit that good rows may have: the first one in a block has the words of the finding, the others are counted."""
_NO_DECODE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


# --- lines -----------------------------------------------------------------------------------------------------------

_SUSPICIOUS = (
    # Escapes of control characters, of `<` and `[`, and of what texts begin with that were decoded wrongly.
    re.compile(rb"\\(?:[bf]|u00(?:[01cCeE]|3[cC]|5[bB])|u[fF]{3}[dD])"),
    # Template tokens, whole or with an escape inside.
    re.compile(rb"<(?:[|<]|/?s>|(?:start|end)_of|(?:bos|eos)>|[/a-z_]{0,12}\\)"),
    re.compile(rb"\[(?:/?INST\]|[/A-Z]{0,5}\\)"),
)
_ESCAPE = re.compile(rb"\\[ubf/]")
_SUSPICIOUS_AS_WRITTEN = _SUSPICIOUS[1:2]
"""What is left to search for without such an escape and without the end of `[INST]`: `[` stands in every chat."""
_SUSPICIOUS_UNICODE = (
    re.compile(rb"\xc3(?:\x83[\xc2\\]|\xa2[\xe2\\])"),
    re.compile(rb"\xef\xbf\xbd"),
)
"""Wherever `text.plain` objects to a text of a line, one of these is found in the line; not the other way round."""

ALL_SEARCHES = [pattern.search for pattern in _SUSPICIOUS + _SUSPICIOUS_UNICODE]

Search = Callable[..., Any]
"""A pattern's `search`."""


def searches(lines: bytes) -> list[Search]:
    """Of a block of lines, what must be searched for in each of them: most blocks have nothing suspicious."""
    patterns: tuple[re.Pattern[bytes], ...] = _SUSPICIOUS_AS_WRITTEN
    if _ESCAPE.search(lines) or b"INST]" in lines:
        patterns = _SUSPICIOUS
    patterns = patterns if lines.isascii() else patterns + _SUSPICIOUS_UNICODE
    return [pattern.search for pattern in patterns if pattern.search(lines)]


# --- blocks ----------------------------------------------------------------------------------------------------------


def look(
    lines: Sequence[bytes], data: bytes, checker: Checker, schemas: Schemas, slow: Callable[[int], Row | None]
) -> None:
    """Counts the plainly good ones among the lines of `data`, and has `slow` look at each of the others.

    `slow` is given the number of a line, and gives back its row, or None where it has none.
    """
    go_on(lines, GoodRows(checker.profile, searches(data)), schemas, slow)


def go_on(
    lines: Sequence[bytes],
    good: GoodRows,
    schemas: Schemas,
    slow: Callable[[int], Row | None],
    begin: int = 0,
    schema: Schema | None = None,
) -> None:
    """The same from the line `begin` on, where rows before it were of this schema."""
    for number in range(begin, len(lines)):
        if schema is None or not good.takes(lines[number], number, schema):
            row = slow(number)
            schema = schemas.of(row) if row is not None else schema
    good.add_counts()


class GoodRows:
    """The plainly good rows of a block."""

    def __init__(self, profile: Profile, suspicious: list[Search]):
        self.profile, self.suspicious = profile, suspicious
        self.counts: dict[Schema, dict[tuple[Kind, ...], int]] = {}
        """Schema -> kinds of its `extras` -> rows, without the first one, which was looked at slowly."""

    def add_sure(self, number: int, digests: array[int], schema: Schema, kinds: tuple[Kind, ...]) -> None:
        """Counts rows that are known to be plainly good, by their digests."""
        self.counts[schema][kinds] += len(digests)
        self._add(number, digests)

    @property
    def knows_glued(self) -> bool:
        """Whether the words of the one hit that good rows may have are there."""
        return _GLUED in self.profile.hits

    def _add(self, number: int, digests: array[int]) -> None:
        profile = self.profile
        if number != profile.rows:
            profile.counts["renumbered"] = 1
        profile.rows += len(digests)
        profile.digests.extend(digests)

    def takes(self, line: bytes, number: int, schema: Schema) -> bool:
        """Whether a line is a plainly good row, which is counted then."""
        try:
            row = schema.decode(line)
        except _NO_DECODE:
            return False
        suspicious = False
        for search in self.suspicious:
            suspicious = suspicious or search(line) is not None
        if not schema.judge(row, suspicious):
            return False
        is_glued = schema.glued is not None and schema.glued(row)
        if (is_glued and not self.knows_glued) or not self._is_known(row, schema):
            return False
        if is_glued:
            self.count_glued(number)
        self._add(number, array("Q", (schema.digest(row),)))
        if schema.label is not None:
            self.profile.labels.append(schema.label(row))
            if schema.completion is not None:
                add_neighbour(self.profile, schema.completion(row))
        return True

    def _is_known(self, row: Any, schema: Schema) -> bool:
        kinds = tuple(map(kind_of, schema.extras(row))) if schema.extras is not None else ()
        counts = self.counts.get(schema)
        if counts is None:
            counts = self.counts[schema] = {}
        if kinds not in counts:
            counts[kinds] = 0
            return False
        counts[kinds] += 1
        return True

    def count_glued(self, number: int) -> None:
        tally = self.profile.hits[_GLUED]
        tally.count += 1
        if len(tally.rows) < MOST_ROWS:
            tally.rows.append(number)

    def add_counts(self) -> None:
        profile = self.profile
        for schema, counts in self.counts.items():
            columns = schema.plan.columns if schema.plan.columns in profile.columns else OTHER_COLUMNS
            for kinds, rows in counts.items():
                profile.columns[columns] += rows
                for name, kind in (*schema.kinds, *zip(schema.names, kinds, strict=True)):
                    if name in profile.kinds:
                        profile.kinds[name][kind] += rows


# --- rows of one kind ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Schema:
    """How rows with certain columns are decoded, judged and counted."""

    plan: Plan
    decode: Callable[[bytes], Any]
    judge: Judge
    digest: Callable[[Any], int]
    """As `digests.digest` has it of the columns that are read."""
    extras: Callable[[Any], tuple[Any, ...]] | None
    """The values of columns that are not decoded as one type."""
    names: tuple[str, ...]
    """The names of these columns."""
    kinds: tuple[tuple[str, Kind], ...]
    """The other columns with what they hold."""
    glued: Callable[[Any], bool] | None
    """Whether prompt and answer meet without a space, which is counted and no more."""
    label: Callable[[Any], int] | None
    completion: Callable[[Any], int] | None
    """The digest of what is scored under its neighbour's prompt, too."""


class Schemas:
    """Those of a run, by columns and by what the values are that rules read."""

    def __init__(self, facts: Facts):
        self.facts = facts
        self._known: dict[tuple[Any, ...], Schema | None] = {}

    def of(self, row: Row) -> Schema | None:
        """The schema of rows like this one; None where such rows are never taken as plainly good."""
        plan = plan_of(tuple(sorted(row)), self.facts)
        if plan.form not in _FORMS:
            return None
        found = tuple(kind_of(row[name]) for name in plan.values)
        key = (plan.columns, found)
        if key not in self._known and len(self._known) < _MOST_SCHEMAS:
            self._known[key] = _Columns(plan, self.facts, found).schema
        return self._known.get(key)


@dataclass(frozen=True)
class _Columns:
    plan: Plan
    facts: Facts
    found: tuple[Kind, ...]
    """What the values are that rules read."""

    @cached_property
    def schema(self) -> Schema | None:
        plan = self.plan
        extras = tuple(name for name in plan.columns if name not in self._typed)
        judge = self._judge
        if judge is None or not _LOOKED_AT.isdisjoint(extras) or not set(FORMAT_COLUMNS).isdisjoint(extras):
            return None
        if any(_NO_NAME.search(name) for name in plan.columns):
            return None
        struct = msgspec.defstruct(
            "_Row",
            [(self._field(name), self._typed[name][1] if name in self._typed else Any) for name in plan.columns],
            rename={self._field(name): name for name in plan.columns},
            forbid_unknown_fields=True,
            gc=False,
        )
        return Schema(
            plan,
            msgspec.json.Decoder(struct).decode,
            self._with_extras(judge, extras),
            self._digest(plan.read),
            self._tuple_of(extras) if extras else None,
            extras,
            tuple((name, kind) for name, (kind, _) in self._typed.items()),
            self._glued,
            self._label,
            self._digest(("completion",)) if self.facts.traits.kl_batches and plan.form == "unpaired" else None,
        )

    def _digest(self, names: Sequence[str]) -> Callable[[Any], int]:
        values, parts = self._tuple_of(names), [_PARTS.get(self._typed[name][0], part_of) for name in names]
        return lambda row: of_parts([part(value) for part, value in zip(parts, values(row), strict=True)])

    @property
    def _glued(self) -> Callable[[Any], bool] | None:
        """Only asked of good rows, so no text is empty."""
        meets = self.plan.form in ("prompt-completion", "unpaired", "pairs") and self.plan.explicit
        if not meets or "chat" in self.found or "boundary-whitespace" not in self.facts.served:
            return None
        values = self._tuple_of(self.plan.values)

        def is_glued(row: Any) -> bool:
            prompt, *answers = values(row)
            return any(glued(prompt, answer) for answer in answers)

        return is_glued

    @property
    def _label(self) -> Callable[[Any], int] | None:
        if self.plan.form == "unpaired" and self.facts.label_form == "unpaired":
            return self._get("label")
        if self.plan.form == "steps" and self.facts.label_form == "steps":
            get = self._get("labels")
            return lambda row: int(labels[0]) if len(set(labels := get(row))) == 1 else 2
        return None

    @cached_property
    def _typed(self) -> dict[str, tuple[Kind, Any]]:
        """Column -> what its values are, for columns that are decoded as one type."""
        kinds: dict[Kind, Any] = {"str": str, "chat": list[_Message]}
        typed = {name: (kind, kinds.get(kind)) for name, kind in zip(self.plan.values, self.found, strict=True)}
        if self.plan.form == "unpaired":
            typed["label"] = ("bool", bool)
        if self.plan.form == "steps":
            typed |= {"completions": ("list", list[str]), "labels": ("list", list[bool])}
        return typed

    def _field(self, name: str) -> str:
        return f"f{self.plan.columns.index(name)}"

    def _get(self, name: str) -> Callable[[Any], Any]:
        return attrgetter(self._field(name))

    def _tuple_of(self, names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
        if len(names) == 1:
            get = self._get(names[0])
            return lambda row: (get(row),)
        return attrgetter(*map(self._field, names))

    # What is asked of the values that are read.

    @property
    def _judge(self) -> Judge | None:
        form, kinds = self.plan.form, set(self.found)
        if form == "steps":
            return self._steps() if self.found == ("str", "list") else None
        if len(kinds) != 1 or not kinds <= {"str", "chat"} or (kinds == {"chat"} and not self.facts.traits.chats):
            return None
        return self._chats() if kinds == {"chat"} else self._texts()

    def _texts(self) -> Judge | None:
        form = self.plan.form
        values = self._tuple_of(self.plan.values)
        if form == "text":
            return _alone(values, answer=False) if self.plan.values == ("text",) else None
        if form == "prompt":
            return _alone(values, answer=False)
        if form == "messages":
            return None
        if form == "pairs" and not self.plan.explicit:
            return _text_pair(values)
        return _prompted_texts(values, form == "pairs")

    def _chats(self) -> Judge:
        form = self.plan.form
        values = self._tuple_of(self.plan.values)
        if form in ("messages", "prompt"):
            return _chat(values, "assistant" if form == "messages" else "user")
        if form == "pairs" and not self.plan.explicit:
            return _chat_pair(values)
        return _prompted_chats(values, form == "pairs")

    def _steps(self) -> Judge:
        values = self._tuple_of(("prompt", "completions", "labels"))

        def judge(row: Any, suspicious: bool) -> bool:
            prompt, steps, labels = values(row)
            return (
                0 < len(steps) == len(labels)
                and _good(prompt)
                and all(map(_good, steps))
                and (not suspicious or (plain(prompt) and all(map(plain, steps))))
            )

        return judge

    # What is asked of the other columns.

    def _with_extras(self, judge: Judge, extras: Sequence[str]) -> Judge:
        if self.plan.form == "pairs" and (compared := list(score_columns(self.plan.columns))):
            judge = _with_scores(judge, [(self._get(one), self._get(other)) for one, other in compared])
        if self.plan.form == "prompt-completion" and "label" in extras:
            judge = _with_label(judge, self._get("label"))
        if self.facts.rewarded and extras:
            judge = _with_rewards(judge, self._tuple_of(extras), self._get("prompt") if self.plan.explicit else None)
        return judge


# --- judges ----------------------------------------------------------------------------------------------------------


def _good(text: str) -> bool:
    """Not blank, and nothing that may be JSON."""
    return text[:1].isalnum() or text.lstrip()[:1] not in ("", "[", "{")


def good_answer(text: str) -> bool:
    """The same, with a letter or a digit."""
    return text[:1].isalnum() or (_good(text) and has_word(text))


@lru_cache(4096)
def _turns(roles: tuple[str, ...]) -> str:
    """The last role of an optional system message, then user and assistant in turn; "" for any other order."""
    if roles[:1] == ("system",):
        roles = roles[1:]
    expected = ("user", "assistant") * (len(roles) // 2 + 1)
    return roles[-1] if roles and roles == expected[: len(roles)] else ""


def _good_chat(chat: list[_Message], last: str) -> bool:
    if _turns(tuple([message.role for message in chat])) != last:
        return False
    for message in chat:
        if not message.content[:1].isalnum() and not _good(message.content):
            return False
    return last != "assistant" or good_answer(chat[-1].content)


def _chat_part(chat: list[_Message]) -> Part:
    return chat_part(tuple([message.role for message in chat]), [message.content for message in chat])


def _plain_chat(chat: list[_Message]) -> bool:
    return all(plain(message.content) for message in chat)


def _alone(values: Callable[[Any], tuple[str]], *, answer: bool) -> Judge:
    good = good_answer if answer else _good

    def judge(row: Any, suspicious: bool) -> bool:
        (text,) = values(row)
        return good(text) and not (suspicious and not plain(text))

    return judge


def _chat(values: Callable[[Any], tuple[list[_Message]]], last: str) -> Judge:
    def judge(row: Any, suspicious: bool) -> bool:
        (chat,) = values(row)
        return _good_chat(chat, last) and not (suspicious and not _plain_chat(chat))

    return judge


def _differ(chosen: str, rejected: str) -> bool:
    return chosen != rejected and chosen.strip() != rejected.strip()


def _chat_pair(values: Callable[[Any], tuple[Any, ...]]) -> Judge:
    """Two conversations that differ in the last turn."""

    def judge(row: Any, suspicious: bool) -> bool:
        chosen, rejected = values(row)
        return (
            _good_chat(chosen, "assistant")
            and len(chosen) == len(rejected)
            and chosen[:-1] == rejected[:-1]
            and rejected[-1].role == "assistant"
            and good_answer(rejected[-1].content)
            and _differ(chosen[-1].content, rejected[-1].content)
            and not (suspicious and not (_plain_chat(chosen) and plain(rejected[-1].content)))
        )

    return judge


def _prompted_chats(values: Callable[[Any], tuple[Any, ...]], pairs: bool) -> Judge:
    """A prompt and answers of one message each."""

    def judge(row: Any, suspicious: bool) -> bool:
        prompt, *answers = values(row)
        for answer in answers:
            if len(answer) != 1 or answer[0].role != "assistant" or not good_answer(answer[0].content):
                return False
        return (
            _good_chat(prompt, "user")
            and not (pairs and not _differ(answers[0][0].content, answers[1][0].content))
            and not (suspicious and not all(map(_plain_chat, (prompt, *answers))))
        )

    return judge


def _text_pair(values: Callable[[Any], tuple[Any, ...]]) -> Judge:
    """Two texts that share a beginning which looks like a prompt."""

    def judge(row: Any, suspicious: bool) -> bool:
        chosen, rejected = values(row)
        shared = common(chosen, rejected)
        return (
            shared > 0
            and well_cut(chosen, rejected, shared)
            and chosen[shared - 1] in " \n"
            and good_answer(chosen)
            and good_answer(rejected)
            and not chosen[:shared].isspace()
            and _differ(chosen, rejected)
            and not (suspicious and not (plain(chosen) and plain(rejected)))
        )

    return judge


def _prompted_texts(values: Callable[[Any], tuple[Any, ...]], pairs: bool) -> Judge:
    """A prompt and answers that do not repeat it. That they meet without a space is counted elsewhere."""

    def judge(row: Any, suspicious: bool) -> bool:
        prompt, *answers = values(row)
        for answer in answers:
            if not good_answer(answer) or answer.startswith(prompt):
                return False
        return (
            _good(prompt)
            and prompt[-1] not in " \t"
            and not (pairs and not _differ(*answers))
            and not (suspicious and not all(map(plain, (prompt, *answers))))
        )

    return judge


def _with_scores(judge: Judge, compared: Sequence[tuple[Callable[[Any], Any], Callable[[Any], Any]]]) -> Judge:
    def with_scores(row: Any, suspicious: bool) -> bool:
        for one, other in compared:
            better, worse = one(row), other(row)
            if type(better) not in (int, float) or type(worse) not in (int, float) or better < worse:
                return False
        return judge(row, suspicious)

    return with_scores


def _with_label(judge: Judge, label: Callable[[Any], Any]) -> Judge:
    return lambda row, suspicious: label(row) is not False and judge(row, suspicious)


def _with_rewards(judge: Judge, extras: Callable[[Any], tuple[Any, ...]], prompt: Callable[[Any], Any] | None) -> Judge:
    """No nulls and no objects for reward functions, and no text that stands in the prompt."""

    def with_rewards(row: Any, suspicious: bool) -> bool:
        asked = prompt(row) if prompt is not None else ""
        if not isinstance(asked, str):
            asked = "\n".join([message.content for message in asked])
        for value in extras(row):
            if type(value) not in (str, int, float, bool) or (type(value) is str and value.strip() in asked):
                return False
        return judge(row, suspicious)

    return with_rewards


_PARTS: dict[Kind, Callable[[Any], Part]] = {"str": text_part, "chat": _chat_part}
"""Kind of a value -> how its part of the digest is made quickly."""
