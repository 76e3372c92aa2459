"""vLLM inside the trainer: every method that has it, two processes, quantised weights, and how such a run ends."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptcli.methods import METHODS
from tests.colocate_runs import LARGEST, difference_now, in_process, recipe_for
from tests.long.test_faults import LiveRun, arguments, start

__all__ = ["in_process", "start"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
INSIDE = "rollouts={backend: vllm, mode: colocate, max_model_len: 128}"
QUANTIZED = {
    "model": {"path": "builtin:tiny", "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
    "peft": {"type": "lora", "r": 4, "target_modules": "all-linear"},
}


@pytest.mark.parametrize("sections", [{}, QUANTIZED], ids=["full", "qlora"])
@pytest.mark.parametrize("method", sorted(name for name, row in METHODS.items() if "vllm" in row.backends))
def test_vllm_has_the_trainers_weights(in_process: Callable, tmp_path: Path, method: str, sections: dict) -> None:
    import torch

    from ptcli.rollouts import colocate

    trainer = in_process(recipe_for(tmp_path / "run", method, **sections))
    trainer.train()
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, trainer.model.parameters()):
            parameter += 0.05 * torch.randn_like(parameter)
    assert difference_now(trainer) > 1e-3
    colocate.sync_now(trainer)
    assert difference_now(trainer) < 1e-4


def test_smoke_with_two_processes(root: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    """The recipe for eight GPUs, with vLLM inside each of the two processes that a smoke run has."""
    run = tmp_path / "run"
    done = ptcli_process(
        "train", root / "recipes" / "grpo.yaml", "--smoke", "rollouts.mode=colocate", "rollouts.gpus=null",
        "launch.accelerate=ddp", f"output_dir={run}", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    differences = [line[LARGEST] for line in metrics if LARGEST in line]
    assert len(differences) == 3
    assert max(differences) < 1e-4
    assert json.loads((run / "plan.json").read_text())["batch"]["world_size"] == 2


def _started(start: Callable[..., LiveRun], path: Path) -> LiveRun:
    run = start([sys.executable, "-m", "ptcli", "train", *arguments(path), INSIDE])
    run.wait_for_step(3)
    return run


def test_killed(start: Callable[..., LiveRun], tmp_path: Path) -> None:
    run = _started(start, tmp_path / "run")
    run.child("trainer", "ptcli.train.worker").kill()
    run.assert_ends(1, "failed", "trainer died")


def test_stopped(start: Callable[..., LiveRun], tmp_path: Path) -> None:
    run = _started(start, tmp_path / "run")
    run.ptcli.send_signal(signal.SIGINT)
    run.assert_ends(130, "stopped", "SIGINT")
