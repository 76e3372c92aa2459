"""Two nodes on this machine, each a real `ptcli train`; what ends them before their time: tests/long/test_nodes.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.node_runs import nodes
from tests.strategies import STRATEGIES, assert_same_training, assert_split, recipe

DDP = STRATEGIES["ddp"]


@pytest.mark.timeout(300)
def test_two_nodes_train_as_one_process_does(one: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    described = recipe("sft", DDP)
    described |= {"launch": {"device": "cpu", "processes": 1, "nodes": 2}, "output_dir": str(run)}
    with nodes(tmp_path, [described, described], "--json") as (first, other):
        results = [node.wait() for node in (first, other)]

    assert [result.code for result in results] == [0, 0], results
    assert json.loads(results[0].out)["step"] == json.loads((run / "status.json").read_text())["step"] == 4
    assert_split(run, DDP)
    assert_same_training(run, one)
    logs = {path.name for path in (run / "logs").iterdir()}
    assert {"trainer.log", "trainer.1.log"} <= logs, "each node has a log of its own"
    assert [file.name for file in tmp_path.glob(".ptcli-*")] == []


def test_another_recipe_on_the_second_node_ends_both_before_anything_starts(tmp_path: Path) -> None:
    first = recipe("sft", DDP)
    first |= {"launch": {"device": "cpu", "nodes": 2}, "output_dir": str(tmp_path / "run")}
    other = {**first, "training": {**first["training"], "learning_rate": 1e-3, "bf16": True}}
    with nodes(tmp_path, [first, other]) as started:
        results = [node.wait(60) for node in started]

    for result in results:
        assert result.code == 2, result.err
        assert "node 1 has another recipe than node 0: training.learning_rate is 0.003 on node 0, 0.001 on node 1" in (
            result.err
        )
        assert "training.bf16 is false on node 0, true on node 1" in result.err
        assert "start every node with the same recipe and overrides" in result.err
    assert not (tmp_path / "run").exists()
