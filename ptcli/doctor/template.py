"""Do the installed transformers and TRL fit together? A chat goes through both as in a run, and each token is compared.

transformers has changed what `apply_chat_template(tokenize=True)` returns; a TRL that takes it for a list of tokens
builds a wrong mask, with nothing but a warning (E2 of the field's reports: trl#6105). Metadata do not tell.

Heavy: it builds TRL's SFT trainer on the shipped model. Runs in the child of `ptcli.doctor.probe`.
"""

from __future__ import annotations

from typing import Any

ROWS = 4
"""Completions of more than one length, which are padded."""
_IGNORED = -100
"""Label of a token that is not trained on."""


def find_problem() -> str:
    """What is wrong, in words that follow a colon; empty when all is well. Raises what the libraries raise."""
    from ptcli.doctor.math.trainers import batch_of, first_rows, make_trainer, tokenizer

    rows = first_rows("arithmetic-prompt-completion", ROWS)
    wanted = sorted(_written_out(row, tokenizer()) for row in rows)
    chat = [*rows[0]["prompt"], *rows[0]["completion"]]
    if problem := _judge_returned(tokenizer().apply_chat_template(chat, tokenize=True, return_dict=True)):
        return problem
    return judge_batch(wanted, sorted(_read(batch_of(make_trainer("sft", rows=rows, dataloader_pin_memory=False)))))


def judge_batch(wanted: list[tuple[list[int], list[int]]], found: list[tuple[list[int], list[int]]]) -> str:
    """Compare rows of a batch with what they must be. Both: token ids and, of these, those that are trained on."""
    if [ids for ids, _ in found] != [ids for ids, _ in wanted]:
        return "the SFT trainer's tokens are not those of the chat template's text"
    for (_, trained), (_, expected) in zip(found, wanted, strict=True):
        if trained != expected:
            return f"the SFT trainer trains on {len(trained)} tokens of a row whose completion has {len(expected)}"
    return ""


def _judge_returned(returned: Any) -> str:
    """TRL's trainers read `["input_ids"]`, and take it for a list of numbers."""
    try:
        ids = returned["input_ids"]
    except (KeyError, TypeError, IndexError):
        return f"apply_chat_template(tokenize=True, return_dict=True) returns a {type(returned).__name__}"
    if isinstance(ids, list) and all(type(each) is int for each in ids):
        return ""
    inner = f" of {type(ids[0]).__name__}" if isinstance(ids, list) and ids else ""
    return f"apply_chat_template(tokenize=True) returns input_ids as a {type(ids).__name__}{inner}"


def _written_out(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """A row's tokens, and those of its completion, from the text that the template makes."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
    ids = [list(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in (prompt, text)]
    return ids[1], ids[1][len(ids[0]) :]


def _read(batch: Any) -> list[tuple[list[int], list[int]]]:
    columns = (batch[name].tolist() for name in ("input_ids", "labels", "attention_mask"))
    return [
        ([token for token, real in zip(ids, mask, strict=True) if real], [each for each in labels if each != _IGNORED])
        for ids, labels, mask in zip(*columns, strict=True)
    ]
