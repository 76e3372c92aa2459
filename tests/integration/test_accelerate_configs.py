"""Every file of accelerate_configs/ through accelerate's own parser: processes are told what the file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.plan.accelerate import CONFIGS, known_keys, shipped_names
from ptcli.plan.build import build_plan
from ptcli.plan.machine import assume_machine
from ptcli.plan.model import Machine, Plan, Step
from ptcli.recipe.model import Recipe

FSDP = {"fsdp2", "hsdp", "fsdp2_offload", "fsdp2_qlora"}
MEASURED = {"OMP_NUM_THREADS", "PYTHONPATH"}
"""What accelerate sets from the machine and not from the file."""


def make_plan(machine: Machine, folder: Path, **launch: Any) -> Plan:
    """A plan, with its files where it says."""
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "method": "sft",
            "output_dir": "run",
            "model": {"path": "builtin:tiny"},
            "data": {"train": [{"path": "builtin:arithmetic-messages"}]},
            "launch": launch,
        }
    )
    planned = build_plan(recipe, machine, output_dir=folder)
    assert planned.problems == ()
    assert planned.plan is not None
    for name, text in planned.plan.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return planned.plan


def eight(name: str, folder: Path, nodes: int = 1) -> Plan:
    machine = assume_machine(f"{nodes}x8x80GiB")
    return make_plan(machine, folder, accelerate=name, nodes=nodes, **({"gpus": 1} if name == "single" else {}))


@pytest.fixture(scope="module")
def told() -> Callable[[Step], tuple[Any, dict[str, str]]]:
    """What `accelerate launch` makes of a step: its arguments, and what it adds to its processes' environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    def read(step: Step) -> tuple[Any, dict[str, str]]:
        assert step.argv[:2] == ("accelerate", "launch")
        arguments, config, own = _validate_launch_command(launch_command_parser().parse_args(list(step.argv[2:])))
        assert own is False, "the precision comes from the command line"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.environ", {"MASTER_ADDR": "10.0.0.1"})
            if arguments.use_deepspeed:
                arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
                env = prepare_deepspeed_cmd_env(arguments)[1]
            elif arguments.use_fsdp or arguments.multi_gpu:
                env = prepare_multi_gpu_env(arguments)
            else:
                env = prepare_simple_launcher_cmd_env(arguments)[1]
        return arguments, {name: value for name, value in env.items() if name not in MEASURED}

    return read


def said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def expected_environment(file: Mapping[str, Any]) -> dict[str, str]:
    """What the sections of a file come to, key by key. `standard` is the launcher's own business."""
    sections = {name: file.get(name, {}) for name in ("fsdp_config", "deepspeed_config", "parallelism_config")}
    env = {name.upper(): said(value) for name, value in sections["fsdp_config"].items()}
    env |= {name.upper(): said(value) for name, value in sections["parallelism_config"].items()}
    for name, value in sections["deepspeed_config"].items():
        if name != "deepspeed_multinode_launcher":
            prefix = "ACCELERATE_" if name.startswith("gradient_") else "ACCELERATE_DEEPSPEED_"
            number = {"gradient_accumulation_steps": 1, "gradient_clipping": 1.0}.get(name, value)  # TRL's defaults
            env[prefix + name.upper().removesuffix("_FLAG")] = said(number)
    return env


@pytest.mark.parametrize("name", shipped_names())
def test_processes_are_told_what_the_file_says(name: str, told: Callable, tmp_path: Path) -> None:
    arguments, env = told(eight(name, tmp_path).steps[0])
    file = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    wanted = expected_environment(file) | {"ACCELERATE_MIXED_PRECISION": "bf16"}
    if name == "hsdp":  # the file shows two nodes of eight
        wanted |= {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "4"}
    assert {key: env.get(key) for key in wanted} == wanted
    assert ("ACCELERATE_USE_FSDP" in env) is (name in FSDP)
    assert ("ACCELERATE_USE_DEEPSPEED" in env) is name.startswith("zero")
    assert ("ACCELERATE_USE_PARALLELISM_CONFIG" in env) is (name == "hsdp")
    assert (arguments.num_processes, arguments.num_machines) == (1 if name == "single" else 8, 1)
    assert (arguments.module, arguments.training_script) == (True, "ptcli.train.worker")
    assert arguments.training_script_args == [str(tmp_path / "recipe.resolved.yaml")]


@pytest.mark.parametrize("name", [name for name in shipped_names() if name != "single"])
def test_two_nodes(name: str, told: Callable, tmp_path: Path) -> None:
    plan = eight(name, tmp_path, nodes=2)
    for rank, step in enumerate(plan.steps):
        arguments, env = told(step)
        assert (arguments.num_processes, arguments.num_machines, arguments.machine_rank) == (16, 2, rank)
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", rank)
        if name == "hsdp":
            sizes = {size: env[f"PARALLELISM_CONFIG_DP_{size}_SIZE"] for size in ("REPLICATE", "SHARD")}
            assert sizes == {"REPLICATE": "2", "SHARD": "8"}


@pytest.mark.parametrize("name", [name for name in shipped_names() if name not in FSDP])
def test_on_a_cpu(name: str, told: Callable, tmp_path: Path) -> None:
    """FSDP is missing: it is refused there, because accelerate would run DDP."""
    count = 1 if name == "single" else 2
    arguments, env = told(
        make_plan(Machine(gpus=()), tmp_path, accelerate=name, device="cpu", processes=count).steps[0]
    )
    assert (arguments.num_processes, arguments.use_cpu, arguments.mixed_precision) == (count, True, "no")
    assert arguments.multi_gpu is (name == "ddp")
    assert env["ACCELERATE_MIXED_PRECISION"] == "no"
    assert ("ACCELERATE_USE_DEEPSPEED" in env) is name.startswith("zero")


def test_the_parallel_sizes_are_honoured(told: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class that Accelerator asks, from what the processes are told."""
    from accelerate.parallelism_config import ParallelismConfig

    _, env = told(eight("hsdp", tmp_path, nodes=2).steps[0])
    for name, value in env.items():
        if name.startswith("PARALLELISM_CONFIG_"):
            monkeypatch.setenv(name, value)
    sizes = ParallelismConfig()
    assert (sizes.dp_replicate_size, sizes.dp_shard_size, sizes.total_size) == (2, 8, 16)


def test_the_default_config_of_the_user_never_matters(
    told: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in the cache, as `accelerate config` leaves it, that says something else of everything (axolotl#394)."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    stale = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_processes": 4, "num_machines": 3,
        "machine_rank": 2, "main_process_ip": "192.0.2.1", "main_process_port": 1234, "mixed_precision": "fp16",
        "use_cpu": False, "debug": True, "fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True},
        "dynamo_config": {"dynamo_backend": "INDUCTOR"}, "gpu_ids": "6,7",
    }  # fmt: skip
    plan = eight("zero2", tmp_path)
    clean = told(plan.steps[0])
    cache = tmp_path / "home/accelerate/default_config.yaml"
    cache.parent.mkdir(parents=True)
    cache.write_text(yaml.safe_dump(stale), encoding="utf-8")
    for module in ("launch", "config.config_args"):
        monkeypatch.setattr(f"accelerate.commands.{module}.default_config_file", str(cache))
    bare = _validate_launch_command(launch_command_parser().parse_args(["train.py"]))[0]
    assert (bare.use_fsdp, bare.num_processes) == (True, 4), "accelerate reads that file where it is given none"
    arguments, env = told(plan.steps[0])
    assert env == clean[1]
    assert vars(arguments) == vars(clean[0])


def test_the_known_keys_are_accelerates() -> None:
    """Of the sections that the catalogue does not have."""
    from accelerate.commands.launch import launch_command_parser

    flags = {action.dest for action in launch_command_parser()._actions}
    for section, prefix in (("dynamo_config", "dynamo_"), ("fp8_config", "fp8_")):
        assert {flag for flag in flags if flag.startswith(prefix)} == known_keys(section)
