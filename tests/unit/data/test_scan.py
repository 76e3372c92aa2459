"""Strings and columns of a block of lines, found by their quotes, beside what `json` reads."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pytest

from ptcli.data import scan

LETTERS = [
    "a",
    "Z",
    " ",
    '"',
    "\\",
    "/",
    "\n",
    "\t",
    "\r",
    "\b",
    "\f",
    "\x01",
    "é",
    "数",
    "\u2028",
    "{",
    "}",
    ",",
    "[",
    ":",
]
COLUMNS = [("id", "number"), ("messages", "chat"), ("note", "str"), ("text", "str")]


def text(random: Random) -> str:
    return "".join(random.choices(LETTERS, k=random.choice((0, 1, 3, 20))))


def row(random: Random) -> dict[str, Any]:
    messages = [
        {"role": random.choice(("system", "user", "assistant", "tool")), "content": text(random)}
        for _ in range(random.choice((1, 2, 5)))
    ]
    number = random.choice((0, -17, 2.5, 1e300, 123456789012, True, None))
    return {"id": number, "messages": messages, "note": text(random), "text": text(random)}


def read(lines: list[str], columns: list[tuple[str, str]], wanted: set[str]) -> scan.Columns | None:
    block = scan.lines_of("\n".join(lines).encode())
    assert block is not None
    return scan.read(block, columns, wanted)


def pieces(columns: scan.Columns, numbers: Any) -> list[str]:
    found = columns.pieces
    return [found.data[found.starts[number] : found.ends[number]].decode() for number in numbers]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_columns_are_what_json_reads(ascii_only: bool, separators: tuple[str, str] | None) -> None:
    random = Random(0)
    rows = [row(random) for _ in range(300)]
    lines = [json.dumps(each, ensure_ascii=ascii_only, separators=separators) for each in rows]
    columns = read(lines, COLUMNS, {"messages", "text"})
    assert columns is not None
    assert columns.regular.all()
    assert columns.texts.keys() == {"text"}
    assert pieces(columns, columns.texts["text"]) == [each["text"] for each in rows]
    messages = columns.chats["messages"]
    assert messages.counts.tolist() == [len(each["messages"]) for each in rows]
    told = [message for each in rows for message in each["messages"]]
    assert pieces(columns, messages.contents) == [message["content"] for message in told]
    assert messages.roles.tolist() == [("system", "user", "assistant", "tool").index(each["role"]) for each in told]
    numbers = columns.numbers["id"]
    for number, (value, whole, truth) in zip(
        (each["id"] for each in rows), zip(numbers.values, numbers.whole, numbers.truth, strict=True), strict=True
    ):
        assert truth == isinstance(number, bool)
        assert whole == (type(number) is int)
        assert np.isnan(value) if number is None or truth else value == number


def test_contents_may_stand_before_roles() -> None:
    rows = [{"messages": [{"content": f"Say {number}", "role": "user"}]} for number in range(9)]
    columns = read([json.dumps(each) for each in rows], [("messages", "chat")], {"messages"})
    assert columns is not None
    assert columns.regular.all()
    assert pieces(columns, columns.chats["messages"].contents) == [f"Say {number}" for number in range(9)]
    assert set(columns.chats["messages"].roles.tolist()) == {scan.USER}


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "one" }', '{ "text": "one"}', '{"text":"one"}', '{"text": "one", "text": "two"}', '{"other": "one"}',
        '{"text": "one"}}', '{"text": "o"ne"}', '{"text": "o\\"}', '{"text": "o\\x"}', '{"text": "o\\u12g4"}',
        '{"text": "o\\ud83d\\ude00"}', '{"text": "o\tn"}', '{"text": null}', '{"text": 1}', '{"text": ["one"]}',
        '{"text": "one"x}', '{"te\\u0078t": "one"}', "{}", '{"text": {"text": "one"}}', '{"text": "o\\u1"}',
        '{"text": one"}', '{text": "one"}', '{"text" "one"}', '{"text": "one",}', '{"texts": "one"}', '{"tex": "one"}',
    ],
)  # fmt: skip
def test_odd_rows_are_not_regular(line: str) -> None:
    """And their neighbours are read as before."""
    for lines in ([line, '{"text": "a"}'], ['{"text": "a"}', line, '{"text": "b"}'], ['{"text": "a"}', line]):
        columns = read(lines, [("text", "str")], {"text"})
        if lines[0] == line == '{"text":"one"}':  # the first row says how all are written
            continue
        assert columns is not None
        regular = [number for number, each in enumerate(lines) if each != line]
        assert np.flatnonzero(columns.regular).tolist() == regular
        good = pieces(columns, columns.texts["text"])
        assert good == [json.loads(lines[number])["text"] for number in regular]


@pytest.mark.parametrize("number", ["01", "+1", ".5", "1.", "-", "1e", "0x1", "NaN", "Infinity", "--1", "1 2", "tru"])
def test_what_is_no_number(number: str) -> None:
    lines = [f'{{"id": {each}, "text": "a"}}' for each in ("1", number, "2")]
    columns = read(lines, [("id", "number"), ("text", "str")], {"text"})
    assert columns is not None
    if columns.regular[1]:
        values = columns.numbers["id"]
        assert np.isnan(values.values[1])
        assert not values.whole[1]
        assert not values.truth[1]
    assert columns.numbers["id"].values[0] == 1


def test_places() -> None:
    random = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 1000):
        for share in (0.0, 0.01, 0.5, 1.0):
            found = random.random(size) < share
            assert scan.places(found).tolist() == np.flatnonzero(found).tolist()


@pytest.mark.parametrize("beyond", [b"", b"{", b'\\"{"a": \xff\x00', '{"id": "数", "text": "\u2028"}'.encode() * 9])
@pytest.mark.parametrize("newline", ["", "\n"])
def test_what_follows_on_a_block_is_not_looked_at(beyond: bytes, newline: str) -> None:
    random = Random(1)
    rows = [row(random) | {"text": f"数{number}\t"} for number in range(50)]
    data = ("\n".join(json.dumps(each, ensure_ascii=False) for each in rows) + newline).encode()
    block = scan.lines_of(data + beyond, len(data))
    assert block is not None
    assert list(block) == data.splitlines()
    columns = scan.read(block, COLUMNS, {"messages", "text"})
    assert columns is not None
    assert columns.regular.all()
    assert pieces(columns, columns.texts["text"]) == [each["text"] for each in rows]


def test_strings_are_decoded_again() -> None:
    """Decoding does not change the lines."""
    lines = [json.dumps({"text": text}) for text in ('a\n"b" é\u1234', "\t\\") * 20]
    block = scan.lines_of("\n".join(lines).encode())
    assert block is not None
    for _ in range(2):
        columns = scan.read(block, [("text", "str")], {"text"})
        assert columns is not None
        assert pieces(columns, range(2)) == ['a\n"b" é\u1234', "\t\\"]
    assert [line.decode() for line in block] == lines
