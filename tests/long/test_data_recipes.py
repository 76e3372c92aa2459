"""GRPO on rows as GSM8K's, DPO on rows as UltraFeedback's and SFT on a mixture, in smoke."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.smoke_runs import ROOT, assert_finished, metrics_of

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", ["grpo-gsm8k", "dpo-ultrafeedback"])
def test_trains(name: str, tmp_path: Path, ptcli_process: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    result = ptcli_process("train", ROOT / f"recipes/data/{name}.yaml", "--smoke", f"output_dir={run}")
    assert result.code == 0, result.err
    assert_finished(run)


def test_the_mixture_trains_and_evaluates_both_sets(tmp_path: Path, ptcli_process: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    result = ptcli_process("train", ROOT / "recipes/data/sft-mixture.yaml", "--smoke", f"output_dir={run}")
    assert result.code == 0, result.err
    assert_finished(run)
    logged = {name for row in metrics_of(run) for name in row}
    assert {"eval_talks_loss", "eval_tasks_loss"} <= logged
