"""What the rules know of a run, from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptcli.data.context import context_of, reward_needs, splits_of
from ptcli.data.model import RewardNeeds
from ptcli.methods import METHODS
from ptcli.recipe.model import DataEntry, DataSpec, LaunchSpec, ModelSpec, Recipe, RewardSpec

REWARDS = """
def plain(completions, **kwargs): ...
def answer(prompts, completions, answer, unit="m", **kwargs): ...
def keyword(completions, *, solution, log_metric=None): ...
async def judged(completions, question, **kwargs): ...
def factory(scale):
    def reward(completions, target, **kwargs): ...
    return reward
class Kept:
    def __init__(self, scale): ...
    def __call__(self, completions, label, **kwargs): ...
"""


def _recipe(**changes: Any) -> Recipe:
    given: dict[str, Any] = {
        "name": "test",
        "method": "grpo",
        "output_dir": "/run",
        "model": ModelSpec(path="builtin:tiny"),
        "data": DataSpec(train=[DataEntry(path="rows.jsonl")]),
    }
    return Recipe(**given | changes)


@pytest.mark.parametrize(
    ("name", "required", "named"),
    [
        ("plain", (), ()),
        ("answer", ("answer",), ("answer", "unit")),
        ("keyword", ("solution",), ("solution",)),
        ("judged", ("question",), ("question",)),
        ("factory", ("target",), ("target",)),
        ("Kept", ("label",), ("label",)),
    ],
)
def test_reward_needs(name: str, required: tuple[str, ...], named: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    use = f"{tmp_path}/rewards.py:{name}"
    assert reward_needs(RewardSpec(use=use), METHODS["grpo"]) == RewardNeeds(use, required, named)


def test_bound_arguments_need_no_column(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    reward = RewardSpec(use=f"{tmp_path}/rewards.py:answer", args={"answer": "7"})
    assert reward_needs(reward, METHODS["grpo"]) == RewardNeeds(reward.use, (), ("unit",))


def test_what_the_trainer_passes_differs(tmp_path: Path) -> None:
    """Online DPO passes no log_metric: a function that wants it without a default asks for a column."""
    (tmp_path / "rewards.py").write_text("def reward(completions, log_metric, **kwargs): ...")
    reward = RewardSpec(use=f"{tmp_path}/rewards.py:reward")
    assert reward_needs(reward, METHODS["grpo"]) == RewardNeeds(reward.use, (), ())
    assert reward_needs(reward, METHODS["online_dpo"]) == RewardNeeds(reward.use, ("log_metric",), ("log_metric",))


def test_a_reward_of_trl_by_its_name() -> None:
    needs = reward_needs(RewardSpec(use="accuracy_reward"), METHODS["grpo"])
    assert needs is not None
    assert needs.required == ("solution",)


def test_a_reward_model_asks_for_nothing() -> None:
    assert reward_needs(RewardSpec(use="builtin:tiny"), METHODS["grpo"]) is None


def test_arguments_are_the_recipes_or_trls() -> None:
    context = context_of(_recipe(method="sft", training={"packing": True}), "train", tokenizer=False)
    assert (context.argument("packing"), context.argument("max_length")) == (True, 1024)
    assert context.argument("no_such", 3) == 3


def test_prompts_of_a_generation_batch() -> None:
    training = {"per_device_train_batch_size": 4, "num_generations": 2}
    assert context_of(_recipe(training=training), "train", tokenizer=False).prompts_per_generation == 2
    launch = LaunchSpec(device="cpu", processes=2)
    context = context_of(_recipe(training=training, launch=launch), "train", tokenizer=False)
    assert (context.world, context.prompts_per_generation) == (2, 4)


def test_splits() -> None:
    rows = [DataEntry(path="rows.jsonl")]
    named = DataSpec(train=rows, eval={"math": rows, "code": rows})
    assert [name for name, _ in splits_of(_recipe(data=named))] == ["train", "eval.math", "eval.code"]
    assert [name for name, _ in splits_of(_recipe(data=DataSpec(train=rows, eval=rows)))] == ["train", "eval"]
    held_out = _recipe(data=DataSpec(train=rows, eval=0.1))
    assert [name for name, _ in splits_of(held_out)] == ["train"]
    assert context_of(held_out, "train", tokenizer=False).has_eval


def test_shuffled_is_said_of_all_entries() -> None:
    entries = [DataEntry(path="a.jsonl", shuffle=True), DataEntry(path="b.jsonl")]
    assert not context_of(_recipe(data=DataSpec(train=entries)), "train", tokenizer=False).shuffled
    assert context_of(_recipe(data=DataSpec(train=entries[:1])), "train", tokenizer=False).shuffled


def test_whether_the_model_takes_images(tmp_path: Path) -> None:
    assert context_of(_recipe(), "train", tokenizer=False).vision is False
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    recipe = _recipe(model=ModelSpec(path=str(tmp_path)))
    assert context_of(recipe, "train", tokenizer=False).vision is True
    assert context_of(_recipe(model=ModelSpec(path="some/model")), "train", tokenizer=False).vision is None
