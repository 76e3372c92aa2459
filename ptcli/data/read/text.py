"""JSON text as rows: one line each, the elements of one array, or values that go over several lines."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec

from ptcli.data.model import Row
from ptcli.data.read.compressed import BROKEN

_decode = msgspec.json.Decoder().decode
_scan = json.JSONDecoder().raw_decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SPACE = re.compile(r"[ \t\r\n]*")
_TAIL = 16
"""Characters at the end of a text that may be half of something: `tru`, `\\u00`, `-`."""
_MORE = 1 << 20
"""Characters that are read on at least."""
LONGEST = 1 << 30
"""Bytes of a row beyond which it is not read: `datasets` reads none either that is much longer."""
TOO_LONG = f"is longer than {LONGEST >> 20} MiB"
_DEEP = "cannot be read: it is nested too deeply"


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
        return Bad(f"is not UTF-8 at byte {error.start + 1}")
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return Bad(f"is not valid JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return Bad(_DEEP)
    except ValueError as error:
        return Bad(f"cannot be read: {error}")
    if _SURROGATE.search(line) and not _encodes(row):
        return Bad("has half of a character (a lone surrogate, \\ud800 to \\udfff), which is no text")
    return row


def _encodes(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


# --- one array, or values over several lines -------------------------------------------------------------------------


def texts_of_array(pieces: Iterable[bytes]) -> Iterator[bytes | Bad]:
    """The elements of a JSON array, each as the text of one line; the last is Bad where the array does not end well.

    As `datasets` has it, the strings of an array that begins with one are rows with a `text`.
    """
    return _caught(_elements, pieces)


def texts_of_values(pieces: Iterable[bytes]) -> Iterator[bytes | Bad]:
    """JSON values one after the other, which may go over several lines, each as the text of one line."""
    return _caught(_values, pieces)


def _caught(texts: Callable[[_Text], Iterator[bytes | Bad]], pieces: Iterable[bytes]) -> Iterator[bytes | Bad]:
    try:
        yield from texts(_Text(_decoded(pieces)))
    except _NotUtf8 as error:
        yield Bad(f"is not UTF-8 at byte {error.args[0]}")
    except BROKEN as error:
        yield Bad(f"cannot be read to its end: {why(error)}")


class _NotUtf8(Exception):
    """The number of the byte, from 1, that is no text."""


def _decoded(pieces: Iterable[bytes]) -> Iterator[str]:
    """The text, as far as it is UTF-8. Raises _NotUtf8 where it is not."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    begun, read = False, 0
    for piece in chain(pieces, (b"",)):
        begins = read - len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            yield error.object[: error.start].decode()
            raise _NotUtf8(begins + error.start + 1) from None
        yield text if begun else text.removeprefix("\ufeff")
        begun, read = begun or bool(text), read + len(piece)


class _Text:
    """A text that is read on as far as its values need."""

    def __init__(self, pieces: Iterator[str]):
        self._pieces = pieces
        self._text, self._at = "", 0
        self._fault: Exception | None = None

    def _read_on(self, least: int) -> bool:
        """Read on by `least` characters or more, where there are so many; False at the end."""
        parts, read = [self._text[self._at :]], 0
        try:
            for piece in self._pieces:
                parts.append(piece)
                read += len(piece)
                if read >= least:
                    break
        except (_NotUtf8, *BROKEN) as error:
            self._fault = error  # which is said when all before it was read
        self._text, self._at = "".join(parts), 0
        if not read and self._fault is not None:
            raise self._fault
        return read > 0

    def peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on(1):
                return ""

    def skip(self) -> None:
        """Past the character that was peeked at."""
        self._at += 1

    def value(self) -> bytes | Bad:
        """The next value as one line. A value that does not end yet is tried again with twice the text."""
        while True:
            try:
                end = _scan(self._text, self._at)[1]
            except RecursionError:
                return Bad(_DEEP)
            except ValueError as error:
                if len(self._text) - self._at > LONGEST:
                    return Bad(TOO_LONG)
                if not self._may_go_on(error) or not self._read_on(max(len(self._text) - self._at, _MORE)):
                    return Bad(f"is not valid JSON: {getattr(error, 'msg', error)}")
                continue
            if end == len(self._text) and self._text[self._at] not in '{["' and self._read_on(_MORE):
                continue  # a number may go on
            line = _one_line(self._text[self._at : end])
            self._at = end
            if len(line) > _MORE:  # what was read of a long one is not to be held any longer
                self._text, self._at = self._text[end:], 0
            return line

    def _may_go_on(self, error: ValueError) -> bool:
        """Whether more text may mend it: a string without an end, or a fault where the text ends."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL


def _elements(text: _Text) -> Iterator[bytes | Bad]:
    text.peek()
    text.skip()  # the bracket
    first, mark = text.peek(), ""
    if first == "]":
        text.skip()
        mark = first
    while mark != "]":
        text.peek()  # past the space before it
        value = text.value()
        if isinstance(value, Bad):
            yield value
            return
        yield b'{"text": %b}' % value if first == '"' and value.startswith(b'"') else value
        mark = text.peek()
        text.skip()
        if mark not in ("]", ","):
            yield Bad("is not valid JSON: there is no comma between two elements" if mark else "ends before its array")
            return
    if text.peek():
        yield Bad("has more after the end of its array")


def _values(text: _Text) -> Iterator[bytes | Bad]:
    while text.peek():
        value = text.value()
        yield value
        if isinstance(value, Bad):
            return


def _one_line(text: str) -> bytes:
    """Strings hold no line ends in JSON, so those are space."""
    return text.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogatepass")


def why(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
