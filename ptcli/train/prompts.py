"""Prompts as tokens, for trainers that take `input_ids` and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from ptcli.errors import WorkError

TOKENS = "input_ids"


def tokenize_prompts(rows: Dataset, tokenizer: Any, key: str) -> Dataset:
    """The rows in their order, with the one column `input_ids`: each prompt up to where its completion begins.

    A chat gets the template's generation prompt, or goes on where its last message is the assistant's; text gets the
    tokenizer's own special tokens. Rows that have `input_ids` already keep them. `key`: the rows' place in the recipe.

    Raises WorkError for rows without a prompt, and for an empty one.
    """
    if TOKENS in rows.column_names:
        tokens = rows.select_columns([TOKENS])
    elif "prompt" in rows.column_names:
        tokens = rows.map(lambda row: {TOKENS: _encode(row, tokenizer)}, remove_columns=rows.column_names)
    else:
        raise WorkError(f"{key}: there is no column `prompt`; found {', '.join(rows.column_names)}")
    empty = next((index for index, ids in enumerate(tokens[TOKENS]) if not ids), None)
    if empty is not None:
        raise WorkError(f"{key}: row {empty} has an empty prompt")
    return tokens


def check_padding(tokenizer: Any) -> None:
    """Raises WorkError when padding and end of sequence are one token.

    Trainers of tokens tell padding by its id alone: they would hide every end of a turn in a prompt, and never train
    the policy to end its answers.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise WorkError(
            f"model.pad_token: the padding token must not be the end-of-sequence token {tokenizer.eos_token}, which "
            "would never be trained; name another token of the vocabulary"
        )


def _encode(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    prompt = row["prompt"]
    if not isinstance(prompt, list) or not prompt:
        return list(tokenizer(prompt)[TOKENS]) if prompt else []
    goes_on = prompt[-1]["role"] == "assistant"
    encoded = tokenizer.apply_chat_template(
        prompt,
        tools=row.get("tools") or None,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
        tokenize=True,
        return_dict=True,
        **(row.get("chat_template_kwargs") or {}),
    )
    return list(encoded[TOKENS])
