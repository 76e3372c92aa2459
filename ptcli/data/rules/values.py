"""Is each value of the JSON type that the trainer reads? And is it there at all?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ptcli.data.model import Hit
from ptcli.data.rules.facts import TEXT_OR_CHAT, Seen
from ptcli.data.rules.words import LEAVE_OUT, clip, quote, typed

_CHAT_KEYS = (frozenset(("role", "content")), frozenset(("from", "value")))
_PYTHON_CHATS = ("[{'role'", "[{'content'", "[{'from'", "[{'value'")


def wrong(column: str, wanted: str, value: Any) -> Hit:
    """A value of the wrong type."""
    found = f"{typed(value)} ({quote(value)})" if isinstance(value, str | bool | int | float) else typed(value)
    turn = isinstance(value, dict) and "from" in value and "value" in value
    fix = "from: sharegpt" if turn else ""
    return Hit("wrong-value-type", "error", f"`{clip(column)}` is {found}, not {wanted}", fix, column[:64])


def null(column: str) -> Hit:
    return Hit("null-value", "error", f"`{clip(column)}` is null or absent", LEAVE_OUT, column[:64])


def read_values(seen: Seen) -> Iterator[Hit]:
    """Texts and chats where these are meant."""
    for column in seen.plan.values:
        value = seen.row[column]
        if value is None:
            yield null(column)
        elif isinstance(value, str):
            yield from _text(column, value, seen)
        elif column == "completions":
            continue
        elif column not in TEXT_OR_CHAT and column not in ("messages", "conversations"):
            yield wrong(column, "text", value)
        elif not seen.facts.traits.chats:
            yield _conversational(column, value) if isinstance(value, list) else wrong(column, "text", value)
        elif value == []:
            yield Hit("empty-messages", "error", f"`{column}` is an empty list", LEAVE_OUT, column)
        elif column not in seen.chats:
            yield wrong(column, "a list of messages" if column in ("messages", "conversations") else _BOTH, value)


_BOTH = "text or a list of messages"


def _conversational(column: str, value: list[Any]) -> Hit:
    detail = f"`{column}` is {typed(value)}, but the method applies no chat template"
    return Hit("prm-conversational", "error", detail, f"write `{column}` as text")


def _text(column: str, value: str, seen: Seen) -> Iterator[Hit]:
    chat_only = column in ("messages", "conversations")
    if seen.facts.traits.chats and looks_like_chat(value):
        detail = f"`{column}` holds chats as JSON text: {quote(value)}"
        python = value.lstrip().startswith(_PYTHON_CHATS)
        fix = "write it as JSON, not as Python prints it" if python else f"parse_json: [{column}]"
        yield Hit("json-string-column", "error", detail, fix, column)
    elif chat_only:
        yield wrong(column, "a list of messages", value)
    elif column == "completions":
        yield wrong(column, "a list of texts: it would be taken letter by letter", value)


def looks_like_chat(text: str) -> bool:
    """Whether a text is the JSON of a message or a list of them."""
    if text[:1] not in ("[", "{", " ", "\n"):
        return False
    text = text.strip()
    if text[:1] not in ("[", "{"):
        return False
    if text.startswith(_PYTHON_CHATS):
        return True
    if '"role"' not in text and '"from"' not in text:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and any(keys <= first.keys() for keys in _CHAT_KEYS)


def empty_answers(seen: Seen) -> Iterator[Hit]:
    """Texts to train on that have nothing in them."""
    for column, text in seen.texts:
        if column != "prompt" and column not in seen.chats and not text.strip():
            detail = f"`{column}` is empty: only the end-of-sequence token would be trained"
            yield Hit("empty-value", "error", detail, LEAVE_OUT, column)


def empty_prompt(seen: Seen) -> Iterator[Hit]:
    """A prompt without a letter, or a chat in which no user says anything."""
    severity = seen.facts.traits.empty_prompt
    if severity == "ok":
        return
    prompt = seen.row["prompt"] if "prompt" in seen.plan.values else None
    if isinstance(prompt, str):
        if not prompt.strip():
            yield Hit("empty-prompt", severity, "`prompt` is empty", LEAVE_OUT)
        return
    for column in ("prompt", "messages", "conversations", "chosen"):
        chat = seen.chats.get(column)
        if chat is not None:
            said = [message.get("content") for message in chat if message.get("role") == "user"]
            if said and all(isinstance(text, str) and not text.strip() for text in said):
                yield Hit("empty-prompt", severity, f"the user says nothing in `{column}`", LEAVE_OUT)
            return


def steps(seen: Seen) -> Iterator[Hit]:
    """The lists of a step-by-step solution."""
    steps, labels = seen.row["completions"], seen.row["labels"]
    if steps is None or labels is None:
        if labels is None:
            yield null("labels")
    elif isinstance(steps, list) and not steps:
        yield Hit("empty-messages", "error", "`completions` has no step: the row trains nothing", LEAVE_OUT)
    elif not isinstance(labels, list):
        yield wrong("labels", "a list of true or false", labels)
    elif isinstance(steps, list) and len(steps) != len(labels):
        detail = f"{len(steps)} `completions`, but {len(labels)} `labels`"
        yield Hit("length-mismatch", "error", detail, "give each step one label")
    if isinstance(steps, list):
        yield from _step_values(steps)
    elif steps is not None and not isinstance(steps, str):
        yield wrong("completions", "a list of texts", steps)


def _step_values(steps: list[Any]) -> Iterator[Hit]:
    for step in steps:
        if step is None:
            yield null("completions[]")
        elif not isinstance(step, str):
            yield wrong("completions", "a list of texts", [step])


def extras(seen: Seen) -> Iterator[Hit]:
    """Columns beside the accepted set that enter training all the same."""
    row, traits = seen.row, seen.facts.traits
    if traits.margin and "margin" in row:
        yield from margin(row["margin"])
    if traits.template_kwargs and "chat_template_kwargs" in row:
        value = row["chat_template_kwargs"]
        if value is None:
            yield null("chat_template_kwargs")
        elif not isinstance(value, dict):
            fix = "parse_json: [chat_template_kwargs]" if isinstance(value, str) else ""
            hit = wrong("chat_template_kwargs", "an object", value)
            yield Hit(hit.rule, hit.severity, hit.detail, fix, hit.variant)


def margin(value: Any) -> Iterator[Hit]:
    if value is None:
        yield null("margin")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield wrong("margin", "a number", value)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Hit("nan-value", "error", f"`margin` is {value}: weights would become NaN", LEAVE_OUT, "margin")
    elif value < 0:
        yield Hit("margin-negative", "warning", f"`margin` is negative ({quote(value)})", "are the columns swapped?")


def not_finite(seen: Seen) -> Iterator[Hit]:
    """NaN and infinity in any other column: an error where a reward function reads it."""
    for column, value in seen.row.items():
        if type(value) is float and not math.isfinite(value) and column not in ("margin", "label"):
            read = column in seen.facts.reward_columns
            detail = f"`{clip(column)}` is {value}"
            fix = LEAVE_OUT if read else ""
            yield Hit("nan-value", "error" if read else "warning", detail, fix, column[:64])


def column_nulls(seen: Seen) -> Iterator[Hit]:
    """Nulls in what reward functions are handed."""
    for column, value in seen.row.items():
        if value is None and seen.facts.passed(column):
            yield null_for_rewards(column, seen.facts.reward_columns)


def null_for_rewards(column: str, named: frozenset[str]) -> Hit:
    if column in named:
        detail = f"`{clip(column)}` is null, and a reward function reads it"
        return Hit("reward-column-null", "error", detail, LEAVE_OUT, column[:64])
    detail = f"`{clip(column)}` is null in some rows, and reward functions are handed it"
    return Hit("odpo-null-column", "warning", detail, "fill it in, or leave the column out with `columns`", column[:64])
