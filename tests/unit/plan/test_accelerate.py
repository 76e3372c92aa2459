from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.plan.accelerate import (
    CONFIGS,
    Counts,
    Strategy,
    check_config,
    conflicts,
    dump_config,
    fill,
    load_strategy,
    mixed_precision,
    shipped_names,
)
from ptcli.plan.build import Planned
from ptcli.recipe.model import Recipe

Recipes = Callable[..., Recipe]
Plans = Callable[..., Planned]
GPU8 = Counts(processes=8, nodes=1, main_ip="127.0.0.1", main_port=29500, mixed_precision="bf16", device="cuda")

FSDP2 = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}
ZERO3 = {"zero_stage": 3, "zero3_save_16bit_model": True}


def strategy(name: str = "user.yaml", shipped: bool = False, **config: Any) -> Strategy:
    return Strategy(name, config, shipped)


def written(tmp_path: Path, **config: Any) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def test_the_shipped_configs_are_those_of_the_top_folder(root: Path) -> None:
    assert set(shipped_names()) == {
        "single", "ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2_offload", "fsdp2_qlora",
    }  # fmt: skip
    assert {path.name for path in (root / "accelerate_configs").iterdir()} == {path.name for path in CONFIGS.iterdir()}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configs_are_clean_and_filled(name: str) -> None:
    found, problems = load_strategy(name)
    assert problems == []
    assert found is not None
    assert check_config(found.config, name) == []
    config = yaml.safe_load(dump_config(fill(found, GPU8)))
    assert (config["num_processes"], config["num_machines"], config["use_cpu"]) == (8, 1, False)
    assert config["mixed_precision"] == "bf16"
    assert "gpu_ids" not in config
    if found.kind == "DEEPSPEED":
        assert config["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"
        assert config["deepspeed_config"]["zero_stage"] == int(name[4])


def test_strings_that_look_like_booleans_stay_strings() -> None:
    found, _ = load_strategy("ddp")
    assert found is not None
    one = Counts(1, 1, "127.0.0.1", 29500, "no", "cpu")
    config = yaml.safe_load(dump_config(fill(found, one)))
    assert config["distributed_type"] == "NO"
    assert config["mixed_precision"] == "no"
    assert config["use_cpu"] is True


def test_several_cpu_processes_are_multi_gpu_with_use_cpu() -> None:
    found, _ = load_strategy("ddp")
    assert found is not None
    config = fill(found, Counts(2, 1, "127.0.0.1", 29500, "no", "cpu"))
    assert (config["distributed_type"], config["use_cpu"]) == ("MULTI_GPU", True)


def test_only_the_counts_of_a_users_file_are_changed(tmp_path: Path) -> None:
    mine = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "num_processes": 2,
        "num_machines": 1,
        "mixed_precision": "bf16",
        "downcast_bf16": "no",
        "gpu_ids": "all",
        "same_network": True,
        "tpu_env": [],
        "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False},
        "enable_cpu_affinity": True,
    }
    found, problems = load_strategy(written(tmp_path, **mine))
    assert problems == []
    assert found is not None
    config = fill(found, GPU8)
    assert config["num_processes"] == 8
    assert {name: config[name] for name in ("fsdp_config", "downcast_bf16", "enable_cpu_affinity", "same_network")} == {
        name: mine[name] for name in ("fsdp_config", "downcast_bf16", "enable_cpu_affinity", "same_network")
    }


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"distributed_type": "MULTI_GPU", "num_proceses": 2}, "unknown key num_proceses; did you mean num_processes?"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stge": 3}},
            "deepspeed_config.zero_stge, which accelerate would ignore; did you mean zero_stage?",
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_reshard_after_foward": True}},
            "did you mean fsdp_reshard_after_forward?",
        ),
        (
            {
                "distributed_type": "FSDP",
                "fsdp_config": {"fsdp_version": 2},
                "parallelism_config": {"dp_shard_size": 2},
            },
            "did you mean parallelism_config_dp_shard_size?",
        ),
        ({"distributed_type": "MULTI_GPU", "gpu_ids": "0,1"}, "gpu_ids would overwrite the GPU split"),
        ({"distributed_type": "MULTI_CPU"}, "accelerate starts one process"),
        ({"distributed_type": "HSDP"}, "cannot plan distributed_type HSDP"),
        ({"distributed_type": "MEGATRON_LM"}, "cannot plan distributed_type MEGATRON_LM"),
        ({}, "distributed_type is missing"),
        ({"distributed_type": "NO", "compute_environment": "AMAZON_SAGEMAKER"}, "must be LOCAL_MACHINE"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_multinode_launcher": "pdsh"}},
            "write standard",
        ),
        (
            {
                "distributed_type": "FSDP",
                "fsdp_config": {"fsdp_cpu_ram_efficient_loading": True, "fsdp_sync_module_states": False},
            },
            "needs fsdp_sync_module_states: true",
        ),
        (
            {"distributed_type": "MULTI_GPU", "parallelism_config": {"parallelism_config_tp_size": 2}},
            "needs FSDP with fsdp_version: 2",
        ),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": [1]}, "deepspeed_config must be a mapping"),
        (
            {"distributed_type": "MULTI_GPU", "dynamo_config": {"dynamo_backnd": "inductor"}},
            "did you mean dynamo_backend?",
        ),
        ({"distributed_type": "MULTI_GPU", "fp8_config": {"margn": 1}}, "fp8_config.margn, which accelerate would"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 4}},
            "deepspeed_config.zero_stage 4 is none of 0, 1, 2, 3",
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"offload_param_device": "gpu"}},
            'offload_param_device "gpu" is none of none, cpu, nvme',
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"state_dict_type": "FULL"}},
            'fsdp_state_dict_type "FULL" is none of FULL_STATE_DICT, SHARDED_STATE_DICT, LOCAL_STATE_DICT',
        ),
        (
            FSDP2 | {"parallelism_config": {"parallelism_config_dp_shard_size": "8"}},
            "parallelism_config_dp_shard_size must be a whole number from 1, not '8'",
        ),
    ],
)
def test_faults_that_accelerate_would_miss_or_meet_late(tmp_path: Path, config: dict[str, Any], text: str) -> None:
    found, problems = load_strategy(written(tmp_path, **config))
    assert found is None
    assert len(problems) == 1
    assert problems[0].key == ("launch", "accelerate")
    assert text in str(problems[0])


def test_prefixes_of_fsdp_keys_may_be_left_out(tmp_path: Path) -> None:
    found, problems = load_strategy(written(tmp_path, distributed_type="FSDP", fsdp_config={"version": 2}))
    assert problems == []
    assert found is not None
    assert found.fsdp("version") == 2


def test_multi_cpu_is_replaced_and_said(tmp_path: Path) -> None:
    found, _ = load_strategy(written(tmp_path, distributed_type="MULTI_CPU", use_cpu=True))
    assert found is not None
    assert found.kind == "MULTI_GPU"
    assert "MULTI_CPU" in found.notes[0]


def test_an_unquoted_no_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: NO\nmixed_precision: no\n", encoding="utf-8")
    found, _ = load_strategy(str(path))
    assert found is not None
    assert (found.kind, found.config["mixed_precision"]) == ("NO", "no")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("zero4", "did you mean zero"),
        ("horovod", "known: ddp, fsdp2, fsdp2_offload, "),
        ("/no/file.yaml", "is not there"),
    ],
)
def test_a_config_that_is_not_there(name: str, text: str) -> None:
    found, problems = load_strategy(name)
    assert found is None
    assert text in str(problems[0])


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    found, problems = load_strategy(str(path))
    assert found is None
    assert len(problems) == 1


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    folder = tmp_path / "mine.yaml"
    folder.mkdir()
    assert "cannot be read" in str(load_strategy(str(folder))[1][0])


@pytest.mark.parametrize(
    ("config", "training", "key", "text"),
    [
        ({"distributed_type": "NO"}, {}, "accelerate", "is for one process, and the trainer has 4"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"gradient_accumulation_steps": 4}},
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps",
            "says gradient_accumulation_steps 4, and training.gradient_accumulation_steps is 2",
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"gradient_clipping": 0.5}},
            {},
            "accelerate",
            "training.max_grad_norm is 1.0",
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": ZERO3},
            {"auto_find_batch_size": True},
            "auto_find_batch_size",
            "ZeRO-3",
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_activation_checkpointing": True}},
            {},
            "accelerate",
            "training.gradient_checkpointing: false",
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}},
            {"save_only_model": True},
            "save_only_model",
            "FULL_STATE_DICT",
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": ZERO3},
            {"save_only_model": True, "load_best_model_at_end": True},
            "save_only_model",
            "load_best_model_at_end",
        ),
        (
            FSDP2 | {"parallelism_config": {"parallelism_config_dp_shard_size": 8}},
            {},
            "accelerate",
            "dp_shard 8 = 8 processes, and there are 4",
        ),
        ({"distributed_type": "MULTI_GPU", "mixed_precision": "fp16"}, {"bf16": True}, "bf16", "makes it bf16"),
    ],
)
def test_conflicts_with_the_recipe(
    recipe_of: Recipes, config: dict[str, Any], training: dict[str, Any], key: str, text: str
) -> None:
    (problem,) = conflicts(strategy(**config), recipe_of("sft", training=training), 4, "cuda")
    assert problem.key[-1] == key
    assert text in str(problem)


def test_no_conflict_where_both_agree(recipe_of: Recipes) -> None:
    deepspeed = {"gradient_accumulation_steps": 4, "gradient_clipping": 1.0} | ZERO3
    recipe = recipe_of("sft", training={"gradient_accumulation_steps": 4})
    assert conflicts(strategy(distributed_type="DEEPSPEED", deepspeed_config=deepspeed), recipe, 4, "cuda") == []


# --- copies on several nodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "nodes", "sizes"),
    [("2x8", 2, (2, 8)), ("3x4", 3, (3, 4)), ("2x2", 2, (2, 2)), ("8", 1, (2, 4)), ("4", 1, (2, 2)), ("6", 1, (2, 3))],
)
def test_hsdp_gets_its_sizes(plan_of: Plans, machine: str, nodes: int, sizes: tuple[int, int]) -> None:
    plan = plan_of("sft", machine, launch={"accelerate": "hsdp", "nodes": nodes}).plan
    assert plan is not None
    config = yaml.safe_load(plan.files["accelerate.yaml"])
    section = config["parallelism_config"]
    written = tuple(section[f"parallelism_config_dp_{name}_size"] for name in ("replicate", "shard"))
    assert written == sizes
    assert sizes[0] * sizes[1] == config["num_processes"]
    assert f"hsdp: {sizes[0]} copies of the model, each split over {sizes[1]} processes" in plan.notes


@pytest.mark.parametrize(
    ("machine", "nodes", "text"),
    [
        ("1", 1, "on one node makes two copies, each split over half of the GPUs, and 1 cannot"),
        ("2", 1, "and 2 cannot be halved so; use fsdp2"),
        ("5", 1, "and 5 cannot be halved so"),
        ("4x1", 4, "splits over the GPUs of a node, and each node has one; use fsdp2"),
    ],
)
def test_hsdp_where_there_is_nothing_to_split(plan_of: Plans, machine: str, nodes: int, text: str) -> None:
    (problem,) = plan_of("sft", machine, launch={"accelerate": "hsdp", "nodes": nodes}).problems
    assert text in str(problem)


def test_sizes_of_a_users_own_are_kept_or_refused(plan_of: Plans, tmp_path: Path) -> None:
    def plan(machine: str, nodes: int = 1, **sizes: int) -> Planned:
        section = {f"parallelism_config_{name}_size": size for name, size in sizes.items()}
        file = written(tmp_path, **FSDP2, parallelism_config=section)
        return plan_of("sft", machine, launch={"accelerate": file, "nodes": nodes})

    kept = plan("8", dp_replicate=4, dp_shard=2).plan
    assert kept is not None
    section = yaml.safe_load(kept.files["accelerate.yaml"])["parallelism_config"]
    assert section == {"parallelism_config_dp_replicate_size": 4, "parallelism_config_dp_shard_size": 2}
    (problem,) = plan("2x8", 2, dp_replicate=2, dp_shard=4).problems
    assert "dp_replicate 2 x dp_shard 4 = 8 processes, and there are 16" in problem.message
    assert "parallelism_config_dp_replicate_size: 2 and parallelism_config_dp_shard_size: 8" in problem.fix
    (problem,) = plan("8", dp_replicate=8).problems
    assert "splits nothing" in problem.message


def test_an_empty_section_is_left_out(plan_of: Plans, tmp_path: Path) -> None:
    """`accelerate config` writes one, and a null there would be taken for sizes."""
    file = written(tmp_path, distributed_type="MULTI_GPU", parallelism_config={})
    plan = plan_of("sft", launch={"accelerate": file}).plan
    assert plan is not None
    assert "parallelism_config" not in yaml.safe_load(plan.files["accelerate.yaml"])


# --- DeepSpeed -------------------------------------------------------------------------------------------------------


def test_auto_becomes_what_it_stands_for(plan_of: Plans) -> None:
    """PPO's trainer would fail on `auto`, and clip at 1."""
    training = {"gradient_accumulation_steps": 4, "max_grad_norm": 0.3}
    plan = plan_of("sft", launch={"accelerate": "zero2"}, training=training).plan
    assert plan is not None
    section = yaml.safe_load(plan.files["accelerate.yaml"])["deepspeed_config"]
    assert (section["gradient_accumulation_steps"], section["gradient_clipping"]) == (4, 0.3)


def test_weights_that_zero_3_would_not_save(recipe_of: Recipes) -> None:
    config = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}}
    (problem,) = conflicts(strategy(**config), recipe_of("sft"), 4, "cuda")
    assert "zero3_save_16bit_model" in problem.message
    assert conflicts(strategy(**config), recipe_of("sft", peft={"r": 8}), 4, "cuda") == []
    file = replace(strategy(**config), deepspeed={"zero_optimization": {"stage": 3}})
    (problem,) = conflicts(file, recipe_of("sft"), 4, "cuda")
    assert "stage3_gather_16bit_weights_on_model_save" in problem.message


@pytest.mark.parametrize(
    ("name", "stage", "offloads"), [("zero1", 1, False), ("zero3_offload", 3, True), ("ddp", 0, False)]
)
def test_what_deepspeed_is_asked_for(name: str, stage: int, offloads: bool) -> None:
    found, _ = load_strategy(name)
    assert found is not None
    assert (found.zero_stage, found.offloads("optimizer"), found.offloads("param")) == (stage, offloads, offloads)


def test_what_a_deepspeed_file_asks_for() -> None:
    inside = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    found = replace(strategy(distributed_type="DEEPSPEED"), deepspeed=inside)
    assert (found.zero_stage, found.offloads("optimizer"), found.offloads("param")) == (2, True, False)


def test_fsdp_on_a_cpu_would_silently_be_ddp(recipe_of: Recipes) -> None:
    (problem,) = conflicts(strategy(**FSDP2), recipe_of("sft"), 2, "cpu")
    assert "silently turns into DDP" in str(problem)


@pytest.mark.parametrize(
    ("file", "shipped", "training", "device", "expected"),
    [
        (None, False, {}, "auto", "bf16"),
        ("no", False, {}, "auto", "no"),
        ("fp16", False, {}, "auto", "fp16"),
        ("fp8", False, {"bf16": True}, "auto", "fp8"),
        ("bf16", False, {"bf16": True}, "auto", "bf16"),
        ("bf16", True, {"fp16": True}, "auto", "fp16"),
        ("bf16", True, {"bf16": False}, "auto", "no"),
        ("bf16", False, {}, "cpu", "no"),
        (None, False, {"bf16": True}, "cpu", "bf16"),
    ],
)
def test_mixed_precision(
    recipe_of: Recipes, file: str | None, shipped: bool, training: dict[str, Any], device: str, expected: str
) -> None:
    recipe = recipe_of("sft", training=training, launch={"device": device})
    config = {"distributed_type": "MULTI_GPU", "mixed_precision": file}
    assert mixed_precision(strategy(shipped=shipped, **config), recipe) == (expected, [])
