"""What ends a run on several nodes before its time, and a rollout server that has a node for itself."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ptcli.plan.machine import free_ports
from tests.node_runs import Node, nodes
from tests.strategies import STRATEGIES, recipe

DDP = STRATEGIES["ddp"]


@pytest.fixture
def described(tmp_path: Path) -> dict[str, Any]:
    """SFT over two nodes, longer than anybody waits."""
    sft = recipe("sft", DDP)
    sft["training"] |= {"max_steps": 100_000, "save_steps": 100_000}
    return sft | {"launch": {"device": "cpu", "nodes": 2}, "output_dir": str(tmp_path / "run")}


def wait_for_steps(run: Path, started: list[Node]) -> None:
    """Until the trainer has made a few steps."""

    def steps() -> int:
        file = run / "status.json"
        return int(json.loads(file.read_text())["step"]) if file.exists() else 0

    wait_until(lambda: steps() > 1, started)


def wait_until(true: Callable[[], bool], started: list[Node], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        for node in started:
            assert node.process.poll() is None, node.err.read_text()
        assert time.monotonic() < deadline, [node.err.read_text() for node in started]
        time.sleep(0.1)


def workers(node: Node) -> list[psutil.Process]:
    return [child for child in node.process.children(recursive=True) if "ptcli.train.worker" in child.cmdline()]


def python_worker(node: Node) -> psutil.Process:
    """The trainer itself: the last in the line from accelerate."""
    return max(workers(node), key=lambda process: process.create_time())


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, 20)
    assert alive == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_trainer_that_is_killed_ends_every_node_and_is_the_cause(
    described: dict[str, Any], tmp_path: Path, victim: int
) -> None:
    with nodes(tmp_path, [described, described]) as started:
        wait_for_steps(tmp_path / "run", started)
        processes = [child for node in started for child in node.process.children(recursive=True)]
        python_worker(started[victim]).kill()
        results = [node.wait(60) for node in started]

    assert_gone(processes)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    for rank, result in enumerate(results):
        assert result.code == 1, result.err
        cause = result.err.rpartition("error: ")[2]
        assert "signal 9" in cause, result.err
        assert ("node 1: " in cause) == (victim == 1), result.err
        assert ("node 0: " in cause) == (victim == 0 and rank == 1), result.err


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_that_vanishes_ends_the_other(described: dict[str, Any], tmp_path: Path, victim: int) -> None:
    with nodes(tmp_path, [described, described]) as started:
        wait_for_steps(tmp_path / "run", started)
        processes = [child for node in started for child in node.process.children(recursive=True)]
        started[victim].process.kill()
        other = started[1 - victim].wait(60)

    assert_gone(processes)
    assert other.code == 1
    assert f"node {victim} is gone: its ptcli, or the connection to it, ended without a word" in other.err


@pytest.mark.timeout(600)
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_any_node_saves_a_checkpoint_and_ends_all(
    described: dict[str, Any], tmp_path: Path, told: int
) -> None:
    with nodes(tmp_path, [described, described]) as started:
        wait_for_steps(tmp_path / "run", started)
        started[told].process.send_signal(signal.SIGTERM)
        results = [node.wait(120) for node in started]

    assert [result.code for result in results] == [143, 143], [result.err for result in results]
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "stopped"
    assert (tmp_path / f"run/checkpoint-{status['step']}/trainer_state.json").exists()


@pytest.mark.timeout(120)
def test_a_node_that_waits_for_the_others_can_be_told_to_stop(described: dict[str, Any], tmp_path: Path) -> None:
    with nodes(tmp_path, [described]) as [first]:
        wait_until(lambda: "waiting for node 1 of 2" in first.err.read_text(), [first])
        first.process.send_signal(signal.SIGINT)
        result = first.wait(20)

    assert result.code == 130, result.err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def grpo(tmp_path: Path) -> dict[str, Any]:
    """GRPO with the vLLM server on the second of two nodes."""
    server, group = free_ports(count=2)
    return {
        "method": "grpo",
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": "builtin:arithmetic"}]},
        "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
        "training": {
            "max_steps": 3,
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "max_completion_length": 16,
            "learning_rate": 1e-3,
        },
        "rollouts": {"nodes": 1, "host": "127.0.0.1", "port": server, "group_port": group, "max_model_len": 128},
        "launch": {"device": "cpu"},
        "output_dir": str(tmp_path / "run"),
    }


def outward_address() -> str | None:
    """The address of this machine by which others reach it; None where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("outward", [False, True])
def test_a_rollout_server_on_a_node_of_its_own(grpo: dict[str, Any], tmp_path: Path, outward: bool) -> None:
    """The weights that it samples from follow the trainer's, whose group store is on the address that it was told."""
    host = outward_address() if outward else "127.0.0.1"
    if host is None:
        pytest.skip("this machine has no address but loopback")
    grpo["rollouts"]["host"] = host
    with nodes(tmp_path, [grpo, grpo], host=host) as started:
        results = [node.wait(800) for node in started]
        processes = [child for node in started if node.process.is_running() for child in node.process.children()]

    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    assert processes == []
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert [(step["name"], step["node"]) for step in plan["steps"]] == [("rollouts", 1), ("trainer", 0)]
    assert plan["steps"][1]["env"]["VLLM_HOST_IP"] == host
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    differences = [row["sampling/sampling_logp_difference/max"] for row in rows if "loss" in row]
    assert len(differences) == 3
    assert max(differences) < 1e-4, "the server has the trainer's weights"
    assert re.search(r"rollout server ready after \d+ s at http://" + re.escape(host), results[0].err)
    assert "this is node 1: serving rollouts" in results[1].err
    assert (tmp_path / "run/logs/rollouts.log").exists()


@pytest.mark.timeout(120)
def test_an_address_that_the_server_s_node_has_not_ends_both_before_anything_starts(
    grpo: dict[str, Any], tmp_path: Path
) -> None:
    grpo["rollouts"]["host"] = "192.0.2.77"
    with nodes(tmp_path, [grpo, grpo]) as started:
        results = [node.wait(100) for node in started]

    for result in results:
        assert result.code == 2, result.err
        assert "rollouts.host 192.0.2.77 is not an address of node 1, which runs the rollout server" in result.err
    assert not (tmp_path / "run").exists()
