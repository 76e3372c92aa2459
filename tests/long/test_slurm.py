"""Jobs of a real Slurm with two emulated nodes: warned before their time is up, queued again, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptcli.plan.machine import free_ports
from tests.slurm_cluster import Cluster, missing, slurm_cluster

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=f"needs Debian's slurm-wlm and munge: no {', '.join(missing())}"),
]

STEPS = 60
RECIPE = """\
method: sft
model: {path: "builtin:tiny"}
data: {train: [{path: "builtin:arithmetic-messages"}]}
training:
  max_steps: 60
  per_device_train_batch_size: 4
  learning_rate: 1e-3
  logging_steps: 1
  save_strategy: "no"
launch: {device: cpu, env: {PACE_TOKEN: "${oc.env:PACE_TOKEN}"}}
callbacks: [{use: "pace.py:Pace"}]
"""
ONLINE_STEPS = 8
ONLINE = """\
method: grpo
model: {path: "builtin:tiny"}
data: {train: [{path: "builtin:arithmetic"}]}
rewards: [{use: "ptcli.builtin.rewards:exact_match"}]
training:
  max_steps: 8
  num_generations: 4
  per_device_train_batch_size: 4
  max_completion_length: 16
  learning_rate: 1e-3
  logging_steps: 1
  save_strategy: "no"
rollouts: {nodes: 1, port: %d, group_port: %d, max_model_len: 128}
launch: {device: cpu, env: {PACE_TOKEN: "${oc.env:PACE_TOKEN}"}, slurm: {time: 30}}
callbacks: [{use: "pace.py:Pace"}]
"""
PACE = """\
import os, pathlib, time
from transformers import TrainerCallback

class Pace(TrainerCallback):
    '''In a job that was not queued again yet, steps take their time. Says which nodes trained.'''

    def on_train_begin(self, args, state, control, **_):
        place = pathlib.Path(args.output_dir, "slurm")
        if place.exists():
            node, rank = os.environ.get("SLURMD_NODENAME"), os.environ.get("RANK", "0")
            (place / f"rank{rank}").write_text(f"{node} {len(os.environ['PACE_TOKEN'])}")

    def on_step_end(self, args, state, control, **_):
        if os.environ.get("PACE_FAILS"):
            raise RuntimeError("as it was told")
        if "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            time.sleep(2)
"""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
TOKEN = "not-to-be-seen-anywhere"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "pace.py").write_text(PACE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def ptcli_train(*arguments: object, env: dict[str, str], code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptcli", "train", *map(str, arguments)]
    env = os.environ | {"PACE_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def submit(cluster: Cluster, recipe: Path, *overrides: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    run = recipe.parent / "it's 100%j #1"
    options = (f"output_dir={run}", *overrides, "--launcher", "slurm", "--json")
    return json.loads(ptcli_train(recipe, *options, env=cluster.env | (env or {})).stdout)


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for_step(run: Path, step: int, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while status(run)["step"] < step:
        assert time.monotonic() < deadline, said(run)
        time.sleep(0.2)


def said(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((run / "logs").glob("slurm-*.out")))


def test_two_nodes_are_warned_save_requeue_and_finish(cluster: Cluster, recipe: Path) -> None:
    """The losses are those of two processes that nobody interrupted."""
    slurm = "launch.slurm={time: 3, signal_seconds: 45, requeue: true}"
    job = submit(cluster, recipe, "launch.nodes=2", slurm)
    run = Path(job["output_dir"])
    assert status(run)["state"] == "planned"
    recipe.write_text("method: none of the methods\n")  # no job reads it any more
    ended = cluster.wait(job["job"], ENDED, 600)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), said(run)
    assert status(run)["state"] == "finished"
    assert job["log"] == str(run / f"logs/slurm-{job['job']}.out")
    assert "the job is queued again and goes on from there" in said(run)
    assert [(run / f"slurm/rank{rank}").read_text() for rank in (0, 1)] == [f"n{n} {len(TOKEN)}" for n in (1, 2)]
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())

    whole = recipe.parent / "whole"
    recipe.write_text(RECIPE)
    ptcli_train(recipe, "launch.processes=2", f"output_dir={whole}", env={})
    assert losses(run).keys() == losses(whole).keys() == set(range(1, STEPS + 1))
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)


def test_a_person_ends_a_job_with_a_checkpoint(cluster: Cluster, recipe: Path) -> None:
    job = submit(cluster, recipe, "launch.slurm={time: 30, requeue: true}")
    run = Path(job["output_dir"])
    wait_for_step(run, 2)
    cluster.run("scancel", "--batch", "--signal=TERM", str(job["job"]))
    ended = cluster.wait(job["job"], ENDED | {"PENDING"}, 120)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "143:0", "0"), said(run)
    assert (status(run)["state"], status(run)["exit_code"]) == ("stopped", 143)
    assert list(run.glob("checkpoint-*")) == [run / f"checkpoint-{status(run)['step']}"]


def test_a_rollout_server_has_the_last_node(cluster: Cluster, recipe: Path) -> None:
    """It samples from the trainer's weights, also in a second job that goes on from the checkpoint of the first."""
    recipe.write_text(ONLINE % tuple(free_ports(count=2)))
    job = submit(cluster, recipe)
    run = Path(job["output_dir"])
    wait_for_step(run, 2)
    cluster.run("scancel", "--batch", "--signal=TERM", str(job["job"]))
    ended = cluster.wait(job["job"], ENDED, 120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "143:0"), said(run)
    stopped = status(run)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 143)
    assert 2 <= stopped["step"] < ONLINE_STEPS
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{stopped['step']}"]

    again = ptcli_train(run / "slurm/recipe.yaml", "--launcher", "slurm", "--resume", "--json", env=cluster.env)
    second = json.loads(again.stdout)["job"]
    assert cluster.wait(second, ENDED, 300)["JobState"] == "COMPLETED", said(run)
    assert status(run)["state"] == "finished"
    plan = json.loads((run / "plan.json").read_text())
    assert [(step["name"], step["node"]) for step in plan["steps"]] == [("rollouts", 1), ("trainer", 0)]
    assert (run / "slurm/rank0").read_text() == f"n1 {len(TOKEN)}"
    assert said(run).count("this is node 1: serving rollouts") == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    differences = {row["step"]: row["sampling/sampling_logp_difference/max"] for row in rows if "loss" in row}
    assert list(differences) == list(range(1, ONLINE_STEPS + 1))
    assert max(differences.values()) < 1e-4, "the server has the trainer's weights"


def test_a_run_that_fails_is_not_queued_again(cluster: Cluster, recipe: Path) -> None:
    job = submit(cluster, recipe, "launch.slurm={time: 30, requeue: true}", env={"PACE_FAILS": "1"})
    run = Path(job["output_dir"])
    ended = cluster.wait(job["job"], ENDED, 240)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0"), said(run)
    assert "RuntimeError: as it was told" in status(run)["cause"]


def test_what_slurm_refuses(cluster: Cluster, recipe: Path) -> None:
    run = recipe.parent / "run"
    options = ("--launcher", "slurm", f"output_dir={run}", "launch.slurm.time=60")
    for override, code, text in (
        ("launch.nodes=3", 2, "the job needs 3 nodes, and debug has 2"),
        ("launch.slurm.partition=debgu", 2, "did you mean debug?"),
        ("launch.slurm.extra={reservation: nope}", 1, "the job was not accepted:\nBatch job submission failed"),
    ):
        assert text in ptcli_train(recipe, *options, override, env=cluster.env, code=code).stderr
        assert not (run / "status.json").exists()


def test_directives_are_read_as_they_were_meant(cluster: Cluster, tmp_path: Path, recipe: Path) -> None:
    """A run directory with a space, a quote, a hash and a percent sign; values with spaces. The job is held.

    That its log would be there is seen in the jobs that run: scontrol shows another place where there is a `%j`.
    """
    run = tmp_path / "it's 100%j #1"
    extra = "launch.slurm.extra={hold: true, comment: \"it's a 'comment' # 1\"}"
    options = (f"output_dir={run}", "launch.slurm.time=1-02:03", extra, "--launcher", "slurm", "--json")
    job = json.loads(ptcli_train(recipe, *options, env=cluster.env).stdout)["job"]
    text = cluster.run("scontrol", "show", "job", str(job))
    assert "Comment=it's a 'comment' # 1" in text
    assert "TimeLimit=1-02:03:00" in text
    assert "Requeue=0" in text
    second = ptcli_train(recipe, *options, "--overwrite", env=cluster.env, code=2)
    assert f"job {job} of {run} is pending" in second.stderr
    cluster.run("scancel", str(job))
    ptcli_train(recipe, *options, "--overwrite", env=cluster.env)
