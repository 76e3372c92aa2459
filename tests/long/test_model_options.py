"""Random weights through the real command, with a server and on several processes; torch.compile on a CPU; a hub
teacher whose tokens turn out to be others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.builtin import MODEL

pytestmark = pytest.mark.long

COMMIT = "0" * 40

GRPO = {
    "method": "grpo",
    "model": {"path": "builtin:tiny", "from": "config"},
    "data": {"train": [{"path": "builtin:arithmetic"}]},
    "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
    "training": {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 8, "max_steps": 2},
    "rollouts": {"backend": "vllm"},
    "launch": {"device": "cpu"},
}
SFT = {
    "method": "sft",
    "model": {"path": "builtin:tiny"},
    "data": {"train": [{"path": "builtin:arithmetic-messages", "take": 32}]},
    "training": {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "max_length": 64},
    "launch": {"device": "cpu"},
}


def run(
    ptcli_process: Callable[..., Any], folder: Path, recipe: dict[str, Any], *arguments: str
) -> list[dict[str, Any]]:
    """Metrics of a run that ends well."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"output_dir": str(folder / "run")}))
    done = ptcli_process("train", path, *arguments, timeout=540)
    assert done.code == 0, done.err
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_server_that_loaded_no_weights_gets_the_trainers(ptcli_process: Callable[..., Any], tmp_path: Path) -> None:
    """From a folder that has none."""
    shutil.copytree(MODEL, tmp_path / "architecture", ignore=shutil.ignore_patterns("*.safetensors"))
    rows = run(ptcli_process, tmp_path, GRPO, f"model.path={tmp_path / 'architecture'}")
    assert [row["step"] for row in rows][:2] == [1, 2]
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in rows[:2])


def test_processes_share_one_start(ptcli_process: Callable[..., Any], tmp_path: Path) -> None:
    recipe = SFT | {"method": "dpo", "data": {"train": [{"path": "builtin:arithmetic-preference", "take": 32}]}}
    rows = run(ptcli_process, tmp_path, recipe, "model.from=config", "launch.processes=2", "launch.accelerate=ddp")
    assert rows[0]["rewards/margins"] == 0.0
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    other = run(ptcli_process, tmp_path, recipe, "model.from=config", "seed=7", "--overwrite")
    assert other[0]["logps/chosen"] != rows[0]["logps/chosen"]  # and not from the start that was there


def test_torch_compile_trains_as_without(ptcli_process: Callable[..., Any], tmp_path: Path) -> None:
    losses = {}
    for name in ("true", "false"):
        (tmp_path / name).mkdir()
        rows = run(ptcli_process, tmp_path / name, SFT, f"training.torch_compile={name}")
        losses[name] = [row["loss"] for row in rows if "loss" in row]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


def test_a_teacher_from_the_hub_with_other_tokens_ends_the_run_before_it_is_loaded(tmp_path: Path) -> None:
    """The hub is a local cache here; a real one was empty when the recipe was read."""
    snapshot = tmp_path / "models--org--teacher" / "snapshots" / COMMIT
    shutil.copytree(MODEL, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "models--org--teacher" / "refs").mkdir()
    (tmp_path / "models--org--teacher" / "refs" / "main").write_text(COMMIT)
    tokenizer = snapshot / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<|im_end|>"', '"<|over|>"').replace('"<|pad|>"', '"<|gap|>"'))
    code = """
from ptcli.recipe.model import Recipe
from ptcli.train.build import build_trainer
data = {"train": [{"path": "builtin:arithmetic-messages"}]}
models = {"model": {"path": "builtin:tiny"}, "teacher": {"path": "org/teacher"}}
sections = {"name": "x", "method": "gkd", "output_dir": "out", "data": data, "launch": {"device": "cpu"}, **models}
build_trainer(Recipe.model_validate(sections))
"""
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
    )
    assert "WorkError: `teacher` and `model` have different vocabularies: token 262" in done.stderr, done.stderr[-2000:]
