"""vLLM inside the trainer, planned."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.methods import METHODS
from ptcli.plan.build import Planned
from ptcli.plan.memory import GIB, count_parameters
from ptcli.plan.model import Machine, Plan
from ptcli.plan.render import render_json, render_text
from ptcli.recipe.catalogue import fields
from ptcli.recipe.loading import dump_recipe, load_recipe
from ptcli.train.config import engine_arguments, training_arguments

Plans = Callable[..., Planned]
COLOCATE: dict[str, Any] = {"backend": "vllm", "mode": "colocate"}
WITH_VLLM = sorted(name for name, row in METHODS.items() if "vllm" in row.backends)
ON_CPU = {"machine": Machine(gpus=(), cpus=2), "launch": {"device": "cpu"}}


def good(planned: Planned) -> Plan:
    assert planned.problems == ()
    assert planned.plan is not None
    return planned.plan


def model_of(folder: Path, gib: float) -> dict[str, Any]:
    """A model section whose fp32 weights take so many GiB, by its header: the file itself is sparse."""
    folder.mkdir()
    rows = int(gib * GIB) // 4096
    entry = {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}
    header = json.dumps({"model.layers.0.mlp.up_proj.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + rows * 4096)
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    return {"path": str(folder)}


@pytest.mark.parametrize("method", WITH_VLLM)
@pytest.mark.parametrize("where", [{}, {"machine": "1x80GiB"}, ON_CPU], ids=["8 GPUs", "1 GPU", "CPU"])
def test_every_method_with_vllm_plans(plan_of: Plans, method: str, where: dict[str, Any]) -> None:
    plan = good(plan_of(method, rollouts=COLOCATE, **where))
    assert [step.name for step in plan.steps] == ["trainer"]
    assert plan.server is None
    assert "vLLM inside the trainer (colocate)" in render_text(plan)
    arguments = training_arguments(plan.recipe)
    assert (arguments["use_vllm"], arguments["vllm_mode"]) == (True, "colocate")
    known = fields(METHODS[method].config)
    assert {name for name in arguments if name.startswith("vllm_")} <= known.keys()


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(WITH_VLLM)))
def test_no_other_method_has_it(recipe_of: Callable, tmp_path: Path, method: str) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_of(method, rollouts=COLOCATE)))
    problems = load_recipe(tmp_path / "recipe.yaml").problems
    assert any("rollouts" in problem.message for problem in problems), problems


def test_vllm_computes_in_what_the_trainer_computes_in(plan_of: Plans) -> None:
    """TRL leaves the type to vLLM, which takes bf16 for fp32 weights."""
    for training, expected in (({}, "bfloat16"), ({"bf16": False}, "float32"), ({"fp16": True}, "float16")):
        recipe = good(plan_of("grpo", rollouts=COLOCATE, training=training)).recipe
        assert engine_arguments(recipe)["dtype"] == recipe.rollouts.dtype == expected
    assert good(plan_of("grpo", rollouts=COLOCATE, **ON_CPU)).recipe.rollouts.dtype == "float32"
    said = good(plan_of("grpo", rollouts=COLOCATE | {"dtype": "float32"}))
    assert said.recipe.rollouts.dtype == "float32"


def test_what_the_engine_is_told_besides(plan_of: Plans) -> None:
    rollouts = COLOCATE | {"max_model_len": 1024, "engine": {"enable-prefix-caching": False, "model_impl": "auto"}}
    recipe = good(plan_of("grpo", rollouts=rollouts, model={"path": "org/model", "revision": "v2"})).recipe
    told = engine_arguments(recipe)
    assert told == {
        "model": "org/model", "revision": "v2", "tokenizer_revision": "v2", "dtype": "bfloat16", "max_model_len": 1024,
        "generation_config": "vllm", "enable_prefix_caching": False, "model_impl": "auto",
    }  # fmt: skip


def test_a_length_that_trl_would_take_too_long(plan_of: Plans) -> None:
    """OnlineDPO has no argument for the length: vLLM refuses a sum that is over the model's limit, here 4096."""
    lengths = {"max_length": 4096, "max_new_tokens": 64}
    assert good(plan_of("online_dpo", rollouts=COLOCATE, training=lengths)).recipe.rollouts.max_model_len == 4096
    lengths["max_length"] = 512
    assert good(plan_of("online_dpo", rollouts=COLOCATE, training=lengths)).recipe.rollouts.max_model_len == 576
    assert good(plan_of("grpo", rollouts=COLOCATE)).recipe.rollouts.max_model_len is None


def test_two_runs_do_not_meet(plan_of: Plans) -> None:
    """TRL would take 29500 for both. Several processes have the launcher's rendezvous."""
    env = [good(plan_of("grpo", "1x80GiB", rollouts=COLOCATE)).steps[0].env for _ in "ab"]
    machine = Machine(gpus=(), free_ports=(7001, 7002, 7003, 7004))
    other = good(plan_of("grpo", machine, rollouts=COLOCATE, launch={"device": "cpu"})).steps[0]
    assert (other.env["MASTER_ADDR"], other.env["MASTER_PORT"]) == ("127.0.0.1", "7001")
    assert other.argv[other.argv.index("--main_process_port") + 1] != "7001"
    assert env[0]["MASTER_PORT"] == "8000"
    assert "MASTER_PORT" not in good(plan_of("grpo", "8x80GiB", rollouts=COLOCATE)).steps[0].env


def test_the_environment_of_a_cpu_run(plan_of: Plans) -> None:
    env = good(plan_of("grpo", rollouts=COLOCATE, **ON_CPU)).steps[0].env
    expected = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    assert expected.items() <= env.items()
    compiled = good(plan_of("grpo", rollouts=COLOCATE, training={"torch_compile": True}, **ON_CPU))
    assert "TORCH_COMPILE_DISABLE" not in compiled.steps[0].env
    assert not {"VLLM_CPU_KVCACHE_SPACE", "TORCH_COMPILE_DISABLE"} & set(
        good(plan_of("grpo", rollouts=COLOCATE)).steps[0].env
    )


@pytest.mark.parametrize(
    ("rollouts", "sections", "key", "text"),
    [
        ({"gpus": 4}, {}, "rollouts.gpus", "say launch.gpus"),
        ({"data_parallel_size": 2}, {}, "rollouts.data_parallel_size", "a copy of its own"),
        ({"host": "0.0.0.0"}, {}, "rollouts.host", "is a server's, and rollouts.mode is colocate"),
        ({"port": 8000}, {}, "rollouts.port", "leave it out"),
        ({"group_port": 8000}, {}, "rollouts.group_port", "leave it out"),
        ({"url": "http://127.0.0.1:8000"}, {}, "rollouts.url", "or use rollouts.mode: server"),
        ({"startup_timeout": 5.0}, {}, "rollouts.startup_timeout", "no server to wait for"),
        ({"engine": {"allowed-origins": ["a"]}}, {}, "rollouts.engine.allowed-origins", "a flag of the HTTP server"),
        ({"engine": {"quantization": "fp8"}}, {}, "rollouts.engine.quantization", "use rollouts.mode: server"),
        ({"engine": {"enable_sleep_mode": True}}, {}, "rollouts.engine.enable_sleep_mode", "vllm_enable_sleep_mode"),
        ({"tensor_parallel_size": 3}, {}, "rollouts.tensor_parallel_size", "8 processes; legal sizes in colocate"),
        ({"tensor_parallel_size": 8}, {}, "rollouts.tensor_parallel_size", "the model's 4 heads"),
        ({"tensor_parallel_size": 2}, ON_CPU, "rollouts.tensor_parallel_size", "this is a CPU run"),
        ({"max_model_len": 9999}, {}, "rollouts.max_model_len", "own limit of 4096"),
        ({"max_model_len": 128}, {}, "rollouts.max_model_len", "no room for a prompt"),
        (
            {},
            {"model": {"path": "builtin:tiny", "quantization": {"load_in_8bit": True}}, "peft": {}},
            "model.quantization",
            "does not work with 8-bit weights",
        ),
        (
            {},
            ON_CPU | {"training": {"vllm_enable_sleep_mode": True}},
            "training.vllm_enable_sleep_mode",
            "needs a GPU",
        ),
    ],
)
def test_what_cannot_be(plan_of: Plans, rollouts: Any, sections: Any, key: str, text: str) -> None:
    planned = plan_of("grpo", rollouts=COLOCATE | rollouts, **sections)
    assert [".".join(map(str, problem.key)) for problem in planned.problems] == [key]
    assert text in str(planned.problems[0])


def test_tensor_parallel_over_the_trainers_processes(plan_of: Plans) -> None:
    for machine, launch in (("2x80GiB", {}), ("2x8x80GiB", {"nodes": 2})):
        plan = good(plan_of("grpo", machine, rollouts=COLOCATE | {"tensor_parallel_size": 2}, launch=launch))
        assert training_arguments(plan.recipe)["vllm_tensor_parallel_size"] == 2


def test_sleep_mode_is_warned_of(plan_of: Plans) -> None:
    plan = good(plan_of("grpo", rollouts=COLOCATE, training={"vllm_enable_sleep_mode": True}))
    assert any("trl#5312" in note and "sampling_logp_difference" in note for note in plan.notes)
    assert not any("sleep" in note for note in good(plan_of("grpo", rollouts=COLOCATE)).notes)


def test_a_share_that_leaves_next_to_nothing_is_warned_of(plan_of: Plans) -> None:
    plan = good(plan_of("grpo", rollouts=COLOCATE | {"gpu_memory_utilization": 0.9}))
    assert any("leaves 10% of each GPU to training" in note for note in plan.notes)


def test_the_memory_split_is_in_the_plan(plan_of: Plans, tmp_path: Path) -> None:
    """1 GiB of fp32 weights is 4 GiB with gradients and AdamW's two states, and 0.5 GiB in vLLM's bf16."""
    model = model_of(tmp_path / "model", 1.0)
    plan = good(plan_of("grpo", rollouts=COLOCATE, model=model))
    assert render_json(plan)["memory"] == {
        "trainer_gpu_bytes": 80 * GIB, "rollouts_vllm_bytes": 24 * GIB, "trainer_left_bytes": 56 * GIB,
        "rollouts_weights_bytes": GIB // 2, "rollouts_cache_bytes": 24 * GIB - GIB // 2,
        "parameters": GIB // 4, "trained_parameters": GIB // 4, "trainer_least_bytes": 4 * GIB,
        "trainer": {"weights": GIB, "gradients": GIB, "optimizer": 2 * GIB}, "trainer_largest": "optimizer",
    }  # fmt: skip
    text = "of each GPU's 80.0 GiB: 24.0 GiB for vLLM (weights 0.5 GiB, the rest for the KV cache), 56.0 GiB for "
    assert text + "training (weights, gradients and optimizer take at least 4.0 GiB)" in render_text(plan)
    unknown = good(plan_of("grpo", rollouts=COLOCATE, model={"path": "org/model"}))
    assert "trainer_least_bytes" not in unknown.memory
    assert "56.0 GiB for training\n" in render_text(unknown)
    assert "trainer_gpu_bytes" not in good(plan_of("grpo", "8", rollouts=COLOCATE)).memory


@pytest.mark.parametrize(
    ("launch", "sections", "gib"),
    [
        ({"gpus": 1}, {}, 16),
        ({"accelerate": "ddp"}, {}, 16),
        ({"accelerate": "fsdp2"}, {}, 16 / 8),
        ({"accelerate": "zero2"}, {}, 2 + 2 / 8 + 12 / 8),  # bf16 weights on each, bf16 gradients and fp32 states split
        ({"accelerate": "zero3"}, {}, 16 / 8),
        ({"accelerate": "zero3"}, {"training": {"bf16": False}}, 20 / 8),  # a copy for the optimizer in float32, too
        ({}, {"training": {"optim": "adamw_bnb_8bit"}}, 8 + 2 * (1 + 4 / 256)),
        ({}, {"peft": {"type": "lora", "r": 8}}, 4),
        ({"accelerate": "zero2"}, {"peft": {"type": "lora", "r": 8}}, 2),
        ({"accelerate": "zero2"}, {"peft": {"type": "lora", "r": 8}, "training": {"bf16": False}}, 4),
        ({}, {"peft": {"type": "lora"}, "model": {"quantization": {"load_in_4bit": True}}}, 0.5 + 4 / 64),
        ({}, {"model": {"dtype": "bfloat16"}}, 8),
    ],
)
def test_what_training_takes_at_least(plan_of: Plans, tmp_path: Path, launch: Any, sections: Any, gib: float) -> None:
    """In GiB for 2**30 weights."""
    model = model_of(tmp_path / "model", 4.0) | sections.get("model", {})
    plan = good(plan_of("grpo", rollouts=COLOCATE, launch=launch, **(sections | {"model": model})))
    assert plan.memory["trainer_least_bytes"] == pytest.approx(gib * GIB)


@pytest.mark.parametrize(
    ("share", "gib", "text"),
    [
        (0.3, 15.0, "leaves 56.0 GiB of each GPU to training, which needs at least 60.0 GiB"),
        (0.05, 10.0, "gives vLLM 4.0 GiB, and its copy of the weights alone takes 5.0 GiB"),
    ],
)
def test_memory_that_does_not_suffice(plan_of: Plans, tmp_path: Path, share: float, gib: float, text: str) -> None:
    rollouts = COLOCATE | {"gpu_memory_utilization": share}
    (problem,) = plan_of("grpo", "1x80GiB", rollouts=rollouts, model=model_of(tmp_path / "model", gib)).problems
    assert problem.key == ("rollouts", "gpu_memory_utilization")
    assert text in problem.message


def test_weights_are_counted_in_the_headers() -> None:
    assert count_parameters("org/model") is None
    embeddings, attention, feed_forward, norms = 2 * 272 * 64, 64 * (128 + 64 + 64 + 128), 3 * 64 * 256, 2 * 64
    assert count_parameters("builtin:tiny") == embeddings + 2 * (attention + feed_forward + norms) + 64
