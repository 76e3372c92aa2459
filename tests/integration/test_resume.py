"""A run that is told to stop goes on as if nothing had happened. More of it: tests/long/test_resume.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resume_runs import STEPS, USR1, assert_identical, at_step, stage, status


@pytest.mark.timeout(300)
def test_a_stopped_run_goes_on_exactly(tmp_path: Path) -> None:
    """SFT with LoRA and dropout: a signal in the third step, a checkpoint, and the same losses and weights."""
    lora = stage(tmp_path, peft={"r": 4, "lora_alpha": 16, "lora_dropout": 0.1})
    lora.train("whole")
    stopped = lora.stop("run", at_step(3), USR1)
    run = tmp_path / "run"
    step = status(run)["step"]
    assert stopped.code == 143
    assert 3 <= step < STEPS
    assert status(run)["state"] == "stopped"
    assert status(run)["cause"] == f"stopped by SIGUSR1; checkpoint-{step} is saved"
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert not (run / "adapter_model.safetensors").exists()
    assert f"to go on from step {step}: ptcli train" in stopped.err
    resumed = lora.train("run", "--resume")
    assert f"note: going on from {run}/checkpoint-{step}: {step} of {STEPS} steps are done" in resumed.stderr
    assert status(run)["state"] == "finished"
    assert_identical(run, tmp_path / "whole")
