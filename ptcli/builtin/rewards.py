"""Reward functions for the data sets that ship; name them in a recipe as `ptcli.builtin.rewards:exact_match`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Completion = str | Sequence[dict[str, Any]]
"""Plain text, or a chat: a list of messages."""


def exact_match(completions: Sequence[Completion], answer: Sequence[str], **kwargs: object) -> list[float]:
    """1.0 for each completion that is its answer and nothing else, 0.0 for any other; outer whitespace is ignored.

    `completions` and `answer` have the same length; the further columns that TRL passes are ignored.
    """
    return [
        float(_text(completion).strip() == str(right).strip())
        for completion, right in zip(completions, answer, strict=True)
    ]


def _text(completion: Completion) -> str:
    """The text of a completion; of a chat, that of its last message (what follows the calls of tools)."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "") if completion else ""
