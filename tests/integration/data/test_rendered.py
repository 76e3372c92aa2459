"""Chats with tool calls for the trainers that write the rendered text into the chat's own column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ptcli.builtin import MODEL
from ptcli.recipe.model import DataEntry, DataSpec, ModelSpec, Recipe
from ptcli.train.rendered import load_rows

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}"
)


def _call(arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": "look_up", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def _prompt(number: int) -> list[dict[str, Any]]:
    arguments = {"place": "Arle"} if number % 2 else {"page": number}
    asked = {"role": "user", "content": f"Question {number}?"}
    return [asked, _call(arguments), {"role": "tool", "content": str(number)}]


def _rows(columns: str) -> list[dict[str, Any]]:
    answer = [{"role": "assistant", "content": "It is so."}]
    other = [{"role": "assistant", "content": "It is not."}]
    pair = {"chosen": answer, "rejected": other}
    return [
        {"prompt": _prompt(number), **(pair if columns == "pairs" else {"completion": answer, "label": number > 1})}
        for number in range(4)
    ]


@pytest.mark.parametrize(
    ("method", "columns"), [("cpo", "pairs"), ("orpo", "pairs"), ("bco", "pairs"), ("bco", "labels")]
)
def test_tool_calls_of_any_arguments(method: str, columns: str, tmp_path: Path) -> None:
    rows = _rows(columns)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSpec(train=[DataEntry(path=str(file))])
    recipe = Recipe(name="t", method=method, output_dir=str(tmp_path), model=ModelSpec(path="builtin:tiny"), data=data)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = TEMPLATE
    loaded, _ = load_rows(recipe, tokenizer)
    for row, given in zip(loaded, rows, strict=True):
        assert row["prompt"] == tokenizer.apply_chat_template(given["prompt"], tokenize=False)
        for name in set(given) - {"prompt", "label"}:
            whole = tokenizer.apply_chat_template(given["prompt"] + given[name], tokenize=False)
            assert row["prompt"] + row[name] == whole
        assert row.get("label") == given.get("label")


def test_other_chats_are_left_to_the_trainer(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    chat = {"prompt": [{"role": "user", "content": "?"}]}
    chat |= {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    file.write_text(json.dumps(chat) + "\n")
    data = DataSpec(train=[DataEntry(path=str(file))])
    recipe = Recipe(name="t", method="cpo", output_dir=str(tmp_path), model=ModelSpec(path="builtin:tiny"), data=data)
    loaded, _ = load_rows(recipe, None)
    assert loaded[0]["prompt"] == chat["prompt"]
