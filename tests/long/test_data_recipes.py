"""GRPO on rows as GSM8K's and DPO on rows as UltraFeedback's, in smoke."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.smoke_runs import ROOT, assert_finished

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", ["grpo-gsm8k", "dpo-ultrafeedback"])
def test_trains(name: str, tmp_path: Path, ptcli_process: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    result = ptcli_process("train", ROOT / f"recipes/data/{name}.yaml", "--smoke", f"output_dir={run}")
    assert result.code == 0, result.err
    assert_finished(run)
