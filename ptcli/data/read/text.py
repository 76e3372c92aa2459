"""JSON text as rows: one line each, or the elements of one array."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ptcli.data.model import Row
from ptcli.data.read.compressed import BROKEN

_decode = msgspec.json.Decoder().decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SPACE = re.compile(r"[ \t\r\n]*")
_TAIL = 16
"""Characters at the end of a text that may be half of something: `tru`, `\\u00`, `-`."""


@dataclass(frozen=True)
class Bad:
    """What is no row."""

    why: str


def decode_line(line: bytes) -> Row | Bad:
    """The row of a line."""
    try:
        row = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        row = _decode_slowly(line)
    if isinstance(row, dict | Bad):
        return row
    return Bad(f"is {_KINDS.get(type(row), 'a value')}, not an object")


_KINDS: dict[type, str] = {
    list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false", type(None): "null",
}  # fmt: skip


def _decode_slowly(line: bytes) -> Any:
    """What Python reads of a line that msgspec refuses: NaN and numbers of any size are values to `datasets`, too."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad(f"is not UTF-8 at byte {error.start}")
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return Bad(f"is not valid JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Bad(f"cannot be read: {'nested too deeply' if isinstance(error, RecursionError) else error}")
    if _SURROGATE.search(line) and not _encodes(row):
        return Bad("has half of a character (a lone surrogate, \\ud800 to \\udfff), which is no text")
    return row


def _encodes(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def texts_of_array(pieces: Iterable[bytes]) -> Iterator[bytes | Bad]:
    """The elements of a JSON array, each as the text of one line; the last is Bad where the array does not end."""
    try:
        yield from _elements(codecs.iterdecode(pieces, "utf-8-sig"))
    except UnicodeDecodeError as error:
        yield Bad(f"is not UTF-8: {error.reason}")
    except BROKEN as error:
        yield Bad(f"cannot be read to its end: {error}")


def _elements(pieces: Iterator[str]) -> Iterator[bytes | Bad]:
    """Elements are found by decoding: one that does not end yet is tried again with twice the text."""
    scan = json.JSONDecoder().raw_decode
    text, at, want = "", 0, 0
    begun = done = False
    for piece in _and_end(pieces):
        text = text[at:] + piece if piece is not None else text[at:]
        at = 0
        if piece is not None and len(text) < want:
            continue
        while True:
            at = _skip(text, at, "[" if not begun else ",")
            begun = True
            if at < len(text) and text[at] == "]":
                done = True
                break
            try:
                _, end = scan(text, at)
            except (json.JSONDecodeError, RecursionError) as error:
                if piece is None or not _may_go_on(error, len(text)):
                    yield Bad(f"is not valid JSON: {getattr(error, 'msg', 'nested too deeply')}")
                    return
                want = 2 * (len(text) - at)
                break
            if end >= len(text) - 1 and piece is not None:
                break  # a number may go on
            yield _one_line(text[at:end])
            at = end
        if done:
            if text[at + 1 :].strip():
                yield Bad("has more after the end of its array")
            return
    yield Bad("ends before its array does")


def _may_go_on(error: Exception, length: int) -> bool:
    """Whether more text may mend it: a string without an end, or a fault where the text ends."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - _TAIL


def _and_end(pieces: Iterator[str]) -> Iterator[str | None]:
    yield from pieces
    yield None


def _skip(text: str, at: int, mark: str) -> int:
    """Past space, and past one `mark`."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    if at < len(text) and text[at] == mark:
        at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    return at


def _one_line(text: str) -> bytes:
    """Strings hold no line ends in JSON, so those are space."""
    return text.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogatepass")
