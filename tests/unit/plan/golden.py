"""Golden plans: `python -m tests.unit.plan.golden --write` writes tests/unit/plan/golden/ again.

Every launch config and every family recipe on 1, 8 and 2 x 8 GPUs: the commands, what is set for them, their GPUs, the
accelerate config and the batch, or why it cannot be. Memory and notes are left out: they have tests of their own.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.plan.accelerate import CONFIGS, shipped_names
from ptcli.plan.build import build_plan
from ptcli.plan.launch import ACCELERATE_FILE
from ptcli.plan.machine import assume_machine
from ptcli.plan.model import Plan
from ptcli.plan.resolve import change
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import Recipe

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).with_name("golden")
RUN = Path("/RUN")
"""Stands for the run directory, and `/PTCLI` for where ptcli lies."""
MACHINES = {"1x80GiB": 1, "8x80GiB": 1, "2x8x80GiB": 2}
"""As `--assume-gpus` takes them -> nodes."""
FAMILIES = ("qwen3", "llama3", "smollm", "gemma", "mistral")
OF_CONFIGS = "accelerate_configs"
NAMES = (OF_CONFIGS, *FAMILIES)


def texts() -> Mapping[str, str]:
    """Name of a golden file -> what it must say."""
    return {name: "\n".join(_cases(name)) + "\n" for name in NAMES}


def _cases(name: str) -> Iterator[str]:
    recipes = _of_configs() if name == OF_CONFIGS else _of_family(name)
    for title, recipe in recipes.items():
        for machine, nodes in MACHINES.items():
            yield f"## {title} on {machine}"
            yield from _describe(_on(recipe, nodes), machine)
            yield ""


@cache
def _of_configs() -> Mapping[str, Recipe]:
    """A config each, with the least that a recipe must say, and for one config a server beside it."""
    found = {name: _least("sft", accelerate=name) for name in shipped_names()}
    return found | {"zero3 with a rollout server": _least("grpo", accelerate="zero3")}


def _least(method: str, **launch: Any) -> Recipe:
    row = METHODS[method]
    return Recipe.model_validate(
        {
            "name": "least",
            "method": method,
            "output_dir": "least",
            "model": {"path": "org/model"},
            "data": {"train": [{"path": row.smoke_data}]},
            "launch": launch,
            **({"rewards": [{"use": "accuracy_reward"}], "rollouts": {"gpus": 2}} if row.online else {}),
        }
    )


def _of_family(name: str) -> Mapping[str, Recipe]:
    found = {}
    for path in sorted((ROOT / "recipes" / name).glob("*.yaml")):
        loaded = load_recipe(path)
        assert loaded.recipe is not None, loaded.problems
        found[f"{name}/{path.stem}"] = loaded.recipe
    return found


def _on(recipe: Recipe, nodes: int) -> Recipe:
    """Only `launch.nodes` is changed."""
    return change(recipe, launch=change(recipe.launch, nodes=nodes))


def _describe(recipe: Recipe, machine: str) -> Iterator[str]:
    planned = build_plan(recipe, assume_machine(machine), output_dir=RUN)
    lines = _plan(planned.plan) if planned.plan else map(_refusal, planned.problems)
    yield from (line.replace(str(ROOT), "/PTCLI") for line in lines)


def _refusal(problem: Problem) -> str:
    """What is said, without sizes."""
    return "refused: it does not fit" if "GiB" in problem.message else f"refused: {problem}"


def _plan(plan: Plan) -> Iterator[str]:
    for step in plan.steps:
        yield f"{step.name} of node {step.node} on {','.join(step.gpus)}: {shlex.join(step.argv)}"
        if step == plan.steps[-1] or step.name != "trainer":
            yield "  " + " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(step.env.items()))
    yield f"{plan.recipe.launch.accelerate}.yaml with {_changes(plan)}"
    yield f"batch: {json.dumps(dict(plan.batch))}"


def _changes(plan: Plan) -> str:
    """What the config that is used says, section by section, where it is not what the shipped file says."""
    shipped = yaml.safe_load((CONFIGS / f"{plan.recipe.launch.accelerate}.yaml").read_text(encoding="utf-8"))
    used = _flat(yaml.safe_load(plan.files[ACCELERATE_FILE]))
    before = _flat(shipped)
    changed = {name: value for name, value in used.items() if before.get(name, ...) != value}
    gone = [name for name in before if name not in used]
    return json.dumps(changed) + (f" without {', '.join(gone)}" if gone else "")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for key, given in config.items()
        for name, value in (given if isinstance(given, Mapping) else {key: given}).items()
    }


def write() -> None:
    """Write all files, and only those."""
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.iterdir():
        stale.unlink()
    for name, text in texts().items():
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    else:
        print(*texts().values(), sep="\n", end="")
