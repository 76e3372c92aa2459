"""Completions to try a reward on before a model has written any: right answers, wrong ones, long ones, and nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

Row = Mapping[str, Any]

MOST_PROMPTS = 4
MOST_COMPLETIONS = 16
"""Completions of one trial: a judge that is paid for is asked no more often."""
_LONGEST = 20_000
"""Characters of the longest completion."""
_ANSWERS = (
    "answer", "solution", "final_answer", "ground_truth", "gold", "target", "expected", "reference", "label",
    "completion", "response", "output",
)  # fmt: skip
"""Columns that usually hold the right answer, in the order in which they are believed."""
NOT_PASSED = frozenset({"prompt", "completion", "completion_ids"})
"""Columns of the data that trainers keep to themselves."""
_JUNK = "I am not sure, but it could be something else."


@dataclass(frozen=True)
class Trial:
    """A call as a trainer would make it, with completions that nobody generated."""

    columns: dict[str, Any]
    texts: tuple[str, ...]
    """The completions as plain text."""

    @property
    def is_chat(self) -> bool:
        return isinstance(self.columns["prompts"][0], list)

    def in_other_shape(self) -> Trial:
        """Chats instead of strings, or strings instead of chats."""
        return Trial(self.columns | {"completions": _shaped(self.texts, chat=not self.is_chat)}, self.texts)

    def without_empty(self) -> Trial:
        """Without the completions that say nothing."""
        kept = [index for index, text in enumerate(self.texts) if text]
        columns = {
            name: [value[index] for index in kept] if isinstance(value, list) else value
            for name, value in self.columns.items()
        }
        return Trial(columns, tuple(self.texts[index] for index in kept))


def make_trial(rows: Sequence[Row], group: int, longest: int) -> Trial:
    """`group` completions for each of some rows, as many as there is room for; a group stays together.

    The shapes are TRL's: a completion is a list of messages where the prompt is one. Its token ids are the bytes of
    its text, the longest has `longest` of them, so that rewards for length differ.
    """
    group = min(group, MOST_COMPLETIONS)
    rows = rows[: max(1, min(MOST_PROMPTS, MOST_COMPLETIONS // group))]
    kinds = itertools.count()
    chosen, texts = [], []
    for row in rows:
        variants = list(_variants(row, min(longest, _LONGEST)))
        for _ in range(group):
            chosen.append(row)
            texts.append(variants[next(kinds) % len(variants)])
    columns: dict[str, Any] = {
        name: [row.get(name) for row in chosen] for name in columns_of(rows) if name not in NOT_PASSED
    }
    columns["prompts"] = [row["prompt"] for row in chosen]
    columns["completions"] = _shaped(texts, chat=isinstance(chosen[0]["prompt"], list))
    columns["completion_ids"] = [list(text.encode()) for text in texts]
    return Trial(columns, tuple(texts))


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every column that a row has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def state_at_start(max_steps: int) -> SimpleNamespace:
    """What `trainer_state` says before the first step."""
    return SimpleNamespace(
        global_step=0, max_steps=max_steps, epoch=0.0, log_history=[], is_world_process_zero=True,
        is_local_process_zero=True, best_metric=None, num_input_tokens_seen=0, total_flos=0, num_train_epochs=1,
        logging_steps=1, train_batch_size=None,
    )  # fmt: skip


def _variants(row: Row, longest: int) -> Iterator[str]:
    """Completions from right to useless."""
    answers = _answers(row)
    yield answers[0]
    yield f"<think>\nLet me see.\n</think>\nThe answer is $\\boxed{{{answers[0]}}}$."
    yield _JUNK
    yield from answers[1:2]
    yield ""
    yield ("again and again " * (longest // 16 + 1))[:longest]


def _answers(row: Row) -> list[str]:
    named = [name for name in _ANSWERS if row.get(name) not in (None, "", [])]
    others = [
        name for name, value in row.items() if isinstance(value, str | int | float) and name != "prompt" and value
    ]
    texts = [_text(row[name]) for name in dict.fromkeys((*named, *others))]
    return list(dict.fromkeys(texts)) or ["42"]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[-1], dict):  # a chat
        return str(value[-1].get("content"))
    return json.dumps(value, ensure_ascii=False, default=str)


def _shaped(texts: Sequence[str], *, chat: bool) -> list[Any]:
    return [[{"role": "assistant", "content": text}] for text in texts] if chat else list(texts)
