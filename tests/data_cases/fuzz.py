"""Rows and files that nobody would write: good ones changed at random, and garbage."""

# ruff: noqa: E501

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

import zstandard
from hypothesis import strategies as st

from ptcli.methods import METHODS
from tests.data_cases import case as c
from tests.data_cases.case import Row
from tests.data_cases.legitimate import LEGITIMATE

COLUMNS = (
    "prompt", "completion", "chosen", "rejected", "messages", "text", "label", "labels", "completions", "conversations",
    "input_ids", "tools", "chat_template_kwargs", "margin", "completion_mask", "assistant_masks", "attention_mask",
    "images", "image", "answer", "chosen_ids", "rejected_ids", "score_chosen", "score_rejected", "system", "promt", "",
)  # fmt: skip
KEYS = (*COLUMNS, "role", "content", "tool_calls", "function", "name", "arguments", "from", "value", "type", "weight")
STRINGS = (
    "", " ", "\n", "\0", "\ud83d", "\udfff\ud800", "\ufeff", "\u202e", "a" * 5000, "user", "assistant", "system", "tool",
    "<|im_end|>", "[]", "[{\"role\": \"user\"}]", "{", "null", "NaN", "1e999", "{% for %}", "{{ x }}", "%s{}", "é\u0301", "🏳️‍🌈",
)  # fmt: skip
SCALARS = (
    None, True, False, 0, 1, -1, 5, 2**63, -(2**63) - 1, 10**400, 0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"),
    -float("inf"), [], {}, [[]], [None], [{}], {"": {}},
)  # fmt: skip

GOOD = [row for each in LEGITIMATE if not isinstance(each.rows, bytes) for row in each.rows[:2]]
"""Two rows of every legitimate case."""
FULL = c.chat_preference(0) | c.messages(0) | c.text(0) | c.steps(0) | c.tokens(0) | c.unpaired(0)
"""All columns at once."""
METHOD_NAMES = tuple(METHODS)

texts = st.one_of(st.sampled_from(STRINGS), st.text(st.characters(), max_size=40))
scalars = st.one_of(st.sampled_from(SCALARS), texts, st.integers(), st.floats())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(KEYS), texts), inner, max_size=4)
    ),
    max_leaves=12,
)
chats = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.one_of(st.sampled_from(("user", "assistant", "system", "tool")), values),
                      "content": st.one_of(texts, values), "tool_calls": values, "name": values}
    ),
    max_size=5,
)  # fmt: skip
rows = st.dictionaries(st.one_of(st.sampled_from(COLUMNS), texts), st.one_of(values, texts, chats), max_size=6)
methods = st.sampled_from(METHOD_NAMES)


def changed(random: Random) -> list[Row]:
    """A few good rows, some of which have been tampered with."""
    start = random.choice([*GOOD, FULL])
    found = [json.loads(json.dumps(start)) for _ in range(random.randint(1, 6))]
    for row in found:
        for _ in range(random.choice((0, 1, 1, 2, 5))):
            _tamper(random, row)
    return found


def _tamper(random: Random, row: Row) -> None:
    """Change one place of a row, wherever it lies."""
    place: Any = row
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return
        key = random.choice(list(keys))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or random.random() < 0.4:
            break
        place = inner
    _CHANGES[random.randrange(len(_CHANGES))](random, place, key)


def _drop(random: Random, place: Any, key: Any) -> None:
    del place[key]


def _replace(random: Random, place: Any, key: Any) -> None:
    place[key] = random.choice((deepcopy(random.choice(SCALARS)), random.choice(STRINGS)))


def _rename(random: Random, place: Any, key: Any) -> None:
    if isinstance(place, dict):
        place[random.choice(KEYS)] = place.pop(key)


def _wrap(random: Random, place: Any, key: Any) -> None:
    place[key] = random.choice(([place[key]], {"content": place[key]}, json.dumps(place[key]), [place[key]] * 2))


def _bury(random: Random, place: Any, key: Any) -> None:
    for _ in range(random.choice((3, 90, 300))):
        place[key] = [place[key]] if random.random() < 0.5 else {"a": place[key]}


def _spoil(random: Random, place: Any, key: Any) -> None:
    if isinstance(place[key], str):
        at = random.randint(0, len(place[key]))
        place[key] = place[key][:at] + random.choice(STRINGS) + place[key][at:]


_CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (_drop, _replace, _replace, _rename, _wrap, _bury, _spoil)


def file_bytes(random: Random) -> tuple[str, bytes]:
    """The ending and the bytes of a file that was a JSONL file once, or never."""
    lines = [json.dumps(row).encode() for row in changed(random)]
    content = random.choice((b"\n", b"\r\n", b"\n\n", b"\r", b"")).join(lines) + random.choice((b"\n", b"", b"\0"))
    for damage in random.sample(_DAMAGE, random.choice((0, 1, 1, 2))):
        content = damage(random, content)
    ending = random.choice(
        (".jsonl", ".jsonl", ".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".arrow")
    )
    if ending.endswith(".gz") and random.random() < 0.8:
        content = _hurt(random, gzip.compress(content))
    elif ending.endswith(".zst") and random.random() < 0.8:
        content = _hurt(random, zstandard.compress(content))
    return ending, content


def _hurt(random: Random, content: bytes) -> bytes:
    return random.choice((content, _cut(random, content), _flip(random, content)))


def _cut(random: Random, content: bytes) -> bytes:
    return content[: random.randint(0, len(content))]


def _flip(random: Random, content: bytes) -> bytes:
    spoilt = bytearray(content)
    for _ in range(random.randint(1, 4)):
        if spoilt:
            spoilt[random.randrange(len(spoilt))] = random.randrange(256)
    return bytes(spoilt)


def _insert(random: Random, content: bytes) -> bytes:
    at = random.randint(0, len(content))
    piece = random.choice(
        (b"\n", b"\xff\xfe", b"\0", b"\xed\xa0\x80", b'"', b"{", b"[" * 2000, b"}", b"\\u", b"1e999", b"NaN", b",")
    )
    return content[:at] + piece + content[at:]


def _as_array(random: Random, content: bytes) -> bytes:
    return b"[" + b",".join(content.split(b"\n")) + b"]"


def _marked(random: Random, content: bytes) -> bytes:
    return random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"PAR1", b"\x1f\x8b", b"ARROW1\0\0")) + content


_DAMAGE = (_cut, _flip, _insert, _as_array, _marked)


def numbered(count: int, start: int = 0) -> Iterator[Random]:
    """Sources of chance that are the same in every run."""
    return (Random(seed) for seed in range(start, start + count))
