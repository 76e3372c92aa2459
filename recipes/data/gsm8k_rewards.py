"""Rewards for answers whose last line is `#### 42`."""

import re

Chat = list[dict[str, str]]
RESULT = re.compile(r"####\s*(-?[\d.,]*\d)")


def correct(completions: list[Chat], answer: list[str], **kwargs: object) -> list[float]:
    """1.0 where the number after the last `####` is that of the column `answer`."""
    return [float(result(text(chat)) == result(right)) for chat, right in zip(completions, answer, strict=True)]


def formatted(completions: list[Chat], **kwargs: object) -> list[float]:
    """1.0 where there is a number after a `####`."""
    return [float(result(text(chat)) is not None) for chat in completions]


def text(chat: Chat) -> str:
    return chat[-1]["content"]


def result(written: str) -> float | None:
    """The number as a value, so that `1,200` and `1200.0` are the same; None where there is none."""
    found = RESULT.findall(written)
    try:
        return float(found[-1].replace(",", "")) if found else None
    except ValueError:
        return None
