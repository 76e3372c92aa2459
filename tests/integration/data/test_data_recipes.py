"""The recipes that show how data in other layouts are trained on: checked with a tokenizer, and the mixture trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.data.check import Depth, check_recipe
from tests.smoke_runs import ROOT, assert_finished, metrics_of

RECIPES = sorted((ROOT / "recipes/data").glob("*.yaml"))
TINY = "model={path: builtin:tiny}"


def test_all_are_there() -> None:
    assert [path.stem for path in RECIPES] == ["dpo-ultrafeedback", "grpo-gsm8k", "sft-mixture"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_rows_have_no_error(recipe: Path) -> None:
    report = check_recipe(recipe, [TINY], Depth(full=True))
    assert [finding for finding in report.findings if finding.severity == "error"] == []
    assert report.tokenized == report.checked > report.rows - 1


def test_the_mixture_trains_and_evaluates_both_sets(tmp_path: Path, ptcli_process: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    result = ptcli_process("train", ROOT / "recipes/data/sft-mixture.yaml", "--smoke", f"output_dir={run}")
    assert result.code == 0, result.err
    assert_finished(run)
    logged = {name for row in metrics_of(run) for name in row}
    assert {"eval_talks_loss", "eval_tasks_loss"} <= logged
