"""Rows that are taken as plainly good: the slow rules have nothing to say of them, and count them the same way."""

# ruff: noqa: E501

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from ptcli.data.fast import Schemas, look
from ptcli.data.model import Context, Profile, Row
from ptcli.data.read.text import Bad, decode_line
from ptcli.data.rules import Checker
from ptcli.data.rules.facts import Facts
from ptcli.methods import METHODS
from tests.data_cases import fuzz

TEXTS = (
    "What is 2 + 2?", "It is 4.", " It is four", "Say it: ", "¿Cuánto es?", "数学の問題です", "...",
    "\n\nHuman: hi\n\nAssistant: ",    "a\tb", "<p>html</p>", "x[INST]y", "<s>", "<|im_end|>", "Ã© broken", "â€œquoted", "\ufffd", "null\x00", "\x1b[0m",
    "\\frac{1}{2}", "[1, 2]", "{", "🏳️‍🌈", "C:\\new\\table", "</s>", "[/INST]", "<start_of_turn>", "it is 5.", "", " ",
    "_",
)  # fmt: skip


class Counting:
    """The rows that are looked at slowly."""

    def __init__(self, lines: list[bytes], checker: Checker):
        self.lines, self.checker, self.slow = lines, checker, 0

    def __call__(self, number: int) -> Row | None:
        self.slow += 1
        row = decode_line(self.lines[number])
        if isinstance(row, Bad):
            return None
        self.checker.row(row, number)
        return row


def slowly(lines: list[bytes], context: Context) -> Profile:
    checker = Checker(context)
    counting = Counting(lines, checker)
    for number in range(len(lines)):
        counting(number)
    return checker.profile


def both(lines: list[bytes], method: str) -> tuple[Profile, Profile, int]:
    """The profile of lines, made fast and slowly, and how many rows were looked at slowly in the fast way."""
    context = Context(METHODS[method])
    checker = Checker(context)
    counting = Counting(lines, checker)
    look(lines, b"\n".join(lines), checker, Schemas(Facts(context)), counting)
    return checker.profile, slowly(lines, context), counting.slow


def written(random: Random, row: Any) -> bytes:
    """A row as one of the ways to write it."""
    ascii_only = random.random() < 0.5
    line = json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if random.random() < 0.3:
        line = line.replace(b"/", b"\\/").replace(b"<", b"\\u003c")
    if random.random() < 0.1:
        line = line.replace(b"s>", b"\\u0073>")
    return line


def said(random: Random) -> str:
    count = random.choice((1, 1, 1, 2, 3))
    return "".join(random.choice(TEXTS if random.random() < 0.3 else TEXTS[:7]) for _ in range(count))


def retold(random: Random, value: Any) -> Any:
    """A value with other texts."""
    if isinstance(value, dict):
        return {key: each if key == "role" else retold(random, each) for key, each in value.items()}
    if isinstance(value, list):
        return [retold(random, each) for each in value]
    return said(random) if isinstance(value, str) and random.random() < 0.7 else value


@pytest.mark.parametrize("method", sorted(METHODS))
def test_same_profile(method: str) -> None:
    random = Random(method)
    for _ in range(60):
        kind = random.choice(fuzz.GOOD)
        rows = [kind, kind, *(retold(random, kind) for _ in range(8)), *fuzz.changed(random), kind]
        extra = random.choice(
            ({}, {"id": 1}, {"score_chosen": 1, "score_rejected": 0.5}, {"source": "web", "meta": {}})
        )
        rows = [row | extra if random.random() < 0.9 else row for row in rows]
        lines = [written(random, row) for row in rows]
        fast, slow, _ = both(lines, method)
        assert fast == slow, lines


GOOD_ROWS: dict[str, tuple[str, Row]] = {
    "sft messages": ("sft", {
        "messages": [{"role": "user", "content": "Hi NN"}, {"role": "assistant", "content": "Hello"}]}),
    "sft text": ("sft", {"text": "A text of its own NN."}),
    "sft prompt and completion": ("sft", {"prompt": "Say NN", "completion": " NN", "source": "web"}),
    "dpo prompted": ("dpo", {"prompt": "Say NN", "chosen": " NN", "rejected": " no", "id": "NN"}),
    "dpo glued": ("dpo", {"prompt": "Say NN!", "chosen": "NN", "rejected": "no", "id": 3}),
    "dpo shared": ("dpo", {"chosen": "Human: NN Assistant: yes, I do know", "rejected": "Human: NN Assistant: not in my life"}),
    "dpo chats": ("dpo", {
        "prompt": [{"role": "user", "content": "Say NN"}], "chosen": [{"role": "assistant", "content": "NN"}],
        "rejected": [{"role": "assistant", "content": "No"}], "score_chosen": 1.0, "score_rejected": 0.5}),
    "reward whole chats": ("reward", {
        "chosen": [{"role": "user", "content": "Say NN"}, {"role": "assistant", "content": "NN"}],
        "rejected": [{"role": "user", "content": "Say NN"}, {"role": "assistant", "content": "No"}]}),
    "kto": ("kto", {"prompt": "Say NN", "completion": " NN", "label": True}),
    "prm": ("prm", {"prompt": "Say NN", "completions": ["First, NN.", "Then NN."], "labels": [True, False]}),
    "grpo": ("grpo", {"prompt": [{"role": "user", "content": "What is NN plus 1?"}], "answer": "forty"}),
    "ppo": ("ppo", {"prompt": "What is NN plus 1?"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD_ROWS)
def test_good_rows_are_fast(name: str) -> None:
    method, row = GOOD_ROWS[name]
    lines = [json.dumps(row).replace("NN", str(number)).encode() for number in range(100)]
    fast, slow, looked_at = both(lines, method)
    assert fast == slow
    assert looked_at <= 2
    assert fast.rows == len(fast.digests) == 100


def test_columns_that_change() -> None:
    lines = [json.dumps({"text": f"Text {n}"} | ({"id": n} if n % 10 > 4 else {})).encode() for n in range(100)]
    fast, slow, _ = both(lines, "sft")
    assert fast == slow
    assert len(fast.columns) == 2


def test_bad_lines_between() -> None:
    good = [json.dumps({"text": f"Text {n}"}).encode() for n in range(20)]
    fast, slow, _ = both([*good, b'{"text": "cut', *good, b"[]", b'{"text": "\xff"}', *good], "sft")
    assert fast == slow
    assert fast.rows == 60


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_changed_rows_among_good_ones(method: str) -> None:
    """Long runs of good rows with a changed one among them."""
    random = Random(method)
    good = [row for name, row in GOOD_ROWS.values() if name == method or name in ("dpo", "reward")]
    for _ in range(20):
        kind = random.choice(good)
        rows = [kind] * 150
        for place in random.sample(range(150), random.choice((0, 1, 2))):
            rows[place] = retold(random, kind)
        lines = [json.dumps(row).replace("NN", str(number)).encode() for number, row in enumerate(rows)]
        ends = random.choice((b"", b"\n"))
        fast, slow, _ = both([line + ends for line in lines], method)
        assert fast == slow


@pytest.mark.parametrize("name", ['a "b"', "a\\b", "a\nb", "\x00", "\ud800", "", "class", "é", "\x7f"])
def test_columns_of_odd_names(name: str) -> None:
    lines = [json.dumps({"text": f"Text {n}", name: n}).encode() for n in range(40)]
    fast, slow, _ = both(lines, "sft")
    assert fast == slow
    assert fast.rows == (0 if name == "\ud800" else 40)  # which is no UTF-8


def test_objects_across_lines() -> None:
    """As many objects as lines, but not one a line."""
    good = [json.dumps({"text": f"Text {n}"}).encode() for n in range(64)]
    fast, slow, _ = both([*good, b'{"text": "a"}{"text": "b"}', b'{"text":', b'"c"}', *good], "sft")
    assert fast == slow
    assert fast.rows == 128
