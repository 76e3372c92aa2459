"""What tells rows that are the same: 64 bits of what the trainer reads of them, quickly made for text and chats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
import xxhash

PRIME = 0x100000001B3
_MASK = (1 << 64) - 1

_encode = msgspec.json.Encoder(order="sorted").encode
_digest = xxhash.xxh3_64_intdigest


def digest(values: Iterable[Any]) -> int:
    """The digest of several values in their order."""
    return combine(map(digest_of, values))


def combine(digests: Iterable[int]) -> int:
    """One digest of several, which are in order (FNV-1, a digest at a time); of one, that one."""
    result = 0
    for each in digests:
        result = ((result * PRIME) & _MASK) ^ each
    return result


def of_chat(roles: tuple[str, ...], contents: list[str]) -> int:
    """The digest of a chat of texts. Raises UnicodeEncodeError for lone surrogates."""
    return _digest("".join(contents).encode(), seed_of(roles))


@lru_cache(4096)
def seed_of(roles: tuple[str, ...]) -> int:
    """What the digest of a chat begins with."""
    return _digest("\0".join(roles).encode())


def digest_of(value: Any) -> int:
    """xxh3_64 of a text; of a chat of texts, of all its texts, with the roles for a seed; of anything else, of its JSON
    with sorted keys, or its name for Python where JSON cannot hold it."""
    try:
        if isinstance(value, str):
            return _digest(value.encode())
        if isinstance(value, list) and value:
            chat = _digest_of_chat(value)
            if chat is not None:
                return chat
        return _digest(_encode(value))
    except Exception:  # lone surrogates, numbers beyond 64 bits, deep nesting
        text = ""
        with contextlib.suppress(RecursionError, ValueError):  # and numbers of thousands of digits
            text = ascii(value)
        return _digest(text.encode())


def _digest_of_chat(messages: list[Any]) -> int | None:
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
    return of_chat(tuple(roles), contents)
