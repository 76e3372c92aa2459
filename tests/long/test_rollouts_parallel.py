"""Several engines, several trainer processes: minutes on two cores."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ptcli.rollouts import client
from tests.rollouts_server import (
    environment,
    free_port,
    grpo_trainer,
    largest_difference,
    rollout_server,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SAME = 1e-4
ROOT = Path(__file__).parents[2]


def tokens_by_engine(server) -> dict[str, float]:
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    found = re.findall(r'^vllm:generation_tokens_total\{.*?engine="(\d+)".*?\} (\S+)$', metrics, re.MULTILINE)
    return {engine: float(count) for engine, count in found}


def test_two_engines_generate_and_both_get_the_weights(tmp_path):
    client.install("cpu")
    with rollout_server(tmp_path / "rollouts.log", data_parallel_size=2) as server:
        trainer = grpo_trainer(server, tmp_path / "run", per_device_train_batch_size=32)
        before = tokens_by_engine(server)
        trainer.train()
        after = tokens_by_engine(server)
        assert sorted(after) == ["0", "1"]
        assert all(after[engine] - before[engine] > 100 for engine in after)

        logged = [row for row in trainer.state.log_history if "loss" in row]
        assert max(row["sampling/sampling_logp_difference/max"] for row in logged) < 1e-3
        assert largest_difference(server, trainer) > 100 * SAME
        client.sync_now(trainer)
        # Requests go to the engines in turn; enough of them reach both.
        assert max(largest_difference(server, trainer) for _ in range(4)) < SAME


TWO_PROCESSES = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_port: 0
mixed_precision: 'no'
rdzv_backend: static
main_training_function: main
"""


def test_two_trainer_processes(tmp_path):
    """Under torchrun's agent (TORCHELASTIC_USE_AGENT_STORE), where a rendezvous of torch's own would hang."""
    config = tmp_path / "two.yaml"
    config.write_text(TWO_PROCESSES)
    with rollout_server(tmp_path / "rollouts.log") as server:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
        worker = [Path(__file__).with_name("two_process_grpo.py"), server.url, free_port(), tmp_path]
        done = subprocess.run(
            [*map(str, launch), *map(str, worker)],
            cwd=ROOT,
            env=environment(server) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-5000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["world_size"] == 2
    assert result["steps"] == 3
    assert result["logp_difference"] < 1e-3
    assert result["before_last_sync"] > 100 * SAME
    assert result["after_last_sync"] < SAME
