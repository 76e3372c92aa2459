"""Blocks whose rows are told a column at a time: their profile is what the rules make of them row by row."""

from __future__ import annotations

import json
from itertools import permutations
from random import Random
from typing import Any

import pytest

from ptcli.data import columnar, fast, scan
from ptcli.data.fast import Schemas
from ptcli.data.model import Context, Profile
from ptcli.data.rules import Checker
from ptcli.data.rules.facts import Facts
from ptcli.methods import METHODS
from tests.data_cases import fuzz
from tests.unit.data.test_fast import GOOD_ROWS, Counting, retold, slowly, written

COLUMNAR = [name for name in GOOD_ROWS if name not in ("kto", "prm", "grpo")]
LONG = {
    "chosen": "Human: Tell me of NN, please.\n\nAssistant: It is fine, and so on for a while, I do hope so",
    "rejected": "Human: Tell me of NN, please.\n\nAssistant: They never told me, and so I did not ask again",
}
ODD_LINES = {
    "null": b'{"text": null}',
    "another column": b'{"text": "Text", "more": 1}',
    "no column": b"{}",
    "two keys": b'{"text": "Text", "text": "Other"}',
    "two rows": b'{"text": "Text"}{"text": "Other"}',
    "not UTF-8": b'{"text": "Text \xff"}',
    "surrogate": b'{"text": "Text \\ud800"}',
    "surrogate in bytes": b'{"text": "Text \xed\xa0\x80"}',
    "pair of surrogates": b'{"text": "Text \\ud83d\\ude00"}',
    "null byte": b'{"text": "Text \\u0000"}',
    "raw null byte": b'{"text": "Text \x00"}',
    "control character": b'{"text": "Text \\b"}',
    "carriage return": b'{"text": "Text\\r\\nText"}',
    "empty": b'{"text": ""}',
    "blank": b'{"text": " \\n"}',
    "JSON": b'{"text": "[1, 2]"}',
    "token": b'{"text": "Text <|im_end|> more"}',
    "escaped token": b'{"text": "Text \\u003c\\u002fs> more"}',
    "instruction": b'{"text": "[INST] Text [/INST] more"}',
    "broken letter": "{\"text\": \"Text Ã© more\"}".encode(),
    "broken quote": "{\"text\": \"Text â€œ more\"}".encode(),
    "escaped broken letter": b'{"text": "Text \\u00c3\\u00a9 more"}',
    "replacement": b'{"text": "Text \\ufffd more"}',
    "foreign": '{"text": "数学の問題です"}'.encode(),
    "escaped key": b'{"te\\u0078t": "Text"}',
    "a number": b'{"text": 5}',
    "ends with a token's beginning": b'{"text": "Text <"}',
}  # fmt: skip


def both(lines: list[bytes], method: str) -> tuple[Profile, Profile, int]:
    """The profile of lines, made by columns and row by row, and how many rows were looked at slowly by columns."""
    context = Context(METHODS[method])
    checker = Checker(context)
    counting = Counting(lines, checker)
    block = scan.lines_of(b"\n".join(lines))
    assert block is not None
    assert list(block) == lines
    columnar.look(block, checker, columnar.Layouts(Schemas(Facts(context))), counting)
    return checker.profile, slowly(lines, context), counting.slow


def lines_with(rows: list[Any]) -> list[bytes]:
    return [json.dumps(row).replace("NN", str(number)).encode() for number, row in enumerate(rows)]


@pytest.fixture
def only_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a block is not taken by columns."""
    monkeypatch.setattr(fast, "go_on", lambda *_: pytest.fail("row by row"))


@pytest.mark.usefixtures("only_columns")
@pytest.mark.parametrize("name", COLUMNAR)
def test_good_rows(name: str) -> None:
    method, row = GOOD_ROWS[name]
    by_columns, by_rows, looked_at = both(lines_with([row] * 100), method)
    assert by_columns == by_rows
    assert looked_at <= 2
    assert by_columns.rows == len(by_columns.digests) == 100


@pytest.mark.usefixtures("only_columns")
@pytest.mark.parametrize("name", COLUMNAR)
def test_columns_in_any_order(name: str) -> None:
    method, row = GOOD_ROWS[name]
    profiles = [both(lines_with([dict(order)] * 100), method)[0] for order in permutations(row.items())]
    assert all(profile.digests == profiles[0].digests for profile in profiles)
    assert all(profile.rows == 100 for profile in profiles)


def test_the_same_letters_in_other_columns() -> None:
    rows = [{"prompt": "What is", "chosen": " it? Yes", "rejected": " NN"}] * 3
    rows.append({"prompt": "What is it?", "chosen": " Yes", "rejected": " NN"})
    by_columns, by_rows, _ = both([json.dumps(row).encode() for row in rows], "dpo")
    assert by_columns == by_rows
    assert len(set(by_columns.digests)) == 2


@pytest.mark.parametrize("name", ODD_LINES)
def test_one_odd_line(name: str) -> None:
    good = [json.dumps({"text": f"Text {number}"}).encode() for number in range(40)]
    by_columns, by_rows, _ = both([*good, ODD_LINES[name], b'{"text": "</s> begins"}', *good], "sft")
    assert by_columns == by_rows


@pytest.mark.parametrize("method", ["sft", "dpo", "reward", "cpo", "grpo", "ppo"])
def test_changed_rows(method: str) -> None:
    random = Random(method)
    served = [row for name, row in GOOD_ROWS.values() if name in (method, "dpo", "sft")] + [LONG]
    for _ in range(60):
        kind = random.choice(served)
        rows = [kind] * 60
        for place in random.sample(range(60), random.choice((1, 5, 30))):
            rows[place] = retold(random, kind)
        rows += fuzz.changed(random) if random.random() < 0.3 else []
        lines = [written(random, row) for row in rows]
        by_columns, by_rows, _ = both(lines, method)
        assert by_columns == by_rows, lines


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3], [1, 2.5, 3], [0.5, 1.0, 2.0], [0.5, 1, 2.0], [1.5, float("nan"), 2.5], [True, False], [1, 2**63, 3],
        [1, 2**70, 3], [1.5, 1e300, 10**20], [-1, 0, -0.0], ["1", "2"], [1, None], [1, "2"], [{}, {}],
        [3, 10**17 + 1, 10**17],
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["id", "score_chosen"])
def test_numbers(values: list[Any], name: str) -> None:
    """Other columns, of kinds that are told from each other, and scores that are compared."""
    rows = [LONG | {name: value, "score_rejected": 2 if number % 2 else 2.0} for number, value in enumerate(values * 9)]
    by_columns, by_rows, _ = both(lines_with(rows), "dpo")
    assert by_columns == by_rows


def test_spaces_before_and_after_answers() -> None:
    """Answers that are the same but for space around them, of any script."""
    answers = ("Yes", " Yes", "Yes ", "\n Yes", "Yes\u3000", "\u00a0Yes", "Yes.", "No", "数学", "数学 ", "Y", "")
    rows = [{"prompt": "Say it NN:", "chosen": one, "rejected": other} for one in answers for other in answers]
    by_columns, by_rows, _ = both(lines_with([{"prompt": "Say NN", "chosen": " NN", "rejected": " no"}, *rows]), "dpo")
    assert by_columns == by_rows


def test_shared_beginnings() -> None:
    """Texts that share a beginning of any length, in letters of one byte or more."""
    random = Random(0)
    for letters in ("ab \n", "aé数 \n"):
        rows: list[Any] = [LONG]
        for _ in range(300):
            shared = "".join(random.choices(letters, k=random.choice((0, 1, 5, 60, 128, 300))))
            ends = ("".join(random.choices(letters, k=random.choice((0, 1, 5, 30, 400)))) for _ in range(2))
            rows.append(dict(zip(("chosen", "rejected"), (shared + end for end in ends), strict=True)))
        by_columns, by_rows, _ = both(lines_with(rows), "dpo")
        assert by_columns == by_rows


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}\n\n{"a": 2}',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'\xef\xbb\xbf{"a": 1}',
        b"[]\n{}",
        b"",
        b"\n",
        b'{"a":\n1}',
    ],
)
def test_lines_that_are_no_objects(data: bytes) -> None:
    assert scan.lines_of(data) is None


def test_lines() -> None:
    data = b'{"a": 1}\n{"a": 200}\n{"a": 3}\n{"a": 400}\n'
    lines = scan.lines_of(data)
    assert lines is not None
    assert lines[1:3] == [b'{"a": 200}', b'{"a": 3}']
    assert [lines.longest(most) for most in (1, 3, 9)] == [[1], [1, 3, 0], [1, 3, 0, 2]]


ROLES = ("system", "user", "assistant", "", "u", "use", "users", "assiftant", "assistent", "System", "systen", "tool")


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_roles(method: str) -> None:
    """Chats of all kinds of roles in any order."""
    random = Random(0)
    rows: list[Any] = [GOOD_ROWS["sft messages" if method == "sft" else "reward whole chats"][1]]
    for _ in range(400):
        known = random.random() < 0.7
        roles = random.choices(ROLES[:3] if known else ROLES, k=random.choice((0, 1, 2, 2, 3, 4)))
        chats = [
            [{"role": role, "content": random.choice(("Yes", "No"))} for role in roles[: random.choice((9, 9, 1))]]
            for _ in range(len(rows[0]))
        ]
        rows += [dict(zip(rows[0], chats, strict=True)), rows[0]]
    by_columns, by_rows, _ = both(lines_with(rows), method)
    assert by_columns == by_rows


@pytest.mark.parametrize("name", ["sft messages", "dpo chats", "sft text"])
def test_changed_bytes(name: str) -> None:
    """Lines some bytes of which were lost, doubled or replaced by what means something in JSON."""
    random = Random(name)
    method, row = GOOD_ROWS[name]
    for _ in range(ROUNDS):
        lines = lines_with([row] * 40)
        for place in random.sample(range(1, 40), 12):
            letters = bytearray(lines[place])
            for _ in range(random.choice((1, 1, 2))):
                at = random.randrange(1, len(letters) - 3)
                letters[at : at + random.choice((0, 1, 1, 2))] = random.choice(CHANGES)
            lines[place] = bytes(letters)
        by_columns, by_rows, _ = both(lines, method)
        assert by_columns == by_rows, lines


ROUNDS = 40
CHANGES = (
    b"", b'"', b"\\", b"\\\\", b'\\"', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\\u0041", b"\\u00e9", b"\\ud83d",
    b"\\ud83d\\ude00", b"\\u12", b"\\x", b"\xff", b"\xc3\xa9", b"\t", b"\x00", b"1", b'": "', b'"}, {"', b"\\n", b"\\/",
)  # fmt: skip
