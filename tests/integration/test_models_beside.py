"""Models beside the policy under FSDP, where transformers gives most processes zeros for weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.train.models import load_model
from ptcli.train.whole import load_whole
from tests.integration.test_train import describe

TINY = {"path": "builtin:tiny"}
BY_MODEL = [{"use": "builtin:tiny"}]
BY_FUNCTION = [{"use": "ptcli.builtin.rewards:length_reward"}]


@pytest.fixture
def second_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group whose only member takes itself for the second one of its machine, under FSDP."""
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def has_weights() -> bool:
    return any(parameter.any() for parameter in load_model(ModelSpec(**TINY), "causal_lm").parameters())


@pytest.mark.parametrize(
    ("method", "sections", "expected"),
    [
        ("sft", {}, False),  # accelerate sends the policy's weights to all
        ("grpo", {"rewards": BY_FUNCTION}, False),
        ("grpo", {"rewards": BY_FUNCTION, "training": {"beta": 0.1}}, True),
        ("grpo", {"rewards": BY_MODEL}, True),
        ("dpo", {}, True),
        ("gkd", {"teacher": TINY}, True),
    ],
)
def test_weights_are_read_where_another_model_needs_them(
    second_process: None, tmp_path: Path, method: str, sections: dict[str, Any], expected: bool
) -> None:
    load_whole(Recipe.model_validate(describe(method, tmp_path / "run", **sections)))
    assert has_weights() == expected
