"""`ptcli init`: a recipe to start from, that plans where it is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptcli.methods import METHODS, NOT_COVERED
from ptcli.recipe.starters import RECIPES, starter


def _schema_of(recipe: Path) -> Path:
    line = recipe.read_text().splitlines()[0]
    assert line.startswith("# yaml-language-server: $schema=")
    return (recipe.parent / line.partition("=")[2]).resolve()


@pytest.mark.parametrize("method", METHODS)
def test_what_it_prints_plans(method: str, tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = ptcli("init", method)
    assert (printed.code, printed.err) == (0, "")
    recipe = tmp_path / "my.yaml"
    recipe.write_text(printed.out)
    for arguments in (["--assume-gpus", "8x80GiB"], ["--smoke"]):
        planned = ptcli("train", "my.yaml", "--dry-run", *arguments)
        assert planned.code == 0, planned.err
    assert _schema_of(recipe) == (RECIPES / f"schema/{method}.json").resolve()


@pytest.mark.parametrize("method", METHODS)
def test_it_teaches(method: str) -> None:
    """Comments beside the keys, and commands that name the new file and not ours."""
    text = starter(method, Path("my.yaml"))
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    assert sum("#" in line for line in lines) >= 8
    assert "ptcli train my.yaml --smoke" in text
    assert f"recipes/{method}.yaml" not in text


def test_written_to_a_file(tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep/down").mkdir(parents=True)
    result = ptcli("init", "dpo", "--out", "deep/down/my.yaml")
    assert (result.code, result.out) == (0, "")
    assert "wrote deep/down/my.yaml" in result.err
    written = tmp_path / "deep/down/my.yaml"
    assert _schema_of(written) == (RECIPES / "schema/dpo.json").resolve()
    assert "ptcli train deep/down/my.yaml --smoke" in written.read_text()
    assert ptcli("train", written, "--dry-run", "--smoke").code == 0


def test_schema_is_found_from_behind_a_link(tmp_path: Path, ptcli: Callable) -> None:
    """Editors follow `..` from the folder itself, not from the link that leads there."""
    (tmp_path / "a/b/real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/b/real")
    assert ptcli("init", "dpo", "--out", tmp_path / "link/my.yaml").code == 0
    named = (tmp_path / "link/my.yaml").read_text().splitlines()[0].partition("=")[2]
    assert (tmp_path / "a/b/real" / named).is_file()


def test_existing_file_is_kept(tmp_path: Path, ptcli: Callable) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text("mine")
    result = ptcli("init", "sft", "--out", mine)
    assert result.code == 2
    assert "there already" in result.err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("nowhere/my.yaml", "there is no folder nowhere; make the folder first"),
        ("recipe/my.yaml", "there is no folder recipe; did you mean recipes?"),
        ("recipes", "is a folder"),
        ("", "is a folder"),
        ("file/my.yaml", "cannot be written (Not a directory)"),
        ("x" * 300, "cannot be written (File name too long)"),
    ],
)
def test_a_bad_place(out: str, said: str, tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "file").touch()
    result = ptcli("init", "sft", "--out", out)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "recipes"]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("gppo", "did you mean"),
        ("online-dpo", "did you mean 'online_dpo'?"),
        (next(iter(NOT_COVERED)), "is not covered yet"),
        ("../sft", "unknown method"),
        ("demo", "unknown method"),
        ("", "unknown method"),
    ],
)
def test_no_such_method(method: str, said: str, tmp_path: Path, ptcli: Callable) -> None:
    for more in ([], ["--out", tmp_path / "my.yaml"]):
        result = ptcli("init", method, *more)
        assert (result.code, result.out) == (2, "")
        assert said in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_reader_who_goes_away(root: Path) -> None:
    """`ptcli init grpo | head -1` ends without a traceback."""
    code = "import os, sys; from ptcli.cli import main; os.close(1); sys.argv = ['ptcli', 'init', 'grpo']; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
