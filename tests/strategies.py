"""The same training over one process and over several, through the command line, in each way that ptcli ships.

Two runs are comparable when a step sees the same rows. accelerate deals batches of the shuffled rows to the processes
in turn, so that per-device batch x accumulation x processes = 16 takes the rows 0-15, 16-31, ... however it is split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from ptcli.builtin import MODEL

SAME_LOSS = 1e-4
"""Largest difference of two losses at the same step."""
SAME_WEIGHT = 2e-6
"""Largest difference of two weights after training. Sums in another order differ by 1e-8 or so of a gradient; Adam
divides by its size, which makes much of that where a gradient is nearly 0, unless `adam_epsilon` is well above it."""
MOVED = 2e-4
"""What training moves at least, in every tensor that is trained: a hundred times the tolerance."""

STEPS, SAVED = 4, 2


@dataclass(frozen=True)
class Strategy:
    """A file of accelerate_configs/, and what it must come to."""

    accelerate: str
    processes: int = 2
    parameters: str = "whole"
    optimizer: str = "AdamW"

    @property
    def sharded_by_fsdp(self) -> bool:
        """accelerate has no FSDP on a CPU: `tests.cpu_fsdp`."""
        return "S(0)" in self.parameters


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        each.accelerate: each
        for each in (
            Strategy("single", processes=1),
            Strategy("ddp"),
            Strategy("zero1", optimizer="DeepSpeedZeroOptimizer, gradients whole"),
            Strategy("zero2", optimizer="DeepSpeedZeroOptimizer, gradients split"),
            Strategy("zero3", parameters="ZeRO-3", optimizer="DeepSpeedZeroOptimizer_Stage3"),
            Strategy("fsdp2", parameters="S(0) on (2,)"),
            Strategy("hsdp", processes=4, parameters="R, S(0) on (2, 2)"),
        )
    }
)
ONE = STRATEGIES["single"]

_LORA = {"r": 4, "lora_alpha": 16}
_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
ADAPTERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"full": {}, "lora": {"peft": _LORA}, "qlora": {"peft": _LORA, "quantization": _NF4}}
)
_DATA = {"sft": "builtin:arithmetic-messages", "dpo": "builtin:arithmetic-preference", "grpo": "builtin:arithmetic"}
_BATCHES = {1: (16, 1), 2: (4, 2), 4: (2, 2)}
"""Processes -> rows on each device and accumulation."""

_METHOD = {
    "sft": {"max_length": 128},
    "dpo": {"max_length": 128, "beta": 0.5},
    # With a penalty, and on completions that are used twice, the loss depends on the weights, not on the rewards alone.
    "grpo": {"num_generations": 8, "num_iterations": 2, "beta": 0.1, "max_completion_length": 8, "temperature": 1.5},
}
WITNESS = {"use": "tests.trainer_callbacks:Witness"}
_FSDP = {"use": "tests.cpu_fsdp.shim:FsdpOnCpu"}


def recipe(method: str, strategy: Strategy, adapter: str = "full") -> dict[str, Any]:
    """A few steps on the shipped model, saved halfway and at the end, on a global batch of 16."""
    rows, accumulation = _BATCHES[strategy.processes]
    model = {"path": "builtin:tiny", "quantization": ADAPTERS[adapter].get("quantization")}
    return {
        "method": method,
        "model": {name: value for name, value in model.items() if value},
        "data": {"train": [{"path": _DATA[method]}]},
        "training": {
            "max_steps": STEPS,
            "logging_steps": 1,
            "save_steps": SAVED,
            "learning_rate": 3e-3,
            "adam_epsilon": 1e-3,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulation,
            **_METHOD.get(method, {}),
        },
        "launch": {"device": "cpu", "processes": strategy.processes, "accelerate": strategy.accelerate},
        "callbacks": [WITNESS, *([_FSDP] if strategy.sharded_by_fsdp else [])],
        **({"peft": dict(_LORA)} if adapter != "full" else {}),
    }


def train(described: Mapping[str, Any], strategy: Strategy, folder: Path, ptcli_process: Callable) -> Path:
    """Train a recipe with the real command; the run directory, once its processes were split as they should be."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(described) | {"output_dir": str(run)}))
    module = "tests.cpu_fsdp" if strategy.sharded_by_fsdp else "ptcli"
    done = ptcli_process("train", folder / "recipe.yaml", "--json", timeout=500, module=module)
    assert done.code == 0, done.err
    assert json.loads(done.out)["state"] == "finished"
    assert_split(run, strategy)
    return run


def assert_split(run: Path, strategy: Strategy) -> None:
    """Every process held the part of the model that its strategy gives it."""
    facts = [json.loads((run / f"witness-{rank}.json").read_text()) for rank in range(strategy.processes)]
    expected = {
        "world": strategy.processes, "parameters": [strategy.parameters], "optimizer": strategy.optimizer,
    }  # fmt: skip
    assert facts == [expected] * strategy.processes


def assert_same_training(run: Path, one: Path) -> None:
    """Losses at every step, the weights of the checkpoint and those at the end are those of the run of one process."""
    assert_same_losses(run, one)
    assert_same_weights(run / f"checkpoint-{SAVED}", one / f"checkpoint-{SAVED}")
    assert_same_weights(run, one)
    assert_loads(run, one)


def assert_same_losses(run: Path, one: Path, steps: int = STEPS) -> None:
    found, wanted = _logged(run), _logged(one)
    assert list(found) == list(wanted) == list(range(1, steps + 1))
    assert {step: loss for step, (loss, _) in found.items()} == pytest.approx(
        {step: loss for step, (loss, _) in wanted.items()}, abs=SAME_LOSS, rel=0
    )
    # The gradient's norm is logged before it is clipped, and is the same only where all of it is counted, once.
    assert {step: norm for step, (_, norm) in found.items()} == pytest.approx(
        {step: norm for step, (_, norm) in wanted.items()}, rel=SAME_LOSS
    )


def _logged(run: Path) -> dict[int, tuple[float, float]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows}


def assert_same_weights(folder: Path, other: Path) -> None:
    found, wanted = _weights(folder), _weights(other)
    assert {name: (each.shape, each.dtype) for name, each in found.items()} == {
        name: (each.shape, each.dtype) for name, each in wanted.items()
    }
    differences = {name: float((found[name] - wanted[name]).abs().max()) for name in wanted}
    assert max(differences.values()) < SAME_WEIGHT, differences


def assert_moved(run: Path) -> None:
    """Training changed every tensor by far more than counts as equal (of an adapter every B, which starts at 0)."""
    after = _weights(run)
    before = _weights(MODEL)
    changes = {
        name: float((each - before.get(name, 0)).abs().max())
        for name, each in after.items()
        if name in before or "lora_B" in name
    }
    assert changes
    assert min(changes.values()) > MOVED, changes


def assert_loads(run: Path, one: Path) -> None:
    """transformers and PEFT load what both saved, and both say the same."""
    import torch

    found, wanted = _logits(run), _logits(one)
    assert torch.allclose(found, wanted, atol=1e-3, rtol=0), float((found - wanted).abs().max())


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def _logits(run: Path) -> Any:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = (run / "adapter_config.json").exists()
    model = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(run).eval()
    chat = [{"role": "user", "content": "1+2="}]
    inputs = AutoTokenizer.from_pretrained(run).apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        return model(**inputs).logits
