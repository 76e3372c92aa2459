from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptcli.errors import KeyPath
from ptcli.methods import METHODS, Batching
from ptcli.plan.batch import Batch, batch_of, divisors
from ptcli.plan.rows import count_rows
from ptcli.recipe.model import Recipe

Recipes = Callable[..., Recipe]


@pytest.fixture(scope="module")
def grpo() -> Recipe:
    data = {"train": [{"path": "builtin:arithmetic"}]}
    common = {"name": "run", "method": "grpo", "output_dir": "runs/run", "model": {"path": "builtin:tiny"}}
    return Recipe.model_validate(common | {"data": data, "rewards": [{"use": "m:f"}]})


def batch(recipe: Recipe, world: int = 1, rows: int | None = None, **training: Any) -> Batch:
    return batch_of(recipe.model_copy(update={"training": training}), world, rows)


def test_the_defaults_are_trls(grpo: Recipe) -> None:
    result = batch(grpo, world=4)
    assert result.problems == ()
    assert dict(result.sizes) == {
        "world_size": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "global_batch_size": 32,
        "num_generations": 8,
        "steps_per_generation": 1,
        "generation_batch_size": 32,
        "prompts_per_generation_batch": 4,
        "num_train_epochs": 3.0,
    }


@pytest.mark.parametrize(
    ("training", "world", "expected"),
    [
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_generations": 8}, 4, (4, 128, 16)),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 3, "num_generations": 3}, 2, (3, 12, 4)),
        ({"per_device_train_batch_size": 2, "generation_batch_size": 24, "num_generations": 6}, 3, (4, 24, 4)),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 2}, 1, (2, 8, 4)),
    ],
)
def test_generation_batches(grpo: Recipe, training: dict[str, Any], world: int, expected: tuple[int, ...]) -> None:
    result = batch(grpo, world, **training)
    assert result.problems == ()
    names = ("steps_per_generation", "generation_batch_size", "prompts_per_generation_batch")
    assert tuple(result.sizes[name] for name in names) == expected


@pytest.mark.parametrize(
    ("training", "world", "key", "texts"),
    [
        (
            {"per_device_train_batch_size": 3, "num_generations": 8},
            4,
            "num_generations",
            ["3 x 4 processes", "= 12 sequences", "legal num_generations: 2, 3, 4, 6, 12", "batch_size: 2 or 4"],
        ),
        ({"per_device_train_batch_size": 1}, 2, "per_device_train_batch_size", ["generations: 2;", "size: 4"]),
        ({"per_device_train_batch_size": 1}, 1, "per_device_train_batch_size", ["no legal value", "batch_size: 8"]),
        (
            {"generation_batch_size": 20, "per_device_train_batch_size": 4},
            1,
            "generation_batch_size",
            ["legal num_generations: 2, 4, 5, 10, 20", "legal generation_batch_size: 16 or 24"],
        ),
        (
            {"generation_batch_size": 16, "per_device_train_batch_size": 3},
            1,
            "generation_batch_size",
            ["not a multiple of per_device_train_batch_size 3 x 1 process = 3", "generation_batch_size: 24"],
        ),
        ({"generation_batch_size": 16, "steps_per_generation": 2}, 1, "generation_batch_size", ["cannot both"]),
        ({"num_generations": 1}, 1, "num_generations", ["at least 2"]),
        ({"auto_find_batch_size": True}, 1, "auto_find_batch_size", ["does not work with grpo"]),
        ({"per_device_train_batch_size": 0}, 1, "per_device_train_batch_size", ["at least 1"]),
        (
            {"eval_strategy": "steps", "per_device_eval_batch_size": 4},
            1,
            "per_device_eval_batch_size",
            ["4 x 1 process = 4 sequences", "per_device_eval_batch_size: 8", "num_generations_eval: 1, 2, 4"],
        ),
        (
            {"eval_strategy": "steps", "num_generations_eval": 3},
            1,
            "num_generations_eval",
            ["whole groups of 3", "per_device_eval_batch_size: 6 or 9"],
        ),
    ],
)
def test_illegal_batches_name_key_and_way_out(
    grpo: Recipe, training: dict[str, Any], world: int, key: str, texts: list[str]
) -> None:
    (problem,) = batch(grpo, world, **training).problems
    assert problem.key == ("training", key)
    for text in texts:
        assert text in str(problem)


def test_two_faults_are_two_problems(grpo: Recipe) -> None:
    problems = batch(grpo, 1, per_device_train_batch_size=3, auto_find_batch_size=True).problems
    assert {problem.key[-1] for problem in problems} == {"auto_find_batch_size", "per_device_train_batch_size"}


def test_evaluation_rows_alone_turn_evaluation_on(recipe_of: Recipes) -> None:
    data = {"train": [{"path": "builtin:arithmetic"}], "eval": 0.1}
    recipe = recipe_of("grpo", data=data, training={"per_device_eval_batch_size": 4})
    (problem,) = batch_of(recipe, 1).problems
    assert problem.key == ("training", "per_device_eval_batch_size")


@pytest.mark.parametrize(("rows", "ok"), [(None, True), (16, True), (15, False)])
def test_a_generation_batch_needs_that_many_prompts(grpo: Recipe, rows: int | None, ok: bool) -> None:
    problems = batch(grpo, 4, rows, gradient_accumulation_steps=4).problems
    assert (problems == ()) is ok
    if not ok:
        assert "TRL would train 0 steps" in str(problems[0])
        assert problems[0].key == ("training", "gradient_accumulation_steps")


def legal(batch_size: int, world: int, accumulation: int, group: int, steps: int | None, total: int | None) -> bool:
    """GRPOConfig.__post_init__, said again the long way round."""
    if steps is not None and total is not None:
        return False
    sequences = sum(batch_size for _ in range(world) for _ in range(steps or accumulation)) if total is None else total
    slices = [sequences - cut * batch_size * world for cut in range(sequences + 1)]
    groups = [sequences - cut * group for cut in range(sequences + 1)]
    return group >= 2 and 0 in slices and 0 in groups


small = st.integers(1, 9)


@given(small, st.integers(1, 4), st.integers(1, 4), small, st.none() | small, st.none() | st.integers(1, 64))
def test_generation_arithmetic_against_a_restatement(
    batch_size: int, world: int, accumulation: int, group: int, steps: int | None, total: int | None
) -> None:
    data = {"train": [{"path": "builtin:arithmetic"}]}
    training = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "num_generations": group,
    }
    training |= {"steps_per_generation": steps} if steps else {}
    training |= {"generation_batch_size": total} if total else {}
    model = {"path": "builtin:tiny"}
    recipe = Recipe(
        name="run", method="grpo", output_dir="run", model=model, data=data, training=training, rewards=[{"use": "m:f"}]
    )
    result = batch_of(recipe, world)
    assert (result.problems == ()) is legal(batch_size, world, accumulation, group, steps, total)
    if not result.problems:
        sizes = result.sizes
        assert sizes["generation_batch_size"] == batch_size * world * sizes["steps_per_generation"]
        assert sizes["prompts_per_generation_batch"] * group == sizes["generation_batch_size"]


@pytest.mark.parametrize(
    ("training", "key", "text"),
    [
        ({"num_mini_batches": 3}, "num_mini_batches", "legal num_mini_batches: 1, 2, 4, 8"),
        ({"per_device_train_batch_size": 4, "whiten_rewards": True}, "whiten_rewards", "at least 8"),
        ({"num_mini_batches": 0}, "num_mini_batches", "at least 1"),
    ],
)
def test_ppo_mini_batches(recipe_of: Recipes, training: dict[str, Any], key: str, text: str) -> None:
    (problem,) = batch_of(recipe_of("ppo", training=training), 2).problems
    assert problem.key == ("training", key)
    assert text in str(problem)


def test_ppo_sizes(recipe_of: Recipes) -> None:
    recipe = recipe_of("ppo", training={"num_mini_batches": 2, "gradient_accumulation_steps": 4})
    sizes = batch_of(recipe, 2).sizes
    assert (sizes["local_batch_size"], sizes["mini_batch_size"], sizes["global_batch_size"]) == (32, 16, 64)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_arithmetic(recipe_of: Recipes, method: str) -> None:
    duration = {"total_episodes": 7 * 16} if METHODS[method].batching is Batching.PPO else {"max_steps": 7}
    result = batch_of(recipe_of(method, training=duration), 2)
    assert result.problems == ()
    assert result.sizes["global_batch_size"] == 16
    assert result.sizes["max_steps"] == 7
    assert ("prompts_per_generation_batch" in result.sizes) is (METHODS[method].batching is Batching.GENERATION)


def test_divisors() -> None:
    assert divisors(12) == [2, 3, 4, 6, 12]
    assert divisors(1) == []
    assert divisors(49) == [7, 49]


def rows_of(recipe_of: Recipes, *entries: dict[str, Any], **data: Any) -> int | None:
    return count_rows(recipe_of("sft", data={"train": list(entries), **data}))


def test_rows_are_counted_where_that_is_cheap(recipe_of: Recipes, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}', encoding="utf-8")
    local = {"path": str(file)}
    assert rows_of(recipe_of, local) == 3
    assert rows_of(recipe_of, local, {**local, "take": 2}) == 5
    assert rows_of(recipe_of, {"path": "org/data", "take": 10}) == 10
    assert rows_of(recipe_of, {"path": "org/data"}, local) is None
    assert rows_of(recipe_of, {**local, "split": "train[:1]"}) is None
    assert rows_of(recipe_of, {"path": str(tmp_path / "none.jsonl")}) is None
    assert rows_of(recipe_of, {**local, "weight": 1.0}, {**local, "weight": 2.0}) is None
    assert rows_of(recipe_of, {**local, "filter": "own.py:f"}) == 3, "at most"
    assert rows_of(recipe_of, {"path": "builtin:arithmetic"}, eval=0.5) == 200
    assert rows_of(recipe_of, {"path": "builtin:arithmetic"}, eval=30) == 370


def test_the_key_of_a_problem_is_one_that_the_recipe_has(recipe_of: Recipes) -> None:
    (problem,) = batch_of(recipe_of("grpo", training={"learning_rate": 1.0}), 3, rows=2).problems
    expected: KeyPath = ("data", "train")
    assert problem.key == expected


@pytest.mark.parametrize("name", ["num_iterations", "max_completion_length"])
def test_what_trl_would_divide_by_or_send_is_at_least_one(grpo: Recipe, name: str) -> None:
    (problem,) = batch(grpo, **{name: 0}).problems
    assert problem.key == ("training", name)


def test_ppo_says_how_many_episodes_the_steps_are(recipe_of: Recipes) -> None:
    (problem,) = batch_of(recipe_of("ppo", training={"max_steps": 5, "gradient_accumulation_steps": 2}), 4).problems
    assert problem.key == ("training", "max_steps")
    assert "total_episodes: 320 for 5 steps" in problem.fix


@pytest.mark.parametrize(
    ("rows", "held_out", "fits"), [(16, None, True), (15, None, False), (24, 8, True), (23, 8, False)]
)
def test_ppo_needs_a_whole_batch_besides_what_is_held_out(
    recipe_of: Recipes, rows: int, held_out: int | None, fits: bool
) -> None:
    """With fewer rows TRL's loop over a loader that drops its only batch never ends."""
    recipe = recipe_of("ppo", data={"train": [{"path": "builtin:arithmetic", "take": rows}], "eval": held_out})
    problems = batch_of(recipe, 2, count_rows(recipe)).problems
    assert [str(problem.key[-1]) for problem in problems] == ([] if fits else ["train"])
    assert fits or "wait for ever" in problems[0].message


def test_ppo_counts_episodes(recipe_of: Recipes) -> None:
    recipe = recipe_of("ppo", training={"total_episodes": 1000, "per_device_train_batch_size": 8})
    assert batch_of(recipe, 4).sizes["max_steps"] == 32
