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


def length_reward(completions: Sequence[Completion], target: float = 20, **kwargs: object) -> list[float]:
    """How near each completion is to `target` characters: 0.0 at the target, as much less where longer or shorter.

    It is minus the distance as a share of the target, so that an empty completion has -1.0.
    """
    return [-abs(len(_text(completion)) - target) / max(target, 1) for completion in completions]


def _text(completion: Completion) -> str:
    """The text of a completion; of a chat, that of its last message (what follows the calls of tools)."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "") if completion else ""
