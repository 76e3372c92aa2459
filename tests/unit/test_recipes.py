"""Every shipped recipe is loaded and planned, whole and shrunk; the seed's split is asserted to the letter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_number_of_recipes() -> None:
    assert [recipe.stem for recipe in RECIPES] == ["demo", "dpo", "grpo", "sft"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("arguments", [["--assume-gpus", "8x80GiB"], ["--smoke"]], ids=["eight GPUs", "smoke"])
def test_planned(recipe: Path, arguments: list[str], ptcli: Callable) -> None:
    result = ptcli("train", recipe, "--dry-run", "--json", *arguments)
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    assert set(plan) >= {"method", "steps", "files", "batch", "memory"}
    assert plan["steps"][-1]["name"] == "trainer"


def test_grpo_on_eight_gpus(root: Path, ptcli: Callable) -> None:
    result = ptcli("train", root / "recipes/grpo.yaml", "--dry-run", "--assume-gpus", "8x80GiB", "--json")
    rollouts, trainer = json.loads(result.out)["steps"]
    assert (rollouts["name"], rollouts["gpus"]) == ("rollouts", ["0", "1", "2", "3"])
    assert (trainer["name"], trainer["gpus"]) == ("trainer", ["4", "5", "6", "7"])
    assert rollouts["env"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert trainer["env"]["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert rollouts["argv"][:2] == ["vllm", "serve"]
    assert trainer["argv"][:2] == ["accelerate", "launch"]


def test_smoke_says_what_it_replaces(root: Path, ptcli: Callable) -> None:
    result = ptcli("train", root / "recipes/grpo.yaml", "--dry-run", "--smoke")
    assert "Qwen/Qwen2.5-0.5B-Instruct -> builtin:tiny" in result.out
    assert "trl-lib/DeepMath-103K -> builtin:arithmetic" in result.out
