"""`ptcli doctor` where nothing is measured: requests that are wrong, and a child that dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_mathematics_take_no_recipe(ptcli) -> None:
    result = ptcli("doctor", "recipes/sft.yaml", "--math")
    assert result.code == 2
    assert "leave RECIPE out" in result.err


def test_a_recipe_that_is_wrong_anywhere_is_a_wrong_request(ptcli, root: Path) -> None:
    """The same errors as `ptcli train` prints, and nothing is looked at."""
    result = ptcli("doctor", root / "recipes/sft.yaml", "training.learning_rat=1")
    assert result.code == 2
    assert "did you mean `learning_rate`?" in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("raise ImportError('libtorch_cpu.so: cannot open shared object file')", "libtorch_cpu.so"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_a_child_that_dies_is_reported_with_its_last_lines(tmp_path: Path, content: str, expected: str) -> None:
    """A torch that cannot be loaded stands for an installation that is broken."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "torch.py").write_text(content)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = os.environ | {"PYTHONPATH": str(shadow), "TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, "-m", "ptcli", "doctor", "--math"], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "the checks died while loading the libraries" in done.stderr
    assert expected in done.stderr
    assert done.stdout == ""
    assert list(scratch.iterdir()) == []
