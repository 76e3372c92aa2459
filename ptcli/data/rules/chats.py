"""Messages one by one, and the order of their roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptcli.data.model import Hit, Severity
from ptcli.data.rules.facts import ROLES, Message, Seen, part_texts
from ptcli.data.rules.values import wrong
from ptcli.data.rules.words import LEAVE_OUT, clip, listed, quote, typed

KNOWN_KEYS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking", "from", "value")
)
"""Keys of a message that a template may read; from/value have a rule of their own."""
ROLE_NAMES = {
    "human": "user",
    "question": "user",
    "customer": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "bing": "assistant",
    "answer": "assistant",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_call": "assistant",
    "system_prompt": "system",
    "instruction": "system",
}
"""Role -> what it is called here."""
ANSWERS = ("completion", "chosen", "rejected")


def messages(seen: Seen) -> Iterator[Hit]:
    """Each message by itself."""
    for column, chat in seen.chats.items():
        if _is_sharegpt(chat):
            yield _sharegpt(column)
            continue
        if seen.plan.form == "sharegpt" and not _was_sharegpt(seen.row[column]):
            yield _MISNAMED
        strange = []
        kinds = set()
        for message in chat:
            content = message.get("content")
            role = message.get("role")
            if not (isinstance(role, str) and role in ROLES):
                strange.append(role)
            if not (len(message) == 2 and isinstance(content, str)):
                yield from _message(column, message, seen)
                kinds.add(type(content))
            else:
                kinds.add(str)
            if isinstance(content, str) and not content.strip():
                yield from _empty(column, message)
        if strange:
            yield from _strange_roles(column, strange, seen)
        if str in kinds and list in kinds:
            yield _MIXED_CONTENT


_MISNAMED = Hit(
    "misnamed-conversations",
    "error",
    "`conversations` holds role/content, which TRL reads under the name `messages` only",
    "rename: {conversations: messages}",
)
_MIXED_CONTENT = Hit(
    "mixed-format",
    "error",
    "`content` is text in some messages and a list of parts in others",
    "write every content as text, or every content as a list of parts",
    "content",
)


def misplaced(seen: Seen) -> Iterator[Hit]:
    """Chats under `conversations`, in rows without a set of columns that the method takes."""
    value = seen.row.get("conversations")
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        return
    if _is_sharegpt(value):
        yield _sharegpt("conversations")
    elif "role" in value[0]:
        yield _MISNAMED


def second_chat(seen: Seen) -> Iterator[Hit]:
    """`conversations` with from/value beside another set of columns: TRL makes `messages` of it all the same."""
    value = seen.row["conversations"]
    if isinstance(value, list) and value and isinstance(value[0], dict) and _was_sharegpt(value):
        error = seen.plan.form == "prompt-completion"
        detail = "`conversations` with from/value becomes `messages` beside the other columns, and takes their place"
        fix = "columns: [conversations]"
        yield Hit("ambiguous-columns", "error" if error else "warning", detail, fix, "conversations")


def _sharegpt(column: str) -> Hit:
    detail = f"the messages of `{column}` have the keys from/value instead of role/content"
    return Hit("sharegpt-in-messages", "error", detail, "from: sharegpt", column)


def _is_sharegpt(chat: list[Message]) -> bool:
    return any(("from" in message and "role" not in message) for message in chat) or any(
        ("value" in message and "content" not in message and "role" not in message) for message in chat
    )


def _was_sharegpt(chat: list[Message]) -> bool:
    return "from" in chat[0] and "value" in chat[0]


def _message(column: str, message: Message, seen: Seen) -> Iterator[Hit]:
    """What is to be said of a message that is not a role and a text alone."""
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not calls:
        other = next((key for key in ("text", "value", "message", "body") if key in message), "")
        detail = f"a message of `{column}` has no `content`" + (f", but `{other}`" if other else "")
        yield Hit("null-content", "error", detail, LEAVE_OUT, column)
    elif isinstance(content, list):
        yield from _parts(column, content, message)
    elif not isinstance(content, str | None):
        yield wrong(f"{column}[].content", "text", content)
    if calls is not None:
        yield from _calls(column, calls)
    strange = [key for key, value in message.items() if key not in KNOWN_KEYS and value is not None]
    if strange:
        names = listed([f"`{clip(key, 30)}`" for key in strange[:5]])
        detail = f"messages of `{column}` have {names}, which nothing reads: every turn is trained alike"
        yield Hit("ignored-message-keys", "warning", detail, "leave the keys out")


def _parts(column: str, parts: list[Any], message: Message) -> Iterator[Hit]:
    yield Hit(
        "content-parts",
        "warning",
        f"contents of `{column}` are lists of parts, which text-only templates print as Python",
        "write each content as text, unless the model's template takes parts",
    )
    if any(not isinstance(part, dict) for part in parts):
        yield wrong(f"{column}[].content", "text or a list of parts", parts)
    elif all(part.get("type") == "text" for part in parts) and not any(text.strip() for text in part_texts(parts)):
        yield from _empty(column, message)


def _empty(column: str, message: Message) -> Iterator[Hit]:
    """An assistant's turn, or an answer under any role, without a word; in other turns that is no error."""
    role = message.get("role")
    if message.get("tool_calls") or role in ("system", "user", "tool", "developer"):
        return
    if role == "assistant" or column in ANSWERS:
        detail = f"an assistant turn of `{column}` is empty: only the end of the turn would be trained"
        yield Hit("empty-value", "error", detail, LEAVE_OUT, column)


def _calls(column: str, calls: Any) -> Iterator[Hit]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        yield wrong(f"{column}[].tool_calls", "a list of objects", calls)
        return
    for call in calls:
        function = call.get("function", call)
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            detail = f"tool calls of `{column}` have `arguments` as JSON text, which some templates encode once more"
            yield Hit("tool-arguments-string", "warning", detail, "write `arguments` as an object")


def _strange_roles(column: str, roles: list[Any], seen: Seen) -> Iterator[Hit]:
    """Roles that no template knows. A tokenizer's rules decide about `developer`."""
    if "developer" in roles and all(role == "developer" for role in roles):
        detail = f"the role `developer` in `{column}`: many templates leave such a turn out"
        yield Hit("unknown-role", "warning", detail, "map_roles: {developer: system}", "developer")
        return
    names = [role for role in roles if isinstance(role, str) and role != "developer"]
    if not names:
        missing = any(role is None for role in roles)
        what = "no `role`" if missing else f"{typed(roles[0])} as its role"
        yield Hit("unknown-role", "error", f"a message of `{column}` has {what}", "give each message its role", "none")
        return
    different = sorted(set(names))
    shown = listed([quote(role) for role in different[:5]])
    detail = f"`{column}` has the role{'s' * (len(different) > 1)} {shown}, which chat templates do not know"
    yield Hit("unknown-role", "error", detail, _role_fix(different, seen), "+".join(different)[:64])


def _role_fix(roles: list[str], seen: Seen) -> str:
    if seen.plan.form == "sharegpt":
        return "from: sharegpt"
    found = {role: _meant(role) for role in roles[:8]}
    if not all(found.values()):
        return f"use the roles {listed(sorted(ROLES), 'or')}"
    return "map_roles: {" + ", ".join(f"{_key(role)}: {meant}" for role, meant in found.items()) + "}"


def _key(role: str) -> str:
    return role if role.isidentifier() else quote(role)


def _meant(role: str) -> str:
    simple = role.strip().lower()
    return simple if simple in ROLES else ROLE_NAMES.get(simple, "")


def turns(seen: Seen) -> Iterator[Hit]:
    """Whom a whole conversation leaves the last word, for methods that train on it."""
    for column in ("messages", "conversations"):
        roles = seen.roles.get(column)
        if roles is None:
            continue
        last_only = seen.facts.traits.last_turn_only
        if "assistant" not in roles:
            yield Hit("no-assistant-turn", "error", f"`{column}` has no assistant turn to train on", LEAVE_OUT)
        elif last_only and len(roles) < 2:
            detail = f"`{column}` has one message only: there is no prompt before it"
            yield Hit("no-assistant-turn", "error", detail, LEAVE_OUT, "alone")
        elif roles[-1] != "assistant":
            severity: Severity = "error" if last_only else "warning"
            what = "is trained as if it were the answer" if last_only else "is trained, too"
            detail = f"`{column}` ends with a {roles[-1]} turn, which {what}"
            yield Hit("last-turn-not-assistant", severity, detail, "drop the turns after the last assistant turn")


def role_order(seen: Seen) -> Iterator[Hit]:
    """Orders that strict templates refuse and others misread."""
    for column, roles in seen.roles.items():
        answer = column in ANSWERS and seen.plan.explicit
        if "system" in roles[0 if answer else 1 :]:
            yield _order(column, "a system message that is not the first")
        previous = ""
        for role in roles:
            if role == previous and role != "tool":
                yield _order(column, f"two {role} turns in a row")
                break
            previous = role
        if "tool" in roles and _orphan(seen.chats[column], roles, answer):
            yield _order(column, "a tool message with no tool call before it")


def _order(column: str, what: str) -> Hit:
    detail = f"`{column}` has {what}: some templates refuse that"
    return Hit("role-order", "warning", detail, variant=what)


def _orphan(chat: list[Message], roles: list[str], answer: bool) -> bool:
    """Whether a tool message has no tool call before it. What begins an answer may belong to the prompt's last turn."""
    called = answer
    for role, message in zip(roles, chat, strict=True):
        if role == "tool":
            if not called:
                return True
        else:
            called = role == "assistant" and bool(message.get("tool_calls"))
    return False


def prompt_roles(seen: Seen) -> Iterator[Hit]:
    """Who has the last word of a prompt, and whether a user has any."""
    roles = _prompt_roles(seen)
    if not roles:
        return
    if roles[-1] == "assistant":
        detail = "the prompt ends with an assistant turn: most trainers close it and open a second one"
        yield Hit("prompt-ends-assistant", "warning", detail, "move the last turn to the answer, or drop it")
    if roles[-1] == "system" and seen.facts.traits.checks_last_role:
        detail = "the prompt ends with a system message, which TRL refuses here"
        yield Hit("role-order", "error", detail, "end the prompt with a user turn", "system last")
    if seen.plan.form in ("pairs", "prompt") and "user" not in roles and "tool" not in roles:
        yield Hit("no-user-turn", "error", "the prompt has no user turn", LEAVE_OUT)


def _prompt_roles(seen: Seen) -> list[str]:
    """Roles of the prompt as the trainer has it; empty where it has no messages, or strange ones."""
    if seen.split is not None:
        prompt = seen.split[0]
        return seen.roles.get("chosen", [])[: len(prompt)] if isinstance(prompt, list) else []
    return seen.roles.get("prompt", [])


def answer_roles(seen: Seen) -> Iterator[Hit]:
    """Answers begin with the assistant, after what is cut off them as the prompt."""
    if not (seen.plan.explicit or seen.split):
        return
    prompt = seen.split[0] if seen.split else seen.row["prompt"]
    if not isinstance(prompt, list) or not prompt:
        return
    skipped = len(prompt) if seen.split else 0
    for column in ANSWERS:
        roles = seen.roles.get(column, [])[skipped:]
        if not roles or (not seen.split and repeats(prompt, seen.chats[column])):
            continue
        if roles[0] != "assistant":
            detail = f"the first message of `{column}` is a {roles[0]} turn, not the assistant's"
            yield Hit("completion-not-assistant", "error", detail, "move the turns before it to `prompt`", column)
        elif column == "completion" and roles[-1] != "assistant":
            detail = f"`{column}` ends with a {roles[-1]} turn, which is trained, too"
            yield Hit("last-turn-not-assistant", "warning", detail, "drop the turns after the last assistant turn")


def repeats(prompt: Any, answer: Any) -> bool:
    """Whether an answer begins with the whole prompt: both texts, or both chats."""
    return bool(prompt) and len(answer) >= len(prompt) and answer[: len(prompt)] == prompt
