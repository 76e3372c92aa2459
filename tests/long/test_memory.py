"""What real runs of the command line hold in each process, against the closed form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from ptcli.builtin import MODEL
from ptcli.plan.layout import decide_layout
from ptcli.plan.memory.trainer import hold
from ptcli.plan.model import Machine
from ptcli.plan.resolve import with_defaults
from ptcli.recipe.loading import load_recipe

pytestmark = pytest.mark.long
CPU = Machine(gpus=(), cpus=2)
LORA = {"r": 16, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 million random weights with the shipped tokenizer: enough that small tensors and padding do not matter."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(MODEL, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(
        MODEL, hidden_size=384, intermediate_size=1024, num_attention_heads=6, num_key_value_heads=6, head_dim=64
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def train(folder: Path, described: Mapping[str, Any], ptcli_process: Callable[..., Any]) -> list[dict[str, Any]]:
    """Train a step; what each process weighed."""
    recipe, run = folder / "recipe.yaml", folder / "run"
    recipe.write_text(yaml.safe_dump(dict(described) | {"output_dir": str(run)}))
    module = "tests.cpu_fsdp" if "fsdp" in described["launch"]["accelerate"] else "ptcli"
    done = ptcli_process("train", recipe, "--json", timeout=300, module=module)
    assert done.code == 0, done.err
    return [json.loads(path.read_text()) for path in sorted(run.glob("weighed-*.json"))]


def describe(folder: Path, accelerate: str, processes: int, sections: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that trains the model of `folder` for a step."""
    return {
        "method": "sft",
        "data": {"train": [{"path": "builtin:arithmetic-messages", "take": 16}]},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2, "max_length": 32, "save_strategy": "no"},
        "launch": {"device": "cpu", "processes": processes, "accelerate": accelerate},
        "callbacks": [
            {"use": "tests.memory_callback:Scales"},
            *([{"use": "tests.cpu_fsdp.shim:FsdpOnCpu"}] if "fsdp" in accelerate else []),
        ],
        **sections,
        "model": {"path": str(folder), **sections.get("model", {})},
    }


def assert_weighed(folder: Path, weighed: list[dict[str, Any]], processes: int) -> None:
    """The closed form of the same recipe says so, to 2 %."""
    recipe = load_recipe(folder / "recipe.yaml").recipe
    assert recipe is not None
    recipe = with_defaults(recipe, "cpu")
    layout, _ = decide_layout(recipe, CPU, trains=True)
    assert layout.world == processes
    items = hold(recipe, layout).items
    assert len(weighed) == processes
    for each in weighed:
        for name, size in each.items():
            if name != "gradients" or layout.strategy.kind != "DEEPSPEED":
                assert items.get(name, 0) == pytest.approx(size, rel=0.02, abs=5000), (name, each, items)


@pytest.mark.parametrize(
    ("accelerate", "processes", "sections"),
    [
        ("single", 1, {}),
        ("single", 1, {"model": {"dtype": "bfloat16"}}),
        ("single", 1, {"training": {"optim": "adafactor", "max_steps": 1, "max_length": 32, "save_strategy": "no"}}),
        ("single", 1, {"peft": LORA}),
        ("single", 1, {"peft": LORA, "model": {"dtype": "bfloat16"}}),
        ("single", 1, {"peft": LORA, "model": {"dtype": "bfloat16", "quantization": NF4}}),
        ("zero1", 1, {"model": {"dtype": "bfloat16"}}),
        ("zero3", 1, {"peft": LORA}),
        ("ddp", 2, {}),
        ("zero1", 2, {}),
        ("zero2", 2, {}),
        ("zero3", 2, {}),
        ("zero3", 2, {"peft": LORA}),
        ("fsdp2", 2, {}),
        ("fsdp2", 2, {"peft": LORA}),
    ],
    ids=str,
)
def test_a_run(
    tmp_path: Path, model: Path, ptcli_process: Callable[..., Any], accelerate: str, processes: int, sections: Any
) -> None:
    weighed = train(tmp_path, describe(model, accelerate, processes, sections), ptcli_process)
    assert_weighed(tmp_path, weighed, processes)
