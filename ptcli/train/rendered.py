"""Chats as text, for trainers that write what a template makes of a chat into the chat's own column.

`datasets` gives a column the type Json where what is in it has several types, as the arguments of tool calls have, and
reads what is written there as JSON again: TRL's CPO, ORPO and BCO then find a list where they have just put text.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, Value

from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe
from ptcli.train.data import load_data

_CHATS = ("prompt", "chosen", "rejected", "completion")


def load_rows(recipe: Recipe, processor: Any) -> tuple[Dataset, Dataset | dict[str, Dataset] | None]:
    """The rows of `load_data`, with chats as text where the trainer could not take them otherwise."""
    train, evaluation = load_data(recipe)
    if METHODS[recipe.method].data.implicit_prompt != "row by row":
        return train, evaluation
    if isinstance(evaluation, dict):
        return render(train, processor), {name: render(rows, processor) for name, rows in evaluation.items()}
    return render(train, processor), None if evaluation is None else render(evaluation, processor)


def render(rows: Dataset, processor: Any) -> Dataset:
    """The rows with their chats as these trainers render them; the same rows where no chat has the type Json."""
    chats = [name for name in _CHATS if name in rows.features]
    if not any("Json(" in repr(rows.features[name]) for name in chats):
        return rows
    from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt

    features = Features(dict.fromkeys(dict.fromkeys(("prompt", *chats)), Value("string")))
    features |= {name: kind for name, kind in rows.features.items() if name == "label"}

    def as_text(example: dict[str, Any]) -> dict[str, Any]:
        rendered = maybe_apply_chat_template(maybe_extract_prompt(example), processing_class=processor)
        return {name: rendered[name] for name in features}

    return rows.map(as_text, features=Features(features), remove_columns=rows.column_names)
