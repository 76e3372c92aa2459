"""What a plan decides for a method whose trainer leaves it to the user: further models, rows to evaluate on, an end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ptcli.plan.build import Planned
from ptcli.plan.smoke import shrink
from ptcli.recipe.model import Recipe
from ptcli.train.config import training_arguments

Plans = Callable[..., Planned]


def planned(plan_of: Plans, method: str = "ppo", **sections: Any) -> Any:
    result = plan_of(method, **sections)
    assert result.plan is not None, result.problems
    return result.plan


def test_the_value_model_starts_as_the_reward_model(plan_of: Plans) -> None:
    reward = {"path": "org/reward", "dtype": "bfloat16", "quantization": {"load_in_4bit": True}}
    value = planned(plan_of, reward_model=reward).recipe.value_model
    assert (value.path, value.dtype, value.quantization, value.adapter) == ("org/reward", "float32", None, None)
    value = planned(plan_of, reward_model={"path": "org/reward", "adapter": "continue"}).recipe.value_model
    assert value.adapter == "merge"
    own = planned(plan_of, reward_model=reward, value_model={"path": "org/value"}).recipe.value_model
    assert own.path == "org/value"


@pytest.mark.parametrize("method", ["xpo", "nash_md"])
def test_no_other_method_gets_a_value_model(method: str, plan_of: Plans) -> None:
    assert planned(plan_of, method).recipe.value_model is None


def test_one_evaluation_batch_is_held_out(plan_of: Plans) -> None:
    plan = planned(plan_of, machine="4x80GiB", training={"per_device_eval_batch_size": 3})
    assert plan.recipe.data.eval == 12
    assert any(note.startswith("12 training rows are held out") for note in plan.notes)


@pytest.mark.parametrize(("method", "given"), [("ppo", 0.25), ("ppo", 5), ("grpo", None)])
def test_what_the_recipe_says_of_evaluation_stays(method: str, given: Any, plan_of: Plans) -> None:
    data = {"train": [{"path": "builtin:arithmetic"}], "eval": given}
    training = {"per_device_eval_batch_size": 8}
    assert planned(plan_of, method, machine="1x80GiB", data=data, training=training).recipe.data.eval == given


@pytest.mark.parametrize(
    ("training", "expected"),
    [({}, "eos"), ({"stop_token": None}, None), ({"stop_token_id": 7}, None), ({"stop_token": "eos"}, "eos")],
)
def test_answers_end_where_the_sequence_ends(
    training: dict[str, Any], expected: str | None, recipe_of: Callable[..., Recipe]
) -> None:
    assert training_arguments(recipe_of("ppo", training=training)).get("stop_token") == expected
    assert "stop_token" not in training_arguments(recipe_of("grpo"))


def test_a_smoke_run_s_teacher_is_not_its_student(recipe_of: Callable[..., Recipe]) -> None:
    small, notes = shrink(recipe_of("gkd", model={"path": "org/student"}, teacher={"path": "org/teacher"}))
    assert small.teacher is not None
    assert (small.model.from_, small.teacher.from_) == ("weights", "config")
    assert any(note.startswith("teacher.from") for note in notes), notes
    local, _ = shrink(recipe_of("gkd", teacher={"path": "builtin:tiny"}))
    assert local.teacher is not None
    assert local.teacher.from_ == "weights"
