"""Bad requests through the command line: exit code 2, a message that names the fault, nothing started or written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOOD = """\
method: grpo
model: {path: "builtin:tiny"}
data: {train: [{path: "builtin:arithmetic"}]}
rewards: [{use: "ptcli.builtin.rewards:exact_match"}]
training: {num_generations: 8, per_device_train_batch_size: 8}
rollouts: {backend: vllm}
launch: {device: cpu}
"""
SFT = """\
method: sft
model: {path: "builtin:tiny"}
data: {train: [{path: "builtin:arithmetic-messages"}]}
"""
ON_GPUS = GOOD.replace("rollouts: {backend: vllm}", "rollouts: {gpus: 2}").replace("device: cpu", "gpus: 2")

# name: (text of the recipe, further arguments, what the message says)
CASES: dict[str, tuple[str | bytes, list[str], str]] = {
    "no GPU": (ON_GPUS, [], "no GPU"),
    "more GPUs than seen": (ON_GPUS, ["--dry-run", "--assume-gpus", "3"], "which leaves 1"),
    "fewer GPUs than the server wants": (
        ON_GPUS,
        ["--dry-run", "--assume-gpus", "1"],
        "rollouts.backend: transformers",
    ),
    "overlapping lists": (
        ON_GPUS.replace("rollouts: {gpus: 2}", "rollouts: {gpus: [0, 1]}").replace("gpus: 2}", "gpus: [1, 2]}"),
        ["--dry-run", "--assume-gpus", "8"],
        "1",
    ),
    "method misspelt": (GOOD.replace("grpo", "gpro"), [], "grpo"),
    "not YAML": ("method: [grpo", [], "r.yaml:"),
    "not a mapping": ("- method: grpo\n", [], "mapping"),
    "empty": ("", [], "empty"),
    "not text": (b"\xff\xfe\x00method", [], "UTF-8"),
    "alias bomb": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        [],
        "alias",
    ),
    "extends in a circle": ("extends: r.yaml\n" + GOOD, [], "r.yaml"),
    "data file not there": (GOOD.replace("builtin:arithmetic", "./rows.jsonl"), [], "rows.jsonl"),
    "model folder not there": (GOOD.replace("builtin:tiny", "./model"), [], "model"),
    "reward file not there": (GOOD.replace("ptcli.builtin.rewards:exact_match", "./mine.py:score"), [], "mine.py"),
    "reward function not there": (GOOD.replace("exact_match", "exact_mach"), [], "exact_match"),
    "assumed GPUs without a dry run": (GOOD, ["--assume-gpus", "8"], "--dry-run"),
    "a specification of GPUs that is none": (ON_GPUS, ["--dry-run", "--assume-gpus", "many"], "8x80GiB"),
    "end-of-sequence token that is none": (GOOD, ["model.eos_token=<|imend|>"], "did you mean '<|im_end|>'?"),
    "packing without flash attention": (
        SFT,
        ["training.packing=true", "--dry-run", "--assume-gpus", "1"],
        "flash_attention_2",
    ),
    "Liger on a CPU": (SFT, ["training.use_liger_kernel=true", "launch.device=cpu"], "its kernels need a GPU"),
    "a moving reference without one": (GOOD, ["training.sync_ref_model=true"], "there is no reference: beta is 0"),
    "a model that does not ship, in smoke": (
        SFT.replace("sft", "gkd").replace("tiny", "nope") + "teacher: {path: org/model}\n",
        ["--smoke"],
        "r.yaml:2:9: there is no model builtin:nope",
    ),
    "smoke in a job": (SFT, ["--smoke", "--launcher", "slurm"], "--smoke runs on this machine's CPU"),
    "a job of no known size": (SFT, ["--launcher", "slurm"], "a job must say how many GPUs it wants"),
    "a job of given GPUs": (SFT, ["--launcher", "slurm", "launch.gpus=[0, 1]"], "for Slurm to say; give a count"),
    "a job of one minute": (SFT, ["launch.slurm.time=1:00", "launch.device=cpu"], "1:00 is 1 minute to Slurm"),
    "a launcher that is none": (SFT, ["--launcher", "kubernetes"], "slurm"),
    "typo in an override": (GOOD, ["training.learning_rat=1"], "learning_rate"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    text, arguments, said = CASES[name]
    recipe = tmp_path / "r.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.chdir(tmp_path)
    result = ptcli("train", "r.yaml", *arguments)
    assert result.code == 2, result
    assert said in result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_recipe_not_there(tmp_path: Path, ptcli: Callable) -> None:
    result = ptcli("train", tmp_path / "none.yaml")
    assert (result.code, result.out) == (2, "")
    assert "none.yaml" in result.err


def test_recipe_is_a_folder(tmp_path: Path, ptcli: Callable) -> None:
    result = ptcli("train", tmp_path)
    assert result.code == 2
    assert "folder" in result.err or "directory" in result.err


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root can read every file, so root becomes nobody for the time of a test."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    yield
    os.seteuid(mine)


def test_recipe_unreadable(tmp_path: Path, ptcli: Callable, request: pytest.FixtureRequest) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD)
    assert ptcli("train", recipe, "--dry-run").code == 0  # and all modules are imported: nobody could not
    recipe.chmod(0)
    request.getfixturevalue("ordinary_user")
    result = ptcli("train", recipe)
    assert result.code == 2
    assert "r.yaml" in result.err
    assert "Traceback" not in result.err


def test_port_in_use(tmp_path: Path, ptcli: Callable) -> None:
    recipe = tmp_path / "r.yaml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        recipe.write_text(GOOD.replace("backend: vllm", f"backend: vllm, port: {port}"))
        result = ptcli("train", recipe, f"output_dir={tmp_path}/run")
    assert result.code == 2
    assert str(port) in result.err
    assert "r.yaml:6:" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", ["recipe.resolved.yaml", "checkpoint-10/trainer_state.json", "model.safetensors"])
def test_another_run_in_the_output_directory(tmp_path: Path, ptcli: Callable, left: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD)
    trace = tmp_path / "run" / left
    trace.parent.mkdir(parents=True)
    trace.write_text("{}")
    result = ptcli("train", recipe, f"output_dir={tmp_path}/run")
    assert result.code == 2
    assert "--overwrite" in result.err
    assert trace.read_text() == "{}"
    assert len(list(tmp_path.joinpath("run").rglob("*"))) == len(Path(left).parts)


def test_everything_at_once(tmp_path: Path, ptcli: Callable) -> None:
    """Errors of the recipe, of a base, of an override and of the machine come together, each with its place."""
    (tmp_path / "base.yaml").write_text("training:\n  learning_rat: 1\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("extends: base.yaml\n" + ON_GPUS.replace("weight", "wait").replace("model:", "modl: 1\nmodel:"))
    result = ptcli("train", recipe, "training.beta=much")
    assert result.code == 2
    assert f"{tmp_path}/base.yaml:2:3" in result.err
    assert f"{recipe}:3:1" in result.err
    assert "training.beta=much" in result.err
    assert "no GPU" in result.err


def test_dry_run_writes_nothing(tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    result = ptcli("train", recipe, "--dry-run")
    assert result.code == 0, result.err
    assert "vllm serve" in result.out
    assert "accelerate launch" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_the_working_directory_is_gone(tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = ptcli("train", tmp_path / "r.yaml")
    assert result.code == 2, result
    assert "working directory is gone" in result.err


def test_a_full_disk_behind_stdout(root: Path) -> None:
    """`ptcli methods > FILE` where nothing can be written: no traceback."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ptcli", "methods"]
        done = subprocess.run(command, cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: cannot write to stdout: No space left on device\n")
