"""Choices that no annotation says, against the source of the trainers that compare with them."""

from __future__ import annotations

import re

import pytest

from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.code import find_module

WITH_CHOICES = [
    (name, field)
    for name in METHODS
    for field in ("loss_type", "truncation_mode", "f_divergence_type", "packing_strategy", "importance_sampling_level",
                  "multi_objective_aggregation", "vllm_importance_sampling_mode", "scale_rewards")
    if field in fields(METHODS[name].config)
]  # fmt: skip

REFUSED = {"kto_pair"}
"""What a trainer names only to refuse it."""


def source_of(method: str) -> str:
    """Source of the method's trainer and config, with those of the classes that it inherits from."""
    modules = {
        "trl:SFT": "sft", "trl:DPO": "dpo", "trl:KTO": "kto", "trl:GRPO": "grpo", "trl:RLOO": "rloo",
        "trl:Reward": "reward", "trl:Distillation": "distillation",
    }  # fmt: skip
    parents = {"gkd": "sft", "minillm": "grpo", "xpo": "online_dpo", "nash_md": "online_dpo"}
    config = METHODS[method].config
    own = modules.get(config.removesuffix("Config"), "")
    base = f"trl.trainer.{own}" if own else f"{config.partition(':')[0]}.{method}"
    paths = [find_module(f"{base}_{part}") for part in ("trainer", "config")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths if path)
    return text + (source_of(parents[method]) if method in parents else "")


@pytest.mark.parametrize(("method", "field"), WITH_CHOICES)
def test_choices_are_those_of_the_source(method: str, field: str) -> None:
    schema = fields(METHODS[method].config)[field].schema
    branch = schema.get("anyOf", [schema])[-1]
    choices = {choice for choice in branch["enum"] if isinstance(choice, str)}
    source = source_of(method)
    for choice in choices:
        assert re.search(rf"""["'`]{re.escape(choice)}["'`]""", source), choice
    compared = set(re.findall(rf"""\b{field} == ["']([\w-]+)["']""", source))
    assert compared - REFUSED <= choices
