"""Plans against the programs that read them: accelerate's parser, vLLM's, TRL's configs.

The shipped launch configs are in test_accelerate_configs.py.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.plan.accelerate import known_keys
from ptcli.plan.batch import batch_of
from ptcli.plan.build import build_plan
from ptcli.plan.machine import assume_machine, parse_visible_devices
from ptcli.plan.model import Machine, Plan, Step
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import Recipe


def make_recipe(**sections: Any) -> Recipe:
    common = {
        "name": "run",
        "method": "grpo",
        "output_dir": "run",
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": "builtin:arithmetic"}]},
        "rewards": [{"use": "trl.rewards:accuracy_reward"}],
    }
    return Recipe.model_validate(common | sections)


def make_plan(machine: Machine, tmp_path: Path, **sections: Any) -> Plan:
    planned = build_plan(make_recipe(**sections), machine, output_dir=tmp_path)
    assert planned.problems == ()
    assert planned.plan is not None
    for name, text in planned.plan.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return planned.plan


def trainer(plan: Plan) -> Step:
    return next(step for step in plan.steps if step.name == "trainer")


@pytest.fixture(scope="module")
def launch_arguments() -> Callable[[Step], Any]:
    """What `accelerate launch` makes of a step: its parser, and its own reading of the config file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    def parse(step: Step) -> Any:
        assert step.argv[:2] == ("accelerate", "launch")
        return _validate_launch_command(launch_command_parser().parse_args(list(step.argv[2:])))[0]

    return parse


def test_a_file_of_accelerate_config(launch_arguments: Callable[[Step], Any], tmp_path: Path) -> None:
    """One written by accelerate's own code, with every default it has."""
    from accelerate.commands.config.config_args import ClusterConfig

    file = tmp_path / "mine.yaml"
    config = ClusterConfig(
        compute_environment="LOCAL_MACHINE", distributed_type="DEEPSPEED", mixed_precision="bf16", use_cpu=False,
        debug=False, num_processes=2, deepspeed_config={"zero_stage": 2, "gradient_accumulation_steps": "auto"},
    )  # fmt: skip
    config.to_yaml_file(str(file))
    plan = make_plan(assume_machine("8"), tmp_path, launch={"accelerate": str(file), "gpus": 8})
    arguments = launch_arguments(trainer(plan))
    assert (arguments.num_processes, arguments.zero_stage, arguments.use_deepspeed) == (8, 2, True)


def test_the_known_keys_are_accelerates() -> None:
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    flags = {action.dest for action in launch_command_parser()._actions}
    legacy = {"fp16", "dynamo_backend"}  # rewritten by BaseConfig.process_config
    assert ClusterConfig.__dataclass_fields__.keys() | legacy == known_keys("top")
    unflagged = {"fsdp_ignored_modules"}  # read from the file only
    assert {flag for flag in flags if flag.startswith("fsdp_")} | unflagged == known_keys("fsdp_config")
    assert {flag for flag in flags if flag.startswith("parallelism_config_")} == known_keys("parallelism_config")
    words = ("deepspeed_", "zero", "offload_", "gradient_")
    assert {flag for flag in flags if flag.startswith(words)} == known_keys("deepspeed_config")


def test_the_shipped_recipe_passes_both_parsers(
    launch_arguments: Callable[[Step], Any], root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(root / "recipes/grpo.yaml").recipe
    assert recipe is not None
    plan = build_plan(recipe, assume_machine("8x80GiB"), output_dir=tmp_path).plan
    assert plan is not None
    (tmp_path / "accelerate.yaml").write_text(plan.files["accelerate.yaml"], encoding="utf-8")
    assert launch_arguments(trainer(plan)).num_processes == 4
    served = vllm_arguments(plan.steps[0])
    assert (served.data_parallel_size, served.tensor_parallel_size, served.dtype) == (4, 1, "bfloat16")


def vllm_arguments(step: Step) -> Any:
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    assert step.argv[:2] == ("vllm", "serve")
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args(list(step.argv[2:]))
    validate_parsed_serve_args(arguments)
    return arguments


SIZES = (1, 2, 3, 4, 8)
TABLE = [
    {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation, "num_generations": group}
    | extra
    for per_device, accumulation, group, extra in itertools.product(
        SIZES,
        (1, 3),
        (1, 2, 3, 8),
        (
            {},
            {"steps_per_generation": 2},
            {"generation_batch_size": 24},
            {"steps_per_generation": 2, "generation_batch_size": 24},
            {"eval_strategy": "steps", "eval_steps": 5, "per_device_eval_batch_size": 4},
            {"eval_strategy": "steps", "eval_steps": 5, "per_device_eval_batch_size": 6, "num_generations_eval": 3},
        ),
    )
]


@pytest.mark.parametrize("method", ["grpo", "rloo", "minillm"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_batch_arithmetic_is_trls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, world: int) -> None:
    """What TRL's config accepts, we accept, with the same sizes; what it refuses, we refuse."""
    from ptcli.methods import METHODS

    module, name = METHODS[method].config.split(":")
    config = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(config, "world_size", property(lambda self: world))
    for training in TABLE:
        ours = batch_of(make_recipe(method=method, teacher={"path": "builtin:tiny"}, training=training), world)
        try:
            theirs = config(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **training)
        except ValueError:
            assert ours.problems, training
        else:
            assert not ours.problems, training
            assert ours.sizes["generation_batch_size"] == theirs.generation_batch_size
            assert ours.sizes["steps_per_generation"] == theirs.steps_per_generation


@pytest.mark.parametrize(
    "value",
    ["3,1", "0,0", "1,-1,2", "GPU-a,1", "GPU-a,GPU-b", "GPU-a,GPU-a", "MIG-x,MIG-y", "", "none", "NoDevFiles",
     "0,GPU-a", "1gpu2,2ampere", " 2 , 3", "+1,0", "0,,1", "-1", "7"],
)  # fmt: skip
def test_visible_devices_are_torchs(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    import torch

    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", value)
    theirs = torch.cuda._parse_visible_devices()
    ours = parse_visible_devices(value)
    assert len(ours) == len(theirs)
    for token, known in zip(ours, theirs, strict=True):
        assert token.strip("+ ").startswith(str(known))
