"""JSON as rows: lines, arrays, values over several lines, and what is none of these."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from ptcli.data.read.text import Bad, decode_line, texts_of_array, texts_of_values


def array(data: bytes, size: int = 7) -> tuple[list[object], str]:
    """The elements of an array that comes in small pieces, and what is wrong with it."""
    return split(texts_of_array(data[at : at + size] for at in range(0, len(data), size)))


def split(texts: Iterator[bytes | Bad]) -> tuple[list[object], str]:
    values: list[object] = []
    for text in texts:
        if isinstance(text, Bad):
            return values, text.why
        assert b"\n" not in text
        values.append(json.loads(text))
    return values, ""


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'  {"a": 1} \r', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        (b'{"a": Infinity, "b": -Infinity}', {"a": float("inf"), "b": float("-inf")}),
        (b'{"a": 1e999}', {"a": float("inf")}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b"{}", {}),
    ],
)
def test_a_line_is_a_row(line: bytes, row: dict[str, object]) -> None:
    assert decode_line(line) == row


def test_nan_is_a_value() -> None:
    row = decode_line(b'{"a": NaN}')
    assert isinstance(row, dict)
    assert row["a"] != row["a"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"a": "b', "is not valid JSON: Unterminated string starting at at character 7"),
        (b'{"a": 1,}', "is not valid JSON: "),
        (b'{"a": 1} {"a": 2}', "is not valid JSON: Extra data at character 10"),
        (b"[1]", "is a list, not an object"),
        (b'"a"', "is a string, not an object"),
        (b"1", "is a number, not an object"),
        (b"true", "is true or false, not an object"),
        (b"null", "is null, not an object"),
        (b'{"a": "b\xff"}', "is not UTF-8 at byte 9"),
        (b'\xff\xfe{\x00"\x00', "is not UTF-8 at byte 1"),
        (b'{"a": "\xed\xa0\x80"}', "is not UTF-8 at byte 8"),
        (b'{"a": "\\ud800"}', "has half of a character"),
        (b'{"a": {"\\udfff": 1}}', "has half of a character"),
        (b'{"a": %b1%b}' % (b"[" * 100_000, b"]" * 100_000), "cannot be read: it is nested too deeply"),
        (b'{"a": %b}' % (b"1" * 5000), "cannot be read: Exceeds the limit"),
        (b"\x00\x00", "is not valid JSON"),
    ],
)
def test_what_is_no_row_says_why(line: bytes, why: str) -> None:
    row = decode_line(line)
    assert isinstance(row, Bad)
    assert why in row.why


@pytest.mark.parametrize(
    "data",
    [
        b'[{"a": 1}, {"a": 2}]',
        b'\xef\xbb\xbf[{"a": 1},{"a": 2}]\r\n',
        b'\n\n  [\n  {\n    "a": 1\n  },\r\n  {\n    "a": 2\n  }\n]\n\n',
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_the_elements_of_an_array_are_rows(data: bytes, size: int) -> None:
    assert array(data, size) == ([{"a": 1}, {"a": 2}], "")


def test_values_of_every_kind_at_the_end_of_a_piece() -> None:
    values = [0, -12.5e3, 'ü\U0001f600\\"', [[]], {"é": [None, True]}, None, False, "", 123456]
    data = json.dumps(values, ensure_ascii=False).encode()
    for size in (1, 2, 3, 5, 8):
        assert array(data, size) == (values, "")


def test_strings_are_texts_where_the_first_element_is_one() -> None:
    assert array(b'["a", "b"]') == ([{"text": "a"}, {"text": "b"}], "")
    assert array(b'[{"a": 1}, "b"]') == ([{"a": 1}, "b"], "")


@pytest.mark.parametrize("empty", [b"[]", b" [ \n ] \n"])
def test_an_empty_array_has_no_rows(empty: bytes) -> None:
    assert array(empty) == ([], "")


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (b"", "ends before its array"),
        (b",", "is not valid JSON: Expecting value"),
        (b",]", "is not valid JSON: Expecting value"),
        (b', {"a": ', "is not valid JSON: Expecting value"),
        (b', {"a": "b', "is not valid JSON: Unterminated string"),
        (b' {"a": 2}]', "no comma between two elements"),
        (b"] x", "has more after the end of its array"),
        (b"]" + b" " * 100 + b"x", "has more after the end of its array"),
        (b', {"a": tru}, {"a": 1}]', "is not valid JSON: Expecting value"),
        (b', {"a": "\xff"}]', "is not UTF-8 at byte 19"),
        (b', {"a": "\xc3', "is not UTF-8 at byte 19"),
        (b", " + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_elements_before_the_fault_are_rows(end: bytes, why: str) -> None:
    values, fault = array(b'[{"a": 1}' + end, 1 << 20)
    assert values == [{"a": 1}]
    assert why in fault


def test_a_long_element_takes_time_and_memory_in_proportion() -> None:
    data = b'[{"a": "' + b"x" * (32 << 20) + b'"}, {"a": 1}]'
    begin = time.process_time()
    tracemalloc.start()
    values, fault = split(texts_of_array(data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(values), fault) == (2, "")
    assert peak < 6 * len(data)
    assert time.process_time() - begin < 10


def test_a_string_without_an_end_is_not_tried_again_for_every_piece() -> None:
    pieces = (b'[{"a": "', *[b"x" * (1 << 16)] * 500)
    begin = time.process_time()
    assert "Unterminated string" in split(texts_of_array(pieces))[1]
    assert time.process_time() - begin < 10


def test_an_array_is_streamed() -> None:
    """No more of it is held than the element that is read and a piece."""
    element = b'{"a": "' + b"x" * 1000 + b'"}'
    pieces = (b",".join([element] * 1000) + b"," for _ in range(100))
    tracemalloc.start()
    count = sum(1 for _ in texts_of_array(piece if number else b"[" + piece for number, piece in enumerate(pieces)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_001  # the last one says that the array does not end
    assert peak < 20 << 20


def test_values_may_go_over_several_lines() -> None:
    data = json.dumps({"a": 1}, indent=2) + "\n" + json.dumps({"a": [2]}, indent=2)
    assert split(texts_of_values([data.encode()])) == ([{"a": 1}, {"a": [2]}], "")
