"""`after: {merge: true}`: what follows a training that has succeeded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptcli.plan.build import Planned, build_plan
from ptcli.plan.model import Machine
from ptcli.plan.render import render_json, render_text
from ptcli.recipe.model import Recipe

ADAPTER = {"peft": {"type": "lora"}}


def planned(tmp_path: Path, **sections: Any) -> Planned:
    fields: dict[str, Any] = {
        "name": "run", "method": "sft", "output_dir": "run", "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": "builtin:arithmetic-messages"}]}, "launch": {"device": "cpu"},
        "after": {"merge": True},
    }  # fmt: skip
    recipe = Recipe.model_validate(fields | sections)
    return build_plan(recipe, Machine(gpus=()), output_dir=tmp_path / "my run")


def test_the_merge_is_part_of_the_plan(tmp_path: Path) -> None:
    plan = planned(tmp_path, **ADAPTER).plan
    assert plan is not None
    assert plan.after is not None
    run = str(tmp_path / "my run")
    assert plan.after.argv == ("ptcli", "merge", run, "--out", f"{run}/merged", "--force")
    assert f"ptcli merge '{run}'" in plan.files["launch.sh"]
    assert "# merge, when training has succeeded" in render_text(plan)
    assert json.loads(json.dumps(render_json(plan)))["after"]["argv"][:2] == ["ptcli", "merge"]
    assert [step.name for step in plan.steps] == ["trainer"]


def test_without_it_nothing_follows(tmp_path: Path) -> None:
    plan = planned(tmp_path, after={}, **ADAPTER).plan
    assert plan is not None
    assert plan.after is None
    assert "ptcli merge" not in plan.files["launch.sh"]
    assert render_json(plan)["after"] is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [({}, "this recipe trains none"), ({"peft": {"type": "prompt_tuning", "num_virtual_tokens": 4}}, "no merge of it")],
)
def test_nothing_to_merge(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    [problem] = [each for each in planned(tmp_path, **sections).problems if each.key == ("after", "merge")]
    assert message in problem.message
