"""Does a chat template write all of a conversation? Contents, calls and reasoning are looked for in what it made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptcli.data.model import Hit
from ptcli.data.rules.words import clip
from ptcli.data.tokens.encoded import Chat

_PROBE = 40
"""Characters, besides white space, of a content that must be there."""
_KNOWN = frozenset({"system", "user", "assistant", "tool"})
_REASONING = ("reasoning_content", "thinking")
_END_OF_THOUGHT = "</think>"
_DROPS, _DROPS_TOOLS = "template-drops-content", "template-drops-tools"
_FIX = "name another template in `model.chat_template`"


def find_dropped(chats: Sequence[tuple[Chat, str]], tools: Any) -> Iterator[tuple[str, Hit]]:
    """What the template left out of a row's chats, each with its variant.

    A message that two chats of the row share is looked for in the first one only.
    """
    seen: set[int] = set()
    for chat, text in chats:
        place = 0
        for message in chat:
            if id(message) in seen:
                continue
            seen.add(id(message))
            content = message.get("content")
            if isinstance(content, str):
                content = content.strip()
                found = text.find(content, place)
                if found < 0:
                    yield from _judge(message, content, text)
                else:
                    place = found + len(content)
            elif isinstance(content, list):
                yield from _find_lost_parts(content, text)
            if len(message) > 2:
                yield from _find_lost_extras(message, text)
    if tools and chats:
        yield from _find_lost_tools(tools, chats[0][1])


def _judge(message: Mapping[str, Any], content: str, text: str) -> Iterator[tuple[str, Hit]]:
    """A content that is not there as it is: elsewhere, written in another way, without its reasoning, or not at all."""
    if _occurs(content, text):
        return
    role = message["role"]
    answer = content.rpartition(_END_OF_THOUGHT)[2].strip()
    if _END_OF_THOUGHT in content and (not answer or _occurs(answer, text)):
        yield "reasoning", Hit(_DROPS, "warning", "the chat template leaves the reasoning of earlier turns out", "")
    elif role == "tool":
        yield (
            "turn",
            Hit(_DROPS_TOOLS, "error", f"the chat template leaves a tool's answer out: {_quote(content)}", _FIX),
        )
    elif role not in _KNOWN:
        name = clip(role)
        said = f"the chat template leaves the messages of role `{name}` out: {_quote(content)}"
        yield name, Hit("unknown-role", "error", said, f"map it to `system`: `map_roles: {{{name}: system}}`")
    else:
        severity = "warning" if role == "system" else "error"
        said = f"the chat template leaves the content of the {role}'s message out: {_quote(content)}"
        yield role, Hit(_DROPS, severity, said, _FIX)  # type: ignore[arg-type]


def _occurs(content: str, text: str) -> bool:
    """Whether the first characters of the content occur, white space aside."""
    if content in text:
        return True
    probe = "".join(content[: 8 * _PROBE].split())[:_PROBE]
    return probe in "".join(text.split())


def _find_lost_parts(parts: list[Any], text: str) -> Iterator[tuple[str, Hit]]:
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    printed = "{'type'" in text and not any("{'type'" in each for each in texts)
    lost = [each for each in texts if not _occurs(each.strip(), text)]
    if printed or lost:
        how = "prints the list of them as it is" if printed else "leaves them out"
        said = f"contents are lists of parts, and the chat template {how}"
        yield "", Hit("content-parts", "error", said, "write contents as text, or name a template that reads parts")


def _find_lost_extras(message: Mapping[str, Any], text: str) -> Iterator[tuple[str, Hit]]:
    """Reasoning and tool calls."""
    for name in _REASONING:
        reasoning = message.get(name)
        if isinstance(reasoning, str) and reasoning.strip() and not _occurs(reasoning.strip(), text):
            yield name, Hit(_DROPS, "warning", f"the chat template leaves `{name}` out", "")
    calls = message.get("tool_calls")
    for name in map(_name_of, calls if isinstance(calls, list) else ()):
        if name and name not in text:
            yield (
                "call",
                Hit(_DROPS_TOOLS, "error", f"the chat template leaves the call of the tool `{name}` out", _FIX),
            )


def _find_lost_tools(tools: Any, text: str) -> Iterator[tuple[str, Hit]]:
    names = [name for name in map(_name_of, tools if isinstance(tools, list) else ()) if name]
    lost = [name for name in names if name not in text]
    if lost:
        said = f"the chat template leaves the description of the tool `{lost[0]}` out"
        yield "tools", Hit(_DROPS_TOOLS, "warning", said, _FIX)


def _name_of(call: Any) -> str:
    """The function of a tool or a call; "" for anything else."""
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _quote(content: str) -> str:
    return repr(content if len(content) <= _PROBE else f"{content[:_PROBE]}...")
