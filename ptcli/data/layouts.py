"""Layouts of other programs, as the columns and messages that TRL reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ptcli.data.model import Row
from ptcli.data.problems import TransformError

Message = dict[str, Any]

_ROLES: Mapping[str, str] = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "bot": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant",
    "chatbot": "assistant", "ai": "assistant", "bard": "assistant", "bing": "assistant", "claude": "assistant",
    "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
    "ipython": "tool",
}  # fmt: skip
"""ShareGPT's word for who speaks -> role. Words that are not here stay, and are found by the rule `unknown-role`."""

_CALLS = frozenset({"function_call", "tool_call"})
"""Turns of an assistant whose text is a call, or a list of calls, in JSON."""

_CONVERSATIONS = ("conversations", "conversation")


# --- ShareGPT --------------------------------------------------------------------------------------------------------


def from_sharegpt(row: Row) -> Row:
    """Turns of from/value as messages, in every column that holds such; `conversations` becomes `messages`.

    A text in the column `system` becomes the first message. Beside `chosen` and `rejected`, whose turns are converted
    too, `conversations` becomes the `prompt`. Raises TransformError for a row without turns.
    """
    converted = {name: _as_messages(value) for name, value in row.items()}
    old = next((name for name in _CONVERSATIONS if name in row), None)
    if old is None and all(converted[name] is row[name] for name in row):
        raise TransformError(f"there are no turns of from/value; the columns are {', '.join(row)}", "from")
    pair = "chosen" in row and "rejected" in row and "prompt" not in row
    new = "prompt" if pair else "messages"
    if old is not None and new in row:
        raise TransformError(f"`{old}` would become `{new}`, and there is a column `{new}` already", "from")
    result = {new if name == old else name: value for name, value in converted.items()}
    return _with_system(result, "prompt" if "prompt" in result else "messages")


def _as_messages(value: Any) -> Any:
    """Messages where the value is turns, or one turn; else the value itself."""
    if _is_turn(value):
        return [_message(value)]
    if isinstance(value, list) and value and _is_turn(value[0]):
        return [_message(each) if _is_turn(each) else each for each in value]
    return value


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and "from" in value and "value" in value


def _message(turn: Mapping[str, Any]) -> Message:
    who, text = turn["from"], turn["value"]
    rest = {name: value for name, value in turn.items() if name not in ("from", "value") and value is not None}
    word = who.strip().lower() if isinstance(who, str) else who
    calls = _calls(text) if word in _CALLS else None
    if calls:
        return {"role": "assistant", "content": "", "tool_calls": calls, **rest}
    role = "assistant" if word in _CALLS else _ROLES.get(word, who) if isinstance(word, str) else who
    return {"role": role, "content": text, **rest}


def _calls(text: Any) -> list[dict[str, Any]] | None:
    """The calls that a turn's JSON says; None when it says none."""
    try:
        said = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    calls = said if isinstance(said, list) else [said]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return None
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments") or {}}}
        for call in calls
    ]


def _with_system(row: Row, chat: str) -> Row:
    """The text of the column `system` as the first message of `chat`, which has none yet."""
    messages, text = row.get(chat), row.get("system")
    if "system" not in row or not isinstance(messages, list) or not isinstance(text, str | None):
        return row
    rest = {name: value for name, value in row.items() if name != "system"}
    begins = bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") == "system"
    if not text or not text.strip() or begins:
        return rest
    return rest | {chat: [{"role": "system", "content": text}, *messages]}


# --- Alpaca ----------------------------------------------------------------------------------------------------------

_ALPACA = frozenset({"instruction", "input", "output", "system", "history", "text"})
"""Columns that go into the chat; `text` holds the same once more, in Stanford's template."""


def from_alpaca(row: Row) -> Row:
    """`instruction`, `input` and `output` as a chat in `prompt` and `completion`, of which the completion is trained.

    A text in `system` becomes the first message, pairs in `history` the turns before. With `chosen` and `rejected` in
    the place of `output`, those become the answers. Raises TransformError for a row without an instruction or answer.
    """
    instruction = _text(row, "instruction")
    given = _text(row, "input", needed=False)
    messages = [{"role": "system", "content": row["system"]}] if _text(row, "system", needed=False).strip() else []
    for question, answer in _history(row.get("history")):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": f"{instruction}\n\n{given}" if given.strip() else instruction})
    rest = {name: value for name, value in row.items() if name not in _ALPACA}
    return {"prompt": messages, **rest, **_answers(row)}


def alpaca_messages(row: Row) -> Row:
    """The same with the whole chat in `messages`, for a mixture with such, and for methods that take nothing else."""
    made = from_alpaca(row)
    if "completion" not in made:
        return made
    rest = {name: value for name, value in made.items() if name not in ("prompt", "completion")}
    return {"messages": made["prompt"] + made["completion"], **rest}


def _text(row: Row, column: str, *, needed: bool = True) -> str:
    value = row.get(column)
    if value is None and not needed:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # as a CSV file's reader has them
    if not isinstance(value, str):
        what = "is not text" if column in row else f"is missing; the columns are {', '.join(row)}"
        raise TransformError(f"`{column}` {what}", "from")
    return value


def _history(pairs: Any) -> list[tuple[Any, Any]]:
    if not pairs:
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise TransformError("`history` is not a list of pairs of an instruction and its answer", "from")
    return [(question, answer) for question, answer in pairs]


def _answers(row: Row) -> Row:
    if "output" not in row and "chosen" in row and "rejected" in row:
        return {name: _answer(row[name]) for name in ("chosen", "rejected")}
    return {"completion": _answer(_text(row, "output"))}


def _answer(text: Any) -> Any:
    return [{"role": "assistant", "content": text}] if isinstance(text, str | None) else text
