from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.builtin import MODEL
from ptcli.methods import METHODS
from ptcli.plan.build import build_plan
from ptcli.plan.machine import assume_machine
from ptcli.plan.model import Machine, Plan
from ptcli.plan.smoke import shrink
from ptcli.recipe.model import Recipe

Recipes = Callable[..., Recipe]
LAPTOP = Machine(gpus=(), cpus=2)
HUB = {"path": "org/model", "revision": "main", "attn_implementation": "flash_attention_2"}
HUB_DATA = {"train": [{"path": "org/data", "name": "main", "split": "train[:50%]", "rename": {"a": "b"}}]}


def planned(recipe: Recipe, machine: Machine = LAPTOP) -> Plan:
    result = build_plan(recipe, machine, output_dir=Path("run"))
    assert result.problems == ()
    assert result.plan is not None
    return result.plan


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("gpus", [1, 4])
def test_every_method_can_be_tried_on_a_laptop(recipe_of: Recipes, method: str, gpus: int) -> None:
    row = METHODS[method]
    models = {name: HUB for name in ("reward_model", "teacher") if name in row.needs}
    small, notes = shrink(recipe_of(method, model=HUB, data=HUB_DATA, launch={"gpus": gpus}, **models))
    plan = planned(small)
    assert small.model.path == "builtin:tiny"
    assert small.data.train[0].path == row.smoke_data
    assert plan.batch["world_size"] == min(gpus, 2)
    assert plan.batch["global_batch_size"] <= 16
    assert plan.batch.get("max_steps", 3) <= 5
    assert "model.path: org/model -> builtin:tiny" in notes
    assert f"data.train.0.path: org/data -> {row.smoke_data}" in notes


def test_a_smoke_run_does_not_use_gpus_that_are_there(recipe_of: Recipes) -> None:
    small, _ = shrink(recipe_of("grpo", rollouts={"gpus": 4}, launch={"gpus": 4}))
    plan = planned(small, assume_machine("8x80GiB"))
    assert [step.gpus for step in plan.steps] == [(), ()]
    assert {step.env["CUDA_VISIBLE_DEVICES"] for step in plan.steps} == {""}


def test_hub_rows_among_rows_of_ones_own_become_those(recipe_of: Recipes, tmp_path: Path) -> None:
    """The shipped rows have other columns, and a data set has one set of columns."""
    own = {"path": str(tmp_path / "rows.jsonl"), "rename": {"a": "messages"}}
    hub = {"path": "org/data", "split": "test", "rename": {"b": "messages"}}
    small, notes = shrink(recipe_of("sft", data={"train": [hub, own], "eval": {"hub": [hub]}}))
    assert [(entry.path, entry.rename) for entry in small.data.train] == [(own["path"], own["rename"])] * 2
    assert isinstance(small.data.eval, dict)
    assert small.data.eval["hub"][0].path == own["path"]
    assert f"data.train.0.path: org/data -> {own['path']}" in notes


@pytest.mark.parametrize(
    ("lines", "hub", "eval_rows"), [(3, True, 3), (3, False, 0), (5000, False, 16), (64, False, 16)]
)
def test_a_small_share_of_the_few_rows_is_still_some(
    recipe_of: Recipes, tmp_path: Path, lines: int, hub: bool, eval_rows: int
) -> None:
    """0.01 of the real rows is many. Of three local ones alone it is none, in the real run too: that is left to say."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' * lines, encoding="utf-8")
    train = [{"path": str(path)}, *([{"path": "org/data"}] if hub else [])]
    small, _ = shrink(recipe_of("sft", data={"train": train, "eval": 0.01}))
    rows = min(lines, 64) * len(train)
    assert isinstance(small.data.eval, float)
    assert round(small.data.eval * rows) == eval_rows


def test_what_exists_here_stays(recipe_of: Recipes, tmp_path: Path) -> None:
    model = {"path": str(tmp_path), "eos_token": "<end>", "quantization": {"load_in_4bit": True}}
    data = {"train": [{"path": str(tmp_path / "rows.jsonl"), "rename": {"a": "b"}, "take": 10}]}
    training = {"learning_rate": 0.1, "num_generations": 2, "max_steps": 1, "packing": True, "max_completion_length": 4}
    rewards = [{"use": f"{tmp_path}/r.py:f", "weight": 0.5}]
    recipe = recipe_of("grpo", model=model, data=data, training=training, rewards=rewards, peft={"r": 4})
    small, _ = shrink(recipe)
    assert small.model == recipe.model.model_copy(update={"dtype": "float32"})
    assert small.data == recipe.data
    assert small.rewards == recipe.rewards
    assert small.peft == recipe.peft
    del training["packing"]  # no argument of GRPO's
    assert {name: small.training[name] for name in training} == training
    assert (small.method, small.name, small.seed, small.output_dir) == (
        recipe.method, recipe.name, recipe.seed, recipe.output_dir,
    )  # fmt: skip


def test_local_data_are_cut_to_their_first_rows(recipe_of: Recipes, tmp_path: Path) -> None:
    data = {"train": [{"path": str(tmp_path / "rows.jsonl"), "shuffle": True}], "eval": 0.01}
    small, _ = shrink(recipe_of("sft", data=data))
    assert (small.data.train[0].take, small.data.train[0].shuffle) == (64, False)
    assert isinstance(small.data.eval, float)
    assert 1 <= small.data.eval * 64 <= 32


@pytest.mark.parametrize("evaluation", [[{"path": "org/eval", "split": "test"}], {"a": [{"path": "org/eval"}]}])
def test_evaluation_data_shrink_too(recipe_of: Recipes, evaluation: Any) -> None:
    small, _ = shrink(recipe_of("grpo", data=HUB_DATA | {"eval": evaluation}, training={"eval_strategy": "epoch"}))
    held_out: Any = small.data.eval
    entries = held_out if isinstance(held_out, list) else held_out["a"]
    assert (entries[0].path, entries[0].split, entries[0].take) == ("builtin:arithmetic", "train[-16:]", 16)
    assert small.training["eval_strategy"] == "steps"
    assert small.training["eval_steps"] == small.training["max_steps"] == 3
    planned(small)


@pytest.mark.parametrize(
    ("launch", "strategy", "processes"),
    [
        ({}, "single", 1),
        ({"gpus": 8}, "ddp", 2),
        ({"gpus": [3]}, "single", 1),
        ({"gpus": [3, 5], "accelerate": "zero3"}, "zero3", 2),
        ({"accelerate": "zero2"}, "zero2", 2),
        ({"accelerate": "fsdp2", "gpus": 8}, "ddp", 2),
        ({"accelerate": "hsdp", "gpus": 8, "nodes": 2}, "ddp", 2),
        ({"accelerate": "zero3_offload"}, "zero3", 2),
        ({"accelerate": "zero1"}, "zero1", 2),
        ({"accelerate": "single"}, "single", 1),
        ({"nodes": 2, "gpus": 1}, "ddp", 2),
        ({"device": "cpu", "processes": 6}, "ddp", 2),
    ],
)
def test_the_strategy_stays_where_a_cpu_has_it(
    recipe_of: Recipes, launch: dict[str, Any], strategy: str, processes: int
) -> None:
    small, _ = shrink(recipe_of("sft", launch=launch))
    plan = planned(small)
    assert (plan.recipe.launch.accelerate, plan.batch["world_size"]) == (strategy, processes)
    assert plan.nodes == 1


def test_fsdp_is_said_to_be_replaced(recipe_of: Recipes) -> None:
    assert "launch.accelerate: fsdp2 -> ddp" in shrink(recipe_of("sft", launch={"accelerate": "fsdp2"}))[1]


def test_a_users_deepspeed_config_keeps_its_accumulation(recipe_of: Recipes, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    deepspeed = {"zero_stage": 2, "gradient_accumulation_steps": 4}
    config = {"distributed_type": "DEEPSPEED", "mixed_precision": "fp16", "deepspeed_config": deepspeed}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    training = {"gradient_accumulation_steps": 4, "fp16": True}
    small, _ = shrink(recipe_of("grpo", launch={"accelerate": str(file)}, training=training))
    plan = planned(small)
    assert plan.batch["gradient_accumulation_steps"] == 4
    assert yaml.safe_load(plan.files["accelerate.yaml"])["mixed_precision"] == "no"


def test_the_server_stays_but_on_the_cpu(recipe_of: Recipes) -> None:
    rollouts = {
        "gpus": 4,
        "tensor_parallel_size": 4,
        "max_model_len": 32768,
        "host": "0.0.0.0",
        "port": 8000,
        "dtype": "bfloat16",
        "engine": {"enable_prefix_caching": True, "kv_cache_dtype": "fp8", "pipeline-parallel-size": 2},
    }
    small, _ = shrink(recipe_of("grpo", model=HUB, rollouts=rollouts))
    server = planned(small).server
    assert server is not None
    assert (server.tensor_parallel_size, server.data_parallel_size) == (1, 1)
    assert (server.dtype, server.max_model_len, server.weight_transfer) == ("float32", 4096, "gloo")
    assert small.rollouts.engine == {"enable_prefix_caching": True}
    assert small.rollouts.host == "127.0.0.1"


def test_a_server_of_another_model_is_not_used(recipe_of: Recipes) -> None:
    small, _ = shrink(recipe_of("grpo", model=HUB, rollouts={"url": "http://gpu7:8000"}))
    assert [step.name for step in planned(small).steps] == ["rollouts", "trainer"]


def test_no_rollouts_section_stays_none(recipe_of: Recipes) -> None:
    assert not shrink(recipe_of("grpo"))[0].rollouts.model_fields_set


@pytest.mark.parametrize(
    ("training", "gone"),
    [
        ({"bf16": True}, {"bf16"}),
        ({"fp16": True, "tf32": True, "use_liger_kernel": True}, {"fp16", "tf32", "use_liger_kernel"}),
        ({"push_to_hub": True, "report_to": "wandb"}, {"push_to_hub", "report_to"}),
        ({"torch_compile": True, "dataloader_num_workers": 8}, {"torch_compile", "dataloader_num_workers"}),
    ],
)
def test_gpu_features_and_the_outside_world_go(recipe_of: Recipes, training: dict[str, Any], gone: set[str]) -> None:
    small, notes = shrink(recipe_of("sft", training=training))
    assert not gone & small.training.keys()
    for name in gone:
        assert any(note.startswith(f"training.{name}: ") for note in notes)


@pytest.mark.parametrize(
    ("optimizer", "expected"), [("adamw_8bit", "adamw_torch"), ("adamw_torch_fused", "adamw_torch_fused")]
)
def test_optimizers(recipe_of: Recipes, optimizer: str, expected: str) -> None:
    assert shrink(recipe_of("sft", training={"optim": optimizer}))[0].training["optim"] == expected


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "Wqkv"], ["q_proj"]),
        (["Wqkv"], "all-linear"),
        (".*Wqkv", "all-linear"),
        ("all-linear", "all-linear"),
        (None, None),
    ],
)
def test_adapters_go_on_modules_that_are_there(recipe_of: Recipes, targets: Any, expected: Any) -> None:
    peft = {"r": 8, "target_modules": targets, "layers_to_transform": [20]}
    small, _ = shrink(recipe_of("sft", model=HUB, peft=peft))
    assert small.peft is not None
    assert small.peft["target_modules"] == expected
    assert "layers_to_transform" not in small.peft
    assert small.peft["r"] == 8


def test_tokens_that_the_tiny_model_lacks_go(recipe_of: Recipes) -> None:
    model = HUB | {"eos_token": "<|im_end|>", "pad_token": "<|finetune_right_pad_id|>"}
    small, _ = shrink(recipe_of("sft", model=model))
    assert (small.model.eos_token, small.model.pad_token) == ("<|im_end|>", None)
    assert (small.model.revision, small.model.attn_implementation) == (None, "sdpa")


def test_every_difference_is_named_once_and_nothing_else(recipe_of: Recipes) -> None:
    small, notes = shrink(recipe_of("sft", training={"max_steps": 2, "max_length": 100}, launch={"device": "cpu"}))
    assert len(set(notes)) == len(notes)
    assert not any("max_steps" in note or "max_length" in note or note.startswith("launch") for note in notes)
    assert shrink(small)[1] == ()


SAME_VOCABULARY = [(row.name, section) for row in METHODS.values() for section in row.same_vocabulary]


@pytest.mark.parametrize(("method", "section"), SAME_VOCABULARY)
@pytest.mark.parametrize(
    ("policy", "other", "stand_in"),
    [
        ("org/model", "/models/mine", "builtin:tiny"),
        ("/models/mine", "org/model", "/models/mine"),
        ("/models/mine", "/models/other", None),
    ],
)
def test_what_shares_the_policys_vocabulary_shares_its_stand_in(
    recipe_of: Recipes, method: str, section: str, policy: str, other: str, stand_in: str | None
) -> None:
    small, _ = shrink(recipe_of(method, model={"path": policy}, **{section: {"path": other}}))
    assert (small.model.path, getattr(small, section).path) == (stand_in or policy, stand_in or other)


def test_what_an_earlier_smoke_run_trained_stays(recipe_of: Recipes, tmp_path: Path) -> None:
    """A reward model that was trained in smoke reads the tiny model's tokens, and is what the recipe is about."""
    run = tmp_path / "reward-smoke"
    shutil.copytree(MODEL, run)
    small, _ = shrink(recipe_of("ppo", model={"path": "org/model"}, reward_model={"path": str(run)}))
    assert (small.model.path, small.reward_model and small.reward_model.path) == ("builtin:tiny", str(run))


def test_transforms_stay_with_local_rows_and_go_with_those_of_the_hub(recipe_of: Recipes, tmp_path: Path) -> None:
    own = {"path": str(tmp_path / "own.jsonl"), "from": "alpaca", "weight": 2.0}
    hub = {"path": "org/data", "from": "sharegpt", "columns": ["messages"], "weight": 1.0}
    small, _ = shrink(recipe_of("sft", data={"train": [own]}))
    assert small.data.train[0].from_ == "alpaca"
    small, notes = shrink(recipe_of("sft", data={"train": [hub], "allow": ["truncation"]}))
    (entry,) = small.data.train
    assert (entry.from_, entry.columns, entry.weight) == (None, [], 1.0)
    assert {"data.train.0.from: sharegpt -> (default)", "data.train.0.columns: ['messages'] -> (default)"} <= {
        note.replace(" -> []", " -> (default)") for note in notes
    }
    assert small.data.allow == ["truncation"]
    small, _ = shrink(recipe_of("sft", data={"train": [own, hub]}))
    assert [(entry.path, entry.from_, entry.weight) for entry in small.data.train] == [
        (own["path"], "alpaca", 2.0),
        (own["path"], "alpaca", 1.0),
    ]
