"""The real trainers, small: the shipped model and data, a CPU, float32, and nothing left behind."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ptcli.builtin import MODEL, data_path
from ptcli.doctor.math.reference import Text
from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.train.objects import import_class

ROWS = 6
"""Rows of a batch; their completions differ in length, which tells means over tokens from means over sequences."""
Row = dict[str, Any]

_SMALL = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
"""What makes a run small and exact; everything else is the library's default or the identity's own."""


def make_trainer(
    method: str,
    *,
    rows: Sequence[Row] | None = None,
    model: PreTrainedModel | None = None,
    given: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """The method's trainer on the first rows of its shipped data, in training mode.

    Args:
        model: The policy; by default the trainer loads the shipped one by path.
        given: Further arguments of the trainer (`reward_funcs`, `ref_model`, ...).
        arguments: Those of its config.
    """
    row = METHODS[method]
    rows = first_rows(row.smoke_data) if rows is None else rows
    config = import_class(row.config)
    ours = {"output_dir": _folder(), "per_device_train_batch_size": len(rows)} | _small(row.config) | arguments
    set_seed(0)
    trainer = import_class(row.trainer)(
        model=str(MODEL) if model is None else model,
        args=config(**ours),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer(left=row.online),
        **(given or {}),
    )
    trainer.model.train()
    return trainer


def first_rows(name: str, count: int = ROWS) -> list[Row]:
    """The two shortest rows of a shipped data set and then its first ones: completions of more than one length."""
    lines = data_path(name).read_text(encoding="utf-8").splitlines()
    chosen = dict.fromkeys([*sorted(lines, key=len)[:2], *lines])
    return [json.loads(line) for line in list(chosen)[:count]]


def batch_of(trainer: Any) -> Any:
    """The first batch of the trainer's own loader and collator."""
    return next(iter(trainer.get_train_dataloader()))


def load(head: str = "CausalLM", **arguments: Any) -> PreTrainedModel:
    """The shipped model under another head, whose weights are drawn from a fixed seed."""
    set_seed(0)
    return getattr(transformers, f"AutoModelFor{head}").from_pretrained(MODEL, dtype=torch.float32, **arguments)


@functools.cache
def tokenizer(*, left: bool = False) -> PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(MODEL, padding_side="left" if left else "right")


def move(model: torch.nn.Module, *, seed: int, by: float = 0.1) -> None:
    """Move every weight at random, by this share of the spread of its tensor: a policy that has been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            spread = float(weight.std()) if weight.numel() > 1 else 1.0
            weight.add_(torch.randn(weight.shape, generator=generator) * (by * (spread or 0.1)))


def chat(prompt: Sequence[Row], completion: Sequence[Row] = (), *, end: bool = False) -> Text:
    """A conversation by the tokenizer's own template. With `end`, one more end token, as some trainers add it."""
    template = tokenizer().apply_chat_template
    head = list(template(list(prompt), add_generation_prompt=True, tokenize=True, return_dict=False))
    ids = list(template([*prompt, *completion], tokenize=True, return_dict=False))
    if ids[: len(head)] != head:
        raise ValueError("the template of a prompt is not the beginning of the template of the whole")
    return Text((*ids, *([tokenizer().eos_token_id] if end else [])), len(head))


def pairs(rows: Iterable[Row], *, end: bool = False) -> list[tuple[Text, Text]]:
    """The chosen and the rejected conversation of each preference row."""
    both = ("chosen", "rejected")
    return [tuple(chat(row["prompt"], row[side], end=end) for side in both) for row in rows]  # type: ignore[misc]


def _small(config: str) -> dict[str, Any]:
    known = fields(config)
    return {key: value for key, value in _SMALL.items() if key in known}


def _folder() -> str:
    """A folder that is removed when the process ends: trainers make theirs when they are built."""
    return _made_folder().name


@functools.cache
def _made_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ptcli-math-")
