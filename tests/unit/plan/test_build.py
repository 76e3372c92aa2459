from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.methods import METHODS
from ptcli.plan.build import Planned, build_plan
from ptcli.plan.launch import inherited
from ptcli.plan.machine import assume_machine
from ptcli.plan.model import Machine, Plan, Step
from ptcli.plan.render import render_json, render_text
from ptcli.plan.script import shell_quote
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import Recipe
from ptcli.train.config import engine_arguments

Plans = Callable[..., Planned]


def good(planned: Planned) -> Plan:
    assert planned.problems == ()
    assert planned.plan is not None
    return planned.plan


def step(plan: Plan, name: str) -> Step:
    return next(step for step in plan.steps if step.name == name)


def option(step: Step, name: str) -> str:
    return step.argv[step.argv.index(f"--{name}") + 1]


def keys(planned: Planned) -> list[str]:
    assert planned.plan is None
    return [".".join(map(str, problem.key)) for problem in planned.problems]


def test_the_seed_split(root: Path, tmp_path: Path) -> None:
    """The promise of recipes/grpo.yaml on eight GPUs: server on 0-3, trainer on 4-7."""
    recipe = load_recipe(root / "recipes/grpo.yaml").recipe
    assert recipe is not None
    plan = good(build_plan(recipe, assume_machine("8x80GiB"), output_dir=tmp_path))
    rollouts, trainer = plan.steps
    assert (rollouts.name, rollouts.gpus) == ("rollouts", ("0", "1", "2", "3"))
    assert (trainer.name, trainer.gpus) == ("trainer", ("4", "5", "6", "7"))
    assert option(rollouts, "data-parallel-size") == "4"
    assert option(rollouts, "tensor-parallel-size") == "1"
    assert option(rollouts, "dtype") == "bfloat16"
    assert option(trainer, "num_processes") == "4"
    assert option(trainer, "mixed_precision") == "bf16"
    assert trainer.env["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert rollouts.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert rollouts.env["CUDA_DEVICE_ORDER"] == trainer.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert plan.batch["prompts_per_generation_batch"] == 16
    assert yaml.safe_load(plan.files["accelerate.yaml"])["deepspeed_config"]["zero_stage"] == 2


def test_a_plan_for_an_assumed_machine_is_always_the_same(plan_of: Plans) -> None:
    again = [good(plan_of("grpo", rollouts={"gpus": 4})) for _ in range(2)]
    assert again[0] == again[1]


def test_trainer_command(plan_of: Plans, tmp_path: Path) -> None:
    trainer = step(good(plan_of("sft", "2x80GiB")), "trainer")
    run = tmp_path / "run"
    assert trainer.argv == (
        "accelerate", "launch", "--config_file", f"{run}/accelerate.yaml",
        "--num_processes", "2", "--num_machines", "1", "--machine_rank", "0",
        "--main_process_ip", "127.0.0.1", "--main_process_port", "29500",
        "--mixed_precision", "bf16", "--module", "ptcli.train.worker", f"{run}/recipe.resolved.yaml",
    )  # fmt: skip
    assert trainer.env["PYTHONUNBUFFERED"] == "1"


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("machine", ["1x80GiB", "8x80GiB", "cpu"])
def test_every_method_plans(plan_of: Plans, method: str, machine: str) -> None:
    where: Any = Machine(gpus=()) if machine == "cpu" else machine
    launch = {"device": "cpu"} if machine == "cpu" else {}
    plan = good(plan_of(method, where, launch=launch))
    assert [each.name for each in plan.steps] == ["trainer"]
    assert plan.recipe.rollouts.backend == ("transformers" if METHODS[method].backends else None)
    assert plan.batch["world_size"] == (8 if machine == "8x80GiB" else 1)


def test_one_gpu_of_many_for_a_single_process(plan_of: Plans) -> None:
    plan = good(plan_of("sft", "8x80GiB", launch={"accelerate": "single"}))
    assert step(plan, "trainer").gpus == ("0",)
    assert yaml.safe_load(plan.files["accelerate.yaml"])["distributed_type"] == "NO"


@pytest.mark.parametrize(
    ("launch", "name", "kind"),
    [({"gpus": 1}, "single", "NO"), ({"gpus": 4}, "ddp", "MULTI_GPU"), ({"gpus": 1, "accelerate": "ddp"}, "ddp", "NO")],
)
def test_the_default_strategy_follows_the_count(plan_of: Plans, launch: dict[str, Any], name: str, kind: str) -> None:
    plan = good(plan_of("sft", launch=launch))
    assert plan.recipe.launch.accelerate == name
    assert yaml.safe_load(plan.files["accelerate.yaml"])["distributed_type"] == kind


def test_a_cpu_run(plan_of: Plans) -> None:
    rollouts = {"backend": "vllm", "data_parallel_size": 2}
    launch = {"device": "cpu", "processes": 2}
    plan = good(plan_of("grpo", Machine(gpus=(), cpus=4), rollouts=rollouts, launch=launch))
    server, trainer = plan.steps
    assert plan.server is not None
    assert (plan.server.weight_transfer, plan.server.dtype, plan.server.startup_timeout) == ("gloo", "float32", 300.0)
    assert option(server, "data-parallel-size") == "2"
    assert trainer.env["CUDA_VISIBLE_DEVICES"] == server.env["CUDA_VISIBLE_DEVICES"] == ""
    assert trainer.env["OMP_NUM_THREADS"] == "2"
    assert option(trainer, "mixed_precision") == "no"
    assert plan.recipe.training["bf16"] is False
    assert yaml.safe_load(plan.files["accelerate.yaml"])["use_cpu"] is True


def test_the_callers_threads_are_kept(plan_of: Plans) -> None:
    plan = good(plan_of("sft", Machine(gpus=(), cpus=8, threads=3), launch={"device": "cpu"}))
    assert step(plan, "trainer").env["OMP_NUM_THREADS"] == "3"


def test_the_resolved_recipe_says_what_was_decided(plan_of: Plans, tmp_path: Path) -> None:
    recipe = good(plan_of("grpo", rollouts={"gpus": 2})).recipe
    assert recipe.output_dir == str(tmp_path / "run")
    assert recipe.model.dtype == "float32"
    assert recipe.launch.model_dump(include={"accelerate", "device", "gpus"}) == {
        "accelerate": "ddp",
        "device": "cuda",
        "gpus": [2, 3, 4, 5, 6, 7],
    }
    rollouts = recipe.rollouts
    assert (rollouts.backend, rollouts.port, rollouts.group_port) == ("vllm", 8000, 51216)
    assert (rollouts.gpus, rollouts.data_parallel_size, rollouts.dtype) == ([0, 1], 2, "bfloat16")


def test_the_resolved_recipe_is_a_recipe_that_plans_the_same(plan_of: Plans, tmp_path: Path) -> None:
    plan = good(plan_of("grpo", rollouts={"gpus": 2}, launch={"gpus": [7, 5], "accelerate": "zero2"}))
    file = tmp_path / "recipe.resolved.yaml"
    file.write_text(plan.files["recipe.resolved.yaml"], encoding="utf-8")
    loaded = load_recipe(file)
    assert loaded.problems == ()
    assert loaded.recipe == plan.recipe
    again = good(build_plan(loaded.recipe, assume_machine("8x80GiB"), output_dir=tmp_path / "run"))
    assert again.steps == plan.steps
    assert again.recipe == plan.recipe


@pytest.mark.parametrize(
    ("training", "model", "dtype"),
    [
        ({}, {}, "bfloat16"),
        ({"bf16": True}, {}, "bfloat16"),
        ({"fp16": True}, {}, "float16"),
        ({"bf16": False}, {}, "float32"),
        ({"bf16": False}, {"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_the_server_computes_as_the_trainer_does(
    plan_of: Plans, training: dict[str, Any], model: dict[str, Any], dtype: str
) -> None:
    plan = good(plan_of("grpo", rollouts={"gpus": 1}, training=training, model={"path": "builtin:tiny", **model}))
    assert plan.server is not None
    assert plan.server.dtype == dtype


@pytest.mark.parametrize(
    ("rollouts", "tensor", "data"),
    [
        ({"gpus": 4}, 1, 4),
        ({"gpus": 4, "tensor_parallel_size": 2}, 2, 2),
        ({"gpus": 4, "tensor_parallel_size": 4}, 4, 1),
        ({"tensor_parallel_size": 2}, 2, 1),
        ({"data_parallel_size": 3}, 1, 3),
        ({"gpus": 4, "engine": {"pipeline_parallel_size": 2}}, 1, 2),
        ({"gpus": 4, "engine": {"pipeline-parallel-size": 4}}, 1, 1),
    ],
)
def test_data_parallel_fills_the_servers_gpus(plan_of: Plans, rollouts: dict[str, Any], tensor: int, data: int) -> None:
    server = good(plan_of("grpo", rollouts=rollouts)).server
    assert server is not None
    assert (server.tensor_parallel_size, server.data_parallel_size) == (tensor, data)


GRPO: dict[str, Any] = {"method": "grpo"}


@pytest.mark.parametrize(
    ("sections", "key", "text"),
    [
        (GRPO | {"rollouts": {"gpus": 4, "data_parallel_size": 3}}, "rollouts.data_parallel_size", "1 x 4, 2 x 2, 4"),
        (GRPO | {"rollouts": {"gpus": 4, "tensor_parallel_size": 3}}, "rollouts.tensor_parallel_size", "1 x 4, 2 x 2"),
        (
            GRPO | {"rollouts": {"gpus": 6, "tensor_parallel_size": 3}},
            "rollouts.tensor_parallel_size",
            "does not divide the model's 4 heads (2 key-value heads); legal tensor_parallel_size here: 1, 2",
        ),
        (GRPO | {"rollouts": {"gpus": 8}}, "rollouts.gpus", "which leaves none"),
        (GRPO | {"rollouts": {"gpus": 9}}, "rollouts.gpus", "8 GPUs are assumed"),
        (GRPO | {"rollouts": {"gpus": 2}, "launch": {"gpus": 7}}, "launch.gpus", "leaves 6"),
        (GRPO | {"rollouts": {"gpus": [0, 1]}, "launch": {"gpus": [1, 2]}}, "launch.gpus", "GPU 1 is in both"),
        ({"training": {"eval_strategy": "steps", "eval_steps": 5}}, "training.eval_strategy", "no data.eval"),
        (GRPO | {"rollouts": {"gpus": 1, "port": 9000, "group_port": 9000}}, "rollouts.group_port", "server's port"),
        (GRPO | {"rollouts": {"url": "localhost:8000"}}, "rollouts.url", "http://127.0.0.1:8000"),
        (GRPO | {"rollouts": {"gpus": 1, "max_model_len": 512}}, "rollouts.max_model_len", "no room for a prompt"),
        (
            GRPO | {"rollouts": {"gpus": 1, "max_model_len": 512}, "training": {"max_completion_length": 600}},
            "training.max_completion_length",
            "rollouts.max_model_len is 512",
        ),
        (GRPO | {"rollouts": {"gpus": 1, "max_model_len": 9999}}, "rollouts.max_model_len", "own limit of 4096"),
        (
            GRPO | {"training": {"per_device_train_batch_size": 3}, "launch": {"gpus": 4}},
            "training.per_device_train_batch_size",
            "a generation batch of per_device_train_batch_size 3 x 4 processes x gradient_accumulation_steps 1 = 12",
        ),
        ({"launch": {"processes": 2}}, "launch.processes", "say launch.gpus"),
        ({"launch": {"accelerate": "single", "gpus": 2}}, "launch.accelerate", "is for one process"),
        ({"launch": {"accelerate": "zero4"}}, "launch.accelerate", "did you mean zero"),
        ({"launch": {"device": "cpu", "gpus": 2}}, "launch.gpus", "launch.device is cpu"),
        ({"launch": {"device": "cpu", "accelerate": "fsdp2"}}, "launch.accelerate", "silently turns into DDP"),
        ({"launch": {"nodes": 2}, "machine": "3x8"}, "launch.nodes", "describes 3"),
        ({"machine": Machine(gpus=())}, "launch", "no GPUs are visible; try the recipe with --smoke"),
        ({"machine": Machine(gpus=()), "launch": {"device": "cuda"}}, "launch.device", "no GPUs are visible"),
        (
            GRPO | {"rollouts": {"backend": "vllm", "tensor_parallel_size": 2}, "launch": {"device": "cpu"}},
            "rollouts.tensor_parallel_size",
            "needs GPUs",
        ),
    ],
)
def test_impossible_plans(plan_of: Plans, sections: dict[str, Any], key: str, text: str) -> None:
    planned = plan_of(**sections)
    assert keys(planned) == [key]
    assert text in str(planned.problems[0])


@pytest.mark.parametrize("adapter", ["continue", "merge", "new"])
def test_vllm_gets_the_base_of_an_adapter(plan_of: Plans, tmp_path: Path, adapter: str) -> None:
    """TRL sends the weights with the adapter merged in. The server keeps the name that its trainer asks for."""
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "revision": "v3"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = {"path": str(tmp_path), "adapter": adapter}
    plan = good(plan_of("grpo", rollouts={"gpus": 1}, model=model))
    server = step(plan, "rollouts")
    assert server.argv[:3] == ("vllm", "serve", "org/base")
    assert option(server, "revision") == option(server, "tokenizer-revision") == "v3"
    assert option(server, "served-model-name") == str(tmp_path)
    inside = engine_arguments(good(plan_of("grpo", rollouts={"mode": "colocate"}, model=model)).recipe)
    assert (inside["model"], inside["revision"]) == ("org/base", "v3")


def test_vllm_makes_random_weights_of_its_own(plan_of: Plans) -> None:
    model = {"path": "org/model", "from": "config"}
    server = step(good(plan_of("grpo", rollouts={"gpus": 1}, model=model)), "rollouts")
    assert option(server, "load-format") == "dummy"
    recipe = good(plan_of("grpo", rollouts={"mode": "colocate"}, model=model)).recipe
    assert engine_arguments(recipe)["load_format"] == "dummy"


def test_completions_without_a_limit_of_their_own(plan_of: Plans) -> None:
    """`null` is TRL's "no limit", not its default of 512."""
    good(plan_of("grpo", rollouts={"gpus": 1, "max_model_len": 256}, training={"max_completion_length": None}))


def test_a_requested_port_in_use(plan_of: Plans, machine_of: Callable[..., Machine]) -> None:
    machine = machine_of("0", "1", busy_ports=frozenset({9000}))
    assert keys(plan_of("grpo", machine, rollouts={"gpus": 1, "port": 9000})) == ["rollouts.port"]
    assert keys(plan_of("grpo", machine, rollouts={"gpus": 1, "group_port": 9000})) == ["rollouts.group_port"]
    url = "http://127.0.0.1:9000"
    assert plan_of("grpo", machine, rollouts={"url": url, "port": 9000}).problems == ()


def test_everything_wrong_comes_at_once(plan_of: Plans) -> None:
    planned = plan_of(
        "grpo",
        rollouts={"gpus": 4, "tensor_parallel_size": 3, "max_model_len": 9999},
        training={"per_device_train_batch_size": 3},
        launch={"gpus": 4, "accelerate": "single"},
    )
    assert keys(planned) == [
        "rollouts.tensor_parallel_size",
        "rollouts.max_model_len",
        "launch.accelerate",
        "training.per_device_train_batch_size",
    ]


def test_a_failed_split_hides_nothing(plan_of: Plans) -> None:
    planned = plan_of(
        "grpo",
        rollouts={"gpus": 4, "tensor_parallel_size": 3},
        training={"per_device_train_batch_size": 3},
        launch={"gpus": [4, 5, 5, 6], "accelerate": "zero4"},
    )
    expected = ["launch.accelerate", "launch.gpus.2", "rollouts.tensor_parallel_size"]
    assert keys(planned) == [*expected, "training.per_device_train_batch_size"]
    assert "3 x 4 processes" in str(planned.problems[-1])


def test_a_missing_gpu_does_not_hide_a_bad_batch(plan_of: Plans) -> None:
    planned = plan_of("grpo", Machine(gpus=()), training={"num_generations": 1})
    assert keys(planned) == ["launch", "training.num_generations"]


def test_a_number_of_processes_that_is_open_is_not_guessed(plan_of: Plans) -> None:
    training = {"per_device_train_batch_size": 4}  # whole groups of 8 on two GPUs, not on one
    assert keys(plan_of("grpo", Machine(gpus=()), training=training)) == ["launch"]
    assert keys(plan_of("grpo", Machine(gpus=()), training=training, launch={"gpus": 1})) == [
        "launch",
        "training.per_device_train_batch_size",
    ]


def test_tokens_reach_the_processes_unchanged(plan_of: Plans, machine_of: Callable[..., Machine]) -> None:
    plan = good(plan_of("grpo", machine_of("GPU-b", "GPU-a", "GPU-c"), rollouts={"gpus": [2]}))
    assert step(plan, "rollouts").env["CUDA_VISIBLE_DEVICES"] == "GPU-c"
    assert step(plan, "trainer").env["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"


def test_a_server_that_already_runs(plan_of: Plans) -> None:
    plan = good(plan_of("grpo", rollouts={"url": "http://127.0.0.1:9000/", "gpus": 4}))
    assert [each.name for each in plan.steps] == ["trainer"]
    assert plan.server is not None
    assert plan.server.external
    assert plan.server.url == "http://127.0.0.1:9000"
    assert plan.server.data_parallel_size == 4
    # The GPUs on which that server runs are not the trainer's.
    assert plan.steps[0].gpus == ("4", "5", "6", "7")


def test_a_server_elsewhere_takes_no_gpus_here(plan_of: Plans) -> None:
    plan = good(plan_of("grpo", rollouts={"url": "http://node7:9000", "gpus": 4}))
    assert len(plan.steps[0].gpus) == 8
    assert plan.server is not None
    assert plan.server.data_parallel_size == 4


def test_only_the_server(machine_of: Callable[..., Machine], recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """A node that holds only the server need not have room for the trainer."""
    recipe = recipe_of("grpo", rollouts={"gpus": 2}, launch={"gpus": 4})
    plan = good(build_plan(recipe, machine_of("0", "1"), output_dir=tmp_path, server_only=True))
    assert [each.name for each in plan.steps] == ["rollouts"]
    assert plan.steps[0].gpus == ("0", "1")


@pytest.mark.parametrize("rollouts", [{"backend": "transformers"}, {"url": "http://127.0.0.1:9000"}])
def test_no_server_to_serve(
    machine_of: Callable[..., Machine], recipe_of: Callable[..., Recipe], tmp_path: Path, rollouts: dict[str, Any]
) -> None:
    recipe = recipe_of("grpo", rollouts=rollouts)
    assert build_plan(recipe, machine_of("0", "1"), output_dir=tmp_path, server_only=True).plan is None


def test_an_open_address_is_warned_about(plan_of: Plans) -> None:
    assert good(plan_of("grpo", rollouts={"gpus": 1}, training={"max_completion_length": 64})).notes == ()
    plan = good(plan_of("grpo", rollouts={"gpus": 1, "host": "0.0.0.0"}))
    assert "overwrite the model's weights" in plan.notes[0]
    assert plan.server is not None
    assert plan.server.url == "http://127.0.0.1:8000"


def test_what_is_unknown_is_said(plan_of: Plans, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    rollouts = {"gpus": 6, "tensor_parallel_size": 3}
    plan = good(plan_of("grpo", rollouts=rollouts, model={"path": "nobody/unheard-of"}))
    assert "unknown" in plan.notes[0]


def test_several_nodes(plan_of: Plans) -> None:
    plan = good(plan_of("grpo", "2x8x80GiB", rollouts={"gpus": 4}, launch={"nodes": 2, "accelerate": "zero3"}))
    assert [(each.name, each.node, each.gpus) for each in plan.steps] == [
        ("rollouts", 0, ("0", "1", "2", "3")),
        ("trainer", 0, ("4", "5", "6", "7")),
        ("trainer", 1, ("4", "5", "6", "7")),
    ]
    assert [option(each, "machine_rank") for each in plan.steps[1:]] == ["0", "1"]
    assert option(plan.steps[1], "num_processes") == "8"
    assert option(plan.steps[1], "main_process_ip") == "${oc.env:MASTER_ADDR}"
    assert plan.batch["world_size"] == 8
    assert plan.nodes == 2


def test_memory_is_said_where_it_is_known(plan_of: Plans) -> None:
    memory = good(plan_of("grpo", "2x80GiB", rollouts={"gpus": 1})).memory
    assert memory["trainer_gpu_bytes"] == 80 * 2**30
    assert memory["rollouts_vllm_bytes"] == int(80 * 2**30 * 0.9)
    assert "trainer_gpu_bytes" not in good(plan_of("sft", "2")).memory
    assert good(plan_of("sft", Machine(gpus=(), cpus=2), launch={"device": "cpu"})).memory == {}


SECRET = {"launch": {"gpus": 1, "env": {"WANDB_API_KEY": "${oc.env:WANDB_API_KEY}", "A": "two words"}}}


def test_secrets_stay_names(plan_of: Plans) -> None:
    plan = good(plan_of("grpo", rollouts={"gpus": 1}, **SECRET))
    for each in plan.steps:
        assert each.env["WANDB_API_KEY"] == "${oc.env:WANDB_API_KEY}"
    assert "${oc.env:WANDB_API_KEY}" in plan.files["recipe.resolved.yaml"]
    assert 'WANDB_API_KEY="$WANDB_API_KEY"' in plan.files["launch.sh"]
    assert 'WANDB_API_KEY="$WANDB_API_KEY"' in render_text(plan)


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("plain", "plain"),
        ("two words", "'two words'"),
        ("", "''"),
        ("${oc.env:TOKEN}", '"$TOKEN"'),
        ("Bearer ${oc.env:TOKEN}!", "'Bearer '\"$TOKEN\"'!'"),
        ("${oc.env:TOKEN,none}", '"${TOKEN:-none}"'),
        ("$HOME", "'$HOME'"),
    ],
)
def test_shell_words(text: str, quoted: str) -> None:
    assert shell_quote(text) == quoted


def test_pasted_commands_are_the_planned_ones(plan_of: Plans) -> None:
    """What is printed, read by a shell, is argv and environment of the step."""
    plan = good(plan_of("grpo", rollouts={"gpus": 1, "engine": {"chat_template": "it's {a} $b"}}))
    for each in plan.steps:
        block = next(part for part in render_text(plan).split("\n\n") if part.startswith(f"# {each.name}"))
        words = shlex.split(block.replace("\\\n", "").partition(" &\n")[0], comments=True)
        assert tuple(words[-len(each.argv) :]) == each.argv
        assert dict(word.split("=", 1) for word in words[1 : -len(each.argv)]) == dict(each.env)


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_launch_script_is_bash(plan_of: Plans, nodes: int) -> None:
    machine = f"{nodes}x8x80GiB"
    plan = good(plan_of("grpo", machine, rollouts={"gpus": 4}, launch={"nodes": nodes, "gpus": 4}))
    subprocess.run(["bash", "-n"], input=plan.files["launch.sh"], text=True, check=True)


STRANGE = {"WORLD_SIZE": "4", "RANK": "3", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "MASTER_PORT": "1"}


@pytest.mark.parametrize("pasted", [False, True])
def test_the_whole_run_by_hand(plan_of: Plans, tmp_path: Path, pasted: bool) -> None:
    """launch.sh, and the dry run pasted as a whole, with stand-ins for vllm, accelerate and python: order,
    environment, nothing of another launcher, and no server left."""
    plan = good(plan_of("grpo", rollouts={"gpus": 1}, launch={"gpus": 1}))
    log = tmp_path / "log"
    stand_ins = {
        "vllm": f'echo "server $CUDA_VISIBLE_DEVICES" >> {log}; trap "echo stopped >> {log}; exit" TERM\n'
        "while :; do sleep 0.1; done",
        "accelerate": f'echo "trainer $CUDA_VISIBLE_DEVICES ${{WORLD_SIZE-}}${{RANK-}}$ACCELERATE_USE_FSDP" >> {log}',
        "python": f"test -e {log}",
    }
    for name, text in stand_ins.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        program.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(render_text(plan) if pasted else plan.files["launch.sh"], encoding="utf-8")
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", **STRANGE}
    finished = subprocess.run(["bash", str(script)], env=env, timeout=30)
    assert finished.returncode == 0
    assert log.read_text().split("\n") == ["server 0", "trainer 1 ", "stopped", ""]


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "WORLD_SIZE", "two words", "A=B", ""])
def test_the_environment_cannot_undo_the_plan(plan_of: Plans, name: str) -> None:
    """CUDA_VISIBLE_DEVICES for both sides would put trainer and server on the same GPUs."""
    (problem,) = plan_of("grpo", rollouts={"gpus": 1}, launch={"env": {"NCCL_DEBUG": "INFO", name: "0"}}).problems
    assert problem.key == ("launch", "env", name)


def test_what_another_launcher_left_is_not_inherited() -> None:
    assert inherited({**STRANGE, "HOME": "/root", "HF_TOKEN": "x"}) == {"HOME": "/root", "HF_TOKEN": "x"}


@pytest.mark.parametrize("count", [0, -1])
def test_counts_below_one_are_errors_on_both_sides(plan_of: Plans, count: int) -> None:
    problems = plan_of("grpo", rollouts={"gpus": count}, launch={"gpus": count}).problems
    assert [str(problem).split(" must")[0] for problem in problems] == ["rollouts.gpus", "launch.gpus"]


def test_a_share_of_few_rows_that_holds_out_none_is_said_before_the_start(plan_of: Plans, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n' * 3, encoding="utf-8")
    data = {"train": [{"path": str(rows)}], "eval": 0.05}
    (problem,) = plan_of("sft", data=data).problems
    assert problem.key == ("data", "eval")
    assert "0.05 of 3 rows is 0" in str(problem)
    assert good(plan_of("sft", data=data | {"eval": 0.4}))


def test_json_has_the_contracts_shape(plan_of: Plans) -> None:
    plan = good(plan_of("grpo", rollouts={"gpus": 4}))
    shape = json.loads(json.dumps(render_json(plan)))
    assert {"method", "steps", "files", "batch", "memory"} <= shape.keys()
    for each in shape["steps"]:
        assert each.keys() == {"name", "node", "argv", "env", "gpus"}
    assert set(shape["files"]) == {"recipe.resolved.yaml", "accelerate.yaml", "launch.sh"}


def test_text_shows_the_split_and_the_arithmetic(plan_of: Plans) -> None:
    text = render_text(good(plan_of("grpo", rollouts={"gpus": 4})))
    for part in ("GPUs 0,1,2,3", "GPUs 4,5,6,7", "4 prompts x num_generations 8", "ddp"):
        assert part in text


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("sft", "= 16 rows an optimizer step\nbatch 1 epoch\n"),
        ("dpo", "= 16 rows an optimizer step\nbatch 1 epoch\n"),  # pairs of sequences
        ("xpo", "= 16 prompts an optimizer step\n"),  # two completions each
        ("grpo", "= 16 sequences an optimizer step\n"),
        ("ppo", "= 16 sequences an optimizer step\n"),
    ],
)
def test_a_batch_is_counted_in_what_the_trainer_takes(plan_of: Plans, method: str, text: str) -> None:
    training = {"per_device_train_batch_size": 16, "num_train_epochs": 1}
    shown = render_text(good(plan_of(method, "1x80GiB", training=training))).splitlines()
    assert text in "\n".join(" ".join(line.removeprefix("#").split()) for line in shown)


def test_what_a_trainer_that_generates_by_itself_ignores_is_said(plan_of: Callable[..., Planned]) -> None:
    given = {"backend": "transformers", "gpus": 1, "engine": {"enable_prefix_caching": True}}
    (note,) = [note for note in plan_of("grpo", rollouts=given).plan.notes if "rollouts" in note]
    assert "gpus, engine of rollouts do nothing" in note
    assert not [note for note in plan_of("grpo", rollouts={"backend": "transformers"}).plan.notes if "rollouts" in note]


def test_a_default_config_of_accelerates_is_said_to_be_unused(plan_of: Plans, tmp_path: Path) -> None:
    file = tmp_path / "default_config.yaml"
    file.write_text("distributed_type: MULTI_GPU\n")
    machine = Machine(gpus=(), cpus=2, accelerate_config=str(file))
    launch: dict[str, Any] = {"device": "cpu", "processes": 2}
    assert f"{file} is not used: launch.accelerate is ddp" in good(plan_of("sft", machine, launch=launch)).notes
    named = good(plan_of("sft", machine, launch=launch | {"accelerate": str(file)}))
    assert not any("is not used" in note for note in named.notes)
