"""`ptcli doctor` as a user runs it: on this machine, and with things broken that it has to name."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ptcli.doctor.checks.allreduce import read_reduced
from ptcli.doctor.checks.cluster import Slurm, judge_slurm, read_slurm
from ptcli.doctor.needs import Needs
from ptcli.doctor.pairs import Member, Pair
from ptcli.run.panel import choose_view
from tests import slurm_cluster

ONLINE = """\
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
launch: {device: cpu}
"""


def doctor(
    folder: Path, *arguments: object, prefix: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """The real command, offline, in a home, a working directory and a temporary folder of its own."""
    own = {}
    for name in ("home", "work", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "scratch"), "HF_HUB_OFFLINE": "1"}
    command = [*prefix, sys.executable, "-m", "ptcli", "doctor", *map(str, arguments)]
    clean = {name: value for name, value in os.environ.items() if name not in ("HF_HOME", "XDG_CACHE_HOME")}
    return subprocess.run(
        command, cwd=folder / "work", env=clean | own | env, capture_output=True, text=True, timeout=300
    )


def failures(report: Mapping) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in report["checks"]:
        if check["state"] == "fail":
            assert check["fix"], check
            found.setdefault(check["name"], []).append(f"{check['message']} | {check['fix']}")
    return found


def test_this_machine(tmp_path: Path) -> None:
    """Everything is looked at, the pinned set is sound, and nothing is left behind."""
    done = doctor(tmp_path, "--json")
    report = json.loads(done.stdout)
    states = {(check["name"], check["state"]) for check in report["checks"]}
    assert {name for name, _ in states} >= {
        "python", "packages", "imports", "template", "gpus", "shm", "ulimits", "memory", "cpus", "ports", "disk",
        "hub", "slurm",
    }  # fmt: skip
    assert {("packages", "pass"), ("imports", "pass"), ("template", "pass")} <= states
    assert not failures(report).keys() & {"packages", "windows", "imports", "template"}
    assert (done.returncode == 0) == report["ok"] == (failures(report) == {})
    imports = next(check["message"] for check in report["checks"] if check["name"] == "imports")
    assert imports == "torch, transformers, accelerate, peft, vllm, trl can be imported"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_broken_vllm_another_transformers_and_a_taken_port_are_each_named(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    (shadow / "vllm").mkdir(parents=True)
    (shadow / "vllm/__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    (shadow / "transformers-4.0.0.dist-info").mkdir()
    (shadow / "transformers-4.0.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 4.0.0\n"
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text(ONLINE)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = doctor(tmp_path, recipe, f"rollouts.port={port}", "--json", PYTHONPATH=str(shadow))
    assert done.returncode == 1, done.stderr
    found = failures(json.loads(done.stdout))
    broken = [each for each in found["imports"] if each.startswith("vllm, trl ")]  # whose trainer imports it
    assert broken == [
        "vllm, trl cannot be imported: ImportError: libcudart.so.13: cannot open shared object file"
        f" | move {shadow}/vllm away: it hides the vllm that is installed"
    ]
    (window,) = [each for each in found["windows"] if each.startswith("trl ")]
    assert "needs transformers>=4.56.2, and 4.0.0 is installed" in window
    assert window.endswith("pip install transformers==5.17.0")
    (taken,) = found["ports"]
    assert f"rollouts.port {port} is taken by pid {os.getpid()} (" in taken
    assert f"kill {os.getpid()}; or rollouts.port=null" in taken


def test_processes_that_do_not_reach_each_other_are_named_with_what_mends_it(tmp_path: Path) -> None:
    """Real ones, over gloo, with the recipe's environment; tried again with another setting, they add up."""
    shadow, recipe = tmp_path / "shadow", tmp_path / "r.yaml"
    shadow.mkdir()
    (shadow / "transformers.py").write_text("raise ImportError('not in this test, which needs torch alone')\n")
    recipe.write_text(SFT.replace("{device: cpu}", "{device: cpu, processes: 2, env: {GLOO_SOCKET_IFNAME: nope}}"))
    done = doctor(tmp_path, recipe, "--json", PYTHONPATH=str(shadow))
    assert done.returncode == 1, done.stderr
    (found,) = failures(json.loads(done.stdout))["allreduce"]
    assert found.startswith("two processes of the trainer cannot add up a tensor over gloo: RuntimeError: ")
    assert found.endswith("for: nope; with GLOO_SOCKET_IFNAME=lo they can | launch.env.GLOO_SOCKET_IFNAME=lo")


def test_two_processes_add_up(tmp_path: Path) -> None:
    reduced = read_reduced(Pair("two", "gloo", (Member("cpu", {}), Member("cpu", {}))), choose_view(quiet=True))
    assert reduced is not None
    assert (reduced.sum.problem, reduced.second) == ("", None)


def test_a_transformers_that_trl_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in trl#6105: a batch where one row is expected, and a prompt that counts as two tokens."""
    from transformers import PreTrainedTokenizerBase
    from trl.trainer import sft_trainer

    from ptcli.doctor.template import find_problem

    apply, tokenize = PreTrainedTokenizerBase.apply_chat_template, sft_trainer._tokenize

    def nested(self, *arguments, tokenize=True, return_dict=True, **options):
        found = apply(self, *arguments, tokenize=tokenize, return_dict=return_dict, **options)
        return {"input_ids": [found["input_ids"]]} if tokenize and return_dict else found

    def short(processor, chat, **options):
        found = tokenize(processor, chat, **options)
        return {"input_ids": found["input_ids"][:2]} if options.get("add_generation_prompt") else found

    assert find_problem() == ""
    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", nested)
    assert find_problem() == "apply_chat_template(tokenize=True) returns input_ids as a list of list"
    monkeypatch.undo()
    monkeypatch.setattr(sft_trainer, "_tokenize", short)
    assert re.fullmatch(r"the SFT trainer trains on \d+ tokens of a row whose completion has \d", find_problem())


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[str, ...]:
    """What puts a command before which a file system of one megabyte, full, is mounted at `full` for it alone."""
    (tmp_path / "full").mkdir()
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    script = 'mount -t tmpfs -o size=1m none "$0" && { head -c 2m /dev/zero > "$0/file" 2>/dev/null; exec "$@"; }'
    prefix = ("unshare", *user, "--mount", "sh", "-c", script, str(tmp_path / "full"))
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace for this user: a full disk cannot be made here")
    return prefix


@pytest.fixture
def quick(tmp_path: Path) -> str:
    """A PYTHONPATH with a torch that cannot be imported: what is tested with it are other checks."""
    shadow = tmp_path / "quick"
    shadow.mkdir()
    for name in ("torch", "transformers"):
        (shadow / f"{name}.py").write_text("raise ImportError('not in this test')\n")
    return str(shadow)


def test_a_full_disk_is_named_with_what_goes_there(tmp_path: Path, small_disk: tuple[str, ...], quick: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(SFT)
    full = tmp_path / "full"
    done = doctor(tmp_path, recipe, f"output_dir={full}/runs/a", prefix=small_disk, PYTHONPATH=quick)
    assert done.returncode == 1, done.stderr
    assert f"fail  disk      only 0 MB free at {full} (output_dir); a run needs 100 MB at least\n" in done.stdout
    assert "fix: du -xh" in done.stdout


def test_a_full_temporary_folder_ends_no_check(tmp_path: Path, small_disk: tuple[str, ...], quick: str) -> None:
    full = tmp_path / "full"
    done = doctor(tmp_path, "--json", prefix=small_disk, PYTHONPATH=quick, TMPDIR=str(full))
    found = failures(json.loads(done.stdout))
    assert done.returncode == 1
    assert f"only 0 MB free at {full} (temporary files)" in found["disk"][0]
    assert "Traceback" not in done.stderr


def test_what_was_found_is_printed_for_people(tmp_path: Path, quick: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(SFT)
    done = doctor(tmp_path, recipe, PYTHONPATH=quick)
    lines = done.stdout.splitlines()
    assert any(
        line.startswith("fail  imports   torch, ") and line.endswith(": ImportError: not in this test")
        for line in lines
    )
    assert f"                fix: move {quick} away: it hides the torch that is installed" in lines
    assert "pass  ports     free ones can be bound" in lines
    assert "failure" in lines[-1]
    assert "] importing t" in done.stderr
    assert "vllm cannot" not in done.stdout, "the recipe does not need it"


def test_the_partitions_of_a_real_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking := slurm_cluster.missing():
        pytest.skip(f"no Slurm here: {', '.join(lacking)}")
    with slurm_cluster.slurm_cluster(tmp_path) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        slurm = read_slurm(Needs())
    assert slurm == Slurm(partitions=("debug",))
    assert [each.state for each in judge_slurm(slurm, Needs("r.yaml", slurm=True, partition="debug"))] == ["pass"]
    assert [each.state for each in judge_slurm(slurm, Needs("r.yaml", slurm=True, partition="a100"))] == ["fail"]
