"""What a case is, and the words its rows are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
Expected = Literal["error", "warning", "ok"]

ROWS = 16
"""Rows of a case that does not say otherwise."""


@dataclass(frozen=True)
class Case:
    """A file of rows with the verdict it must get."""

    name: str
    method: str
    rows: Sequence[Any] | bytes
    """Rows, or the bytes of the file."""
    expected: Expected = "ok"
    """`error`: an error of the rule. `warning`: a warning of the rule and no error. `ok`: no error."""
    rule: str | None = None
    """The rule, or several joined by `|` where the specification leaves open which; None: any."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments; `reward_columns`: columns that the reward function asks for."""
    tok: str = ""
    """Variant of the tokenizer."""
    may: str = ""
    """Rules that may warn of an `ok` case, joined by `|`; any other finding is a false alarm."""
    evaluation: Sequence[Any] | None = None
    """Rows to evaluate on."""
    suffix: str = ".jsonl"

    def __str__(self) -> str:
        return f"{self.method}-{self.name}"


def many(make: Callable[[int], Row], count: int = ROWS) -> list[Row]:
    """Rows 0, 1, 2, ... of a kind."""
    return [make(number) for number in range(count)]


def but(rows: Iterable[Row], number: int = 5, **changes: Any) -> list[Row]:
    """The rows, one of which has other values; `...` removes a key."""
    changed = list(rows)
    changed[number] = edited(changed[number], **changes)
    return changed


def every(rows: Iterable[Row], **changes: Any) -> list[Row]:
    """The rows, all of which have other values; a function is called with the row's number, `...` removes a key."""
    return [
        edited(row, **{key: value(number) if callable(value) else value for key, value in changes.items()})
        for number, row in enumerate(rows)
    ]


def edited(row: Row, **changes: Any) -> Row:
    merged = {**row, **changes}
    return {key: value for key, value in merged.items() if value is not ...}


# --- words -----------------------------------------------------------------------------------------------------------

_THINGS = ("boats", "kilns", "mills", "orchards", "bridges", "taverns", "looms", "foxes", "windows", "barges")
_TOWNS = ("Arle", "Brindmoor", "Culver", "Dray", "Eskmouth", "Fenwick", "Garrow", "Hollin", "Ister", "Juno Bay", "Kell")


def number(i: int) -> int:
    return 17 + (i * 37) % 71


def question(i: int) -> str:
    return f"In year {1600 + i}, how many {_THINGS[i % 10]} did {_TOWNS[i % 11]} have?"


def good(i: int) -> str:
    return f"{_TOWNS[i % 11]} had {number(i)} {_THINGS[i % 10]} in year {1600 + i}."


def bad(i: int) -> str:
    return f"Nobody knows, but perhaps {number(i) + 40} of them, {i} at least."


# --- messages --------------------------------------------------------------------------------------------------------


def message(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def system(content: Any = "Answer from the town's books.", **more: Any) -> Row:
    return message("system", content, **more)


def user(content: Any, **more: Any) -> Row:
    return message("user", content, **more)


def assistant(content: Any, **more: Any) -> Row:
    return message("assistant", content, **more)


def call(name: str, arguments: Any, key: str | None = None) -> Row:
    made: Row = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if key is None else {"id": key, **made}


def tool(name: str = "count_things", parameters: Any = None) -> Row:
    described = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
    function = {"name": name, "description": "Counts what a town has.", "parameters": parameters or described}
    return {"type": "function", "function": function}


# --- rows of each dataset type ---------------------------------------------------------------------------------------


def text(i: int) -> Row:
    return {"text": f"{question(i)} {good(i)}"}


def messages(i: int) -> Row:
    return {"messages": [user(question(i)), assistant(good(i))]}


def completion(i: int) -> Row:
    return {"prompt": question(i), "completion": " " + good(i)}


def chat_completion(i: int) -> Row:
    return {"prompt": [user(question(i))], "completion": [assistant(good(i))]}


def preference(i: int) -> Row:
    return {"prompt": question(i), "chosen": " " + good(i), "rejected": " " + bad(i)}


def chat_preference(i: int) -> Row:
    return {"prompt": [user(question(i))], "chosen": [assistant(good(i))], "rejected": [assistant(bad(i))]}


def implicit(i: int) -> Row:
    start = f"Question: {question(i)}\nAnswer: "
    return {"chosen": start + good(i), "rejected": start + bad(i)}


def chat_implicit(i: int) -> Row:
    return {"chosen": [user(question(i)), assistant(good(i))], "rejected": [user(question(i)), assistant(bad(i))]}


def full_chats(i: int) -> Row:
    """UltraFeedback's layout."""
    return {"prompt": question(i), **chat_implicit(i)}


def unpaired(i: int) -> Row:
    return {"prompt": question(i), "completion": " " + (good(i) if i % 2 else bad(i)), "label": bool(i % 2)}


def chat_unpaired(i: int) -> Row:
    answer = good(i) if i % 2 else bad(i)
    return {"prompt": [user(question(i))], "completion": [assistant(answer)], "label": bool(i % 2)}


def prompt(i: int) -> Row:
    return {"prompt": question(i)}


def chat_prompt(i: int) -> Row:
    return {"prompt": [user(question(i))]}


def answered(i: int) -> Row:
    return {"prompt": question(i), "answer": str(number(i))}


def steps(i: int) -> Row:
    return {
        "prompt": question(i),
        "completions": [f"Look up {_TOWNS[i % 11]}.", f"Read the number: {number(i)}."],
        "labels": [True, bool(i % 2)],
    }


def tokens(i: int) -> Row:
    return {"input_ids": [5 + i, 6, 7, 8, 9, 2]}
