"""Paths are relative to who says them, and hub ids stay hub ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import CallbackSpec, DataEntry, LaunchSpec, ModelSpec, RewardSpec, Section
from ptcli.recipe.paths import NotAPath, resolve_path

from .broken import GOOD


@pytest.mark.parametrize(
    ("section", "field", "text", "expected"),
    [
        (ModelSpec, "path", "gpt2", "gpt2"),
        (ModelSpec, "path", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        (ModelSpec, "path", "builtin:tiny", "builtin:tiny"),
        (ModelSpec, "path", "./gpt2", "/r/gpt2"),
        (ModelSpec, "path", "../m", "/m"),
        (ModelSpec, "path", "/a/b/c", "/a/b/c"),
        (ModelSpec, "path", "~/m", "/home/me/m"),
        (ModelSpec, "path", "runs/sft@500", "/r/runs/sft@500"),
        (ModelSpec, "path", "runs/sft", "/r/runs/sft"),
        (ModelSpec, "chat_template", "qwen3", "qwen3"),
        (ModelSpec, "chat_template", "t.jinja", "/r/t.jinja"),
        (ModelSpec, "chat_template", "a/t", "/r/a/t"),
        (ModelSpec, "revision", "./x", "./x"),
        (DataEntry, "path", "trl-lib/DeepMath-103K", "trl-lib/DeepMath-103K"),
        (DataEntry, "path", "rows.jsonl", "/r/rows.jsonl"),
        (DataEntry, "path", "rows.json.gz", "/r/rows.json.gz"),
        (DataEntry, "path", "d/*.parquet", "/r/d/*.parquet"),
        (DataEntry, "path", "d/part-?", "/r/d/part-?"),
        (DataEntry, "path", "builtin:arithmetic", "builtin:arithmetic"),
        (RewardSpec, "use", "trl.rewards:accuracy_reward", "trl.rewards:accuracy_reward"),
        (RewardSpec, "use", "accuracy_reward", "trl.rewards:accuracy_reward"),
        (RewardSpec, "use", "get_soft_overlong_punishment", "trl.rewards:get_soft_overlong_punishment"),
        (RewardSpec, "use", "./accuracy_reward", "/r/accuracy_reward"),
        (RewardSpec, "use", "my_reward", "my_reward"),
        (RewardSpec, "use", "my_rewards.py:f", "/r/my_rewards.py:f"),
        (RewardSpec, "use", "/x/my_rewards.py:f", "/x/my_rewards.py:f"),
        (RewardSpec, "use", "org/reward-model", "org/reward-model"),
        (RewardSpec, "use", "./reward-model", "/r/reward-model"),
        (RewardSpec, "use", "runs/reward", "/r/runs/reward"),
        (RewardSpec, "use", "builtin:tiny", "builtin:tiny"),
        (CallbackSpec, "use", "a/cb.py:C", "/r/a/cb.py:C"),
        (CallbackSpec, "use", "package.module:C", "package.module:C"),
        (LaunchSpec, "accelerate", "zero2", "zero2"),
        (LaunchSpec, "accelerate", "my.yaml", "/r/my.yaml"),
        (LaunchSpec, "accelerate", "c/my", "/r/c/my"),
    ],
)
def test_rules(section: type[Section], field: str, text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve_path(section, field, text, Path("/r")) == expected


def test_what_is_there_is_local(tmp_path: Path) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    assert resolve_path(ModelSpec, "path", "org/name", tmp_path) == str(tmp_path / "org/name")
    assert resolve_path(DataEntry, "path", "org/name", tmp_path) == str(tmp_path / "org/name")
    assert resolve_path(LaunchSpec, "accelerate", "org", tmp_path) == "org"


@pytest.mark.parametrize("text", ["a/b/c", "", "a b", "hf://x/y", "-x", "a/b.c/"])
def test_neither_local_nor_on_the_hub(text: str) -> None:
    with pytest.raises(NotAPath):
        resolve_path(DataEntry, "path", text, Path("/r"))


def test_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipes/base/b.jsonl", "recipes/r.jsonl", "here/o.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"messages": []}\n')
    row = "{path: builtin:arithmetic-messages}"
    (tmp_path / "recipes/base/b.yaml").write_text(GOOD.replace(row, "{path: b.jsonl}") + "output_dir: out\n")
    (tmp_path / "recipes/r.yaml").write_text("extends: base/b.yaml\ndata: {eval: [{path: r.jsonl}]}\n")
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(Path("../recipes/r.yaml")).require()
    assert recipe.data.train[0].path == str(tmp_path / "recipes/base/b.jsonl")
    assert isinstance(recipe.data.eval, list)
    assert recipe.data.eval[0].path == str(tmp_path / "recipes/r.jsonl")
    assert recipe.output_dir == str(tmp_path / "here/out")

    recipe = load_recipe(Path("../recipes/r.yaml"), ["data.train.0.path=o.jsonl", "output_dir=o"]).require()
    assert recipe.data.train[0].path == str(tmp_path / "here/o.jsonl")
    assert recipe.output_dir == str(tmp_path / "here/o")


def test_bases_are_shown_as_seen_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "b.yaml").write_text(GOOD + "sed: 1\n")
    (tmp_path / "recipes/r.yaml").write_text("extends: ../b.yaml\nsede: 1\n")
    monkeypatch.chdir(tmp_path)
    problems = load_recipe(Path("recipes/r.yaml")).problems
    assert [str(p.where) for p in problems] == ["recipes/r.yaml:2:1", "b.yaml:4:1"]
