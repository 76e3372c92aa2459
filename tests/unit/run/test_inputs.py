"""A run does not clear away what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptcli.recipe.model import Recipe
from ptcli.run.inputs import check_inputs


def recipe(model: Path, data: str = "builtin:arithmetic-messages", reward: str = "") -> Recipe:
    values = {"method": "sft", "model": {"path": str(model)}, "data": {"train": [{"path": data}]}}
    return Recipe.model_validate(
        {**values, "name": "x", "output_dir": "run", "rewards": [{"use": reward}] if reward else []}
    )


@pytest.mark.parametrize(
    ("model", "cleared"),
    [
        ("run", True),
        ("run@5", True),
        ("run/checkpoint-5", True),
        ("run/start", True),
        ("run/bases/mine", False),
        ("other", False),
        ("run-2", False),
    ],
)
def test_a_model_in_the_output_directory(tmp_path: Path, model: str, cleared: bool) -> None:
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    found = list(check_inputs(recipe(tmp_path / model), tmp_path / "run"))
    assert [problem.key for problem in found] == ([("model", "path")] if cleared else [])


def test_a_model_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    assert list(check_inputs(recipe(tmp_path / "latest"), tmp_path / "run"))
    assert list(check_inputs(recipe(tmp_path / "run"), tmp_path / "latest"))


def test_the_base_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    config = f'{{"peft_type": "LORA", "base_model_name_or_path": "{tmp_path / "run"}"}}'
    (tmp_path / "adapter" / "adapter_config.json").write_text(config)
    assert list(check_inputs(recipe(tmp_path / "adapter"), tmp_path / "run"))


def test_data_and_reward_models(tmp_path: Path) -> None:
    kept, lost = tmp_path / "run" / "mine.jsonl", tmp_path / "run" / "completions.jsonl"
    other = tmp_path / "model"
    assert not list(check_inputs(recipe(other, str(kept)), tmp_path / "run"))
    found = list(check_inputs(recipe(other, str(lost), str(tmp_path / "run")), tmp_path / "run"))
    assert [problem.key for problem in found] == [("rewards", 0, "use"), ("data", "train", 0, "path")]
    assert found[0].fix == "choose another output_dir"


def test_evaluation_data(tmp_path: Path) -> None:
    lost = {"path": str(tmp_path / "run" / "completions.jsonl")}
    given = recipe(tmp_path / "model").model_dump()
    for evaluation, place in (([lost], ()), ({"far": [lost]}, ("far",))):
        changed = Recipe.model_validate(given | {"data": given["data"] | {"eval": evaluation}})
        found = list(check_inputs(changed, tmp_path / "run"))
        assert [problem.key for problem in found] == [("data", "eval", *place, 0, "path")]
