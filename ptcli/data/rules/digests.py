"""What tells rows that are the same: 64 bits of what the trainer reads of them, quickly made for text and chats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import xxhash

PRIME = 0x100000001B3
_MASK = (1 << 64) - 1
_OTHER = 1
"""The seed of what is neither a text nor a chat, so that `"1"` and `1` are two things."""

_encode = msgspec.json.Encoder(order="sorted").encode
_digest = xxhash.xxh3_64_intdigest


Part = tuple[int, bytes]
"""The seed and the bytes of a value: its kind, or the roles of a chat, and what it holds."""


def digest(values: Iterable[Any]) -> int:
    """The digest of several values in their order."""
    return of_parts([part_of(value) for value in values])


def of_parts(parts: Sequence[Part]) -> int:
    """xxh3_64 of some values' bytes behind each other, seeded by all their seeds; then the lengths of all but the last
    are folded in, which tell where one ends and the next begins."""
    found = _digest(b"".join([data for _, data in parts]), combine([seed for seed, _ in parts]))
    return combine([found, *(len(data) for _, data in parts[:-1])])


def combine(numbers: Iterable[int]) -> int:
    """One of several, which are in order (FNV-1, 64 bits at a time); of one, that one."""
    result = 0
    for each in numbers:
        result = ((result * PRIME) & _MASK) ^ each
    return result


def text_part(text: str) -> Part:
    """Raises UnicodeEncodeError for lone surrogates."""
    return 0, text.encode()


def chat_part(roles: tuple[str, ...], contents: list[str]) -> Part:
    """Of a chat of texts. Raises UnicodeEncodeError for lone surrogates."""
    return seed_of(roles), "".join(contents).encode()


@lru_cache(4096)
def seed_of(roles: tuple[str, ...]) -> int:
    """What stands for the roles of a chat."""
    return _digest("\0".join(roles).encode())


def part_of(value: Any) -> Part:
    """Of a text; of a chat of texts, all its texts, with the roles for a seed; of anything else, its JSON with sorted
    keys, or its name for Python where JSON cannot hold it."""
    try:
        if isinstance(value, str):
            return text_part(value)
        if isinstance(value, list) and value:
            chat = _part_of_chat(value)
            if chat is not None:
                return chat
        return _OTHER, _encode(value)
    except Exception:  # lone surrogates, numbers beyond 64 bits, deep nesting
        text = ""
        with contextlib.suppress(RecursionError, ValueError):  # and numbers of thousands of digits
            text = ascii(value)
        return _OTHER, text.encode()


def _part_of_chat(messages: list[Any]) -> Part | None:
    """None for what is no chat of plain messages."""
    roles, contents = [], []
    for message in messages:
        if not isinstance(message, dict) or len(message) != 2:
            return None
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str) or not isinstance(role, str):
            return None
        roles.append(role)
        contents.append(content)
    return chat_part(tuple(roles), contents)
