"""The recipes that show how data in other layouts are trained on: checked with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptcli.data.check import Depth, check_recipe
from tests.smoke_runs import ROOT

RECIPES = sorted((ROOT / "recipes/data").glob("*.yaml"))
TINY = "model={path: builtin:tiny}"


def test_all_are_there() -> None:
    assert [path.stem for path in RECIPES] == ["dpo-ultrafeedback", "grpo-gsm8k", "sft-mixture"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_rows_have_no_error(recipe: Path) -> None:
    report = check_recipe(recipe, [TINY], Depth(full=True))
    assert [finding for finding in report.findings if finding.severity == "error"] == []
    assert report.tokenized == report.checked > report.rows - 1
