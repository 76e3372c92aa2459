from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.methods import METHODS
from ptcli.plan.build import Planned, build_plan
from ptcli.plan.machine import assume_machine
from ptcli.plan.model import GPU, Machine
from ptcli.recipe.model import Recipe

SECTIONS: dict[str, Any] = {
    "rewards": [{"use": "trl.rewards:accuracy_reward"}],
    "reward_model": {"path": "builtin:tiny"},
    "teacher": {"path": "builtin:tiny"},
}


def make_recipe(method: str = "sft", **sections: Any) -> Recipe:
    """A recipe with what its method needs, over data and a model that ship."""
    row = METHODS[method]
    needed = {name: SECTIONS[name] for name in row.needs}
    common = {
        "name": "run",
        "method": method,
        "output_dir": "runs/run",
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": row.smoke_data}]},
    }
    return Recipe.model_validate(common | needed | sections)


def make_machine(*tokens: str, memory: int | None = 80 * 2**30, **facts: Any) -> Machine:
    gpus = tuple(GPU(token=token, memory=memory, uuid=f"GPU-uuid-{token}") for token in tokens)
    return Machine(gpus=gpus, **facts)


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    return make_recipe


@pytest.fixture
def machine_of() -> Callable[..., Machine]:
    return make_machine


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Planned]:
    """Plan a recipe, given by its sections, for a machine in the spelling of `--assume-gpus`, or `Machine`."""

    def plan(method: str = "sft", machine: Machine | str = "8x80GiB", **sections: Any) -> Planned:
        where = assume_machine(machine) if isinstance(machine, str) else machine
        return build_plan(make_recipe(method, **sections), where, output_dir=tmp_path / "run")

    return plan
