"""Guards in a run of two processes: rank 0 decides for both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.smoke_runs import processes_of

RECIPE = """
method: sft
model: {path: builtin:tiny}
data: {train: [{path: builtin:arithmetic-messages, take: 64}]}
peft: {r: 4, target_modules: all-linear}
training: {max_steps: 40, per_device_train_batch_size: 2, logging_steps: 1, max_length: 64, save_steps: 1}
launch: {device: cpu, processes: 2, accelerate: ddp}
callbacks: [{use: "callbacks.py:%s"}]
"""

CALLBACKS = """
import os
import torch
from transformers import TrainerCallback

class Estrange(TrainerCallback):
    "The optimizer has other weights than the model."
    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(each.detach().clone()) for each in group["params"]]

class PoisonTheOther(TrainerCallback):
    "A weight becomes NaN before the second step, on rank 1 alone."
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1 and os.environ["RANK"] == "1":
            with torch.no_grad():
                next(model.parameters()).view(-1)[:] = torch.nan
"""


def run(folder: Path, callback: str, ptcli_process: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """The result of a run that a guard stops, and its status."""
    (folder / "callbacks.py").write_text(CALLBACKS)
    (folder / "recipe.yaml").write_text(RECIPE % callback)
    result = ptcli_process("train", folder / "recipe.yaml", f"output_dir={folder / 'run'}", timeout=400)
    status = json.loads((folder / "run" / "status.json").read_text())
    assert result.code == 1, result.err
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert status["cause"] == status["events"][-1]["message"]
    assert processes_of(folder / "run") == []
    return result, status


def test_a_stop_on_rank_0_ends_both(tmp_path: Path, ptcli_process: Callable) -> None:
    """What only rank 0 looks at: rank 1 would go on."""
    _, status = run(tmp_path, "Estrange", ptcli_process)
    (event,) = status["events"]
    assert (event["guard"], event["action"], event["step"]) == ("adapter_moves", "stop", 3)


def test_what_goes_wrong_on_rank_1_is_seen_on_rank_0(tmp_path: Path, ptcli_process: Callable) -> None:
    """Gradients are averaged over the ranks, so that NaN on one is NaN on all."""
    _, status = run(tmp_path, "PoisonTheOther", ptcli_process)
    (event,) = status["events"]
    assert (event["guard"], event["action"], event["step"]) == ("non_finite", "stop", 2)
    assert "the norm of the gradient is nan" in event["message"]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
