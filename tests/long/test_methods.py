"""`ptcli train recipes/<method>.yaml --smoke` for the methods that tests/integration/test_methods.py leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smoke_runs import FURTHER, ROOT, assert_finished, assert_learned, assert_usable, smoke

pytestmark = pytest.mark.long


@pytest.mark.parametrize("method", FURTHER)
def test_smoke(method: str, tmp_path: Path, ptcli_process: Callable) -> None:
    smoke(method, tmp_path / "run", ptcli_process)


def test_ppo_on_two_processes(tmp_path: Path, ptcli_process: Callable) -> None:
    """In TRL 1.12 the first checkpoint ends it, and the value model would be saved with the policy."""
    run = tmp_path / "run"
    result = ptcli_process("train", ROOT / "recipes/ppo.yaml", "--smoke", f"output_dir={run}", "launch.processes=2")
    assert result.code == 0, result.err
    assert_finished(run)
    assert_learned(run, "causal_lm")
    assert_usable(run, "causal_lm")
    assert_learned(run / "checkpoint-3", "causal_lm")


def test_ppo_trains_an_adapter_on_two_processes(tmp_path: Path, ptcli_process: Callable) -> None:
    """In TRL 1.12 its first step fails: the reference is the policy without the adapter, behind the wrapper."""
    run = tmp_path / "run"
    overrides = ("launch.processes=2", "peft={type: lora, r: 4, target_modules: all-linear}")
    result = ptcli_process("train", ROOT / "recipes/ppo.yaml", "--smoke", f"output_dir={run}", *overrides)
    assert result.code == 0, result.err
    assert (run / "adapter_model.safetensors").exists()
    assert not (run / "model.safetensors").exists()
