"""Every way of splitting a training over processes trains as one process does, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ptcli.plan.model import Server
from tests.rollouts_server import rollout_server
from tests.server_runs import assert_serves_what_was_trained
from tests.strategies import (
    ONE,
    STRATEGIES,
    Strategy,
    assert_moved,
    assert_same_training,
    recipe,
    train,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SPLIT = [name for name in STRATEGIES if name != ONE.accelerate]
CASES = [(name, "full") for name in SPLIT] + [("zero3", "lora"), ("zero3", "qlora"), ("fsdp2", "lora")]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, ptcli_process: Callable) -> Callable[[str, str], Path]:
    """The run of one process, of a method and an adapter."""

    @cache
    def run(method: str, adapter: str) -> Path:
        done = train(recipe(method, ONE, adapter), ONE, tmp_path_factory.mktemp("one"), ptcli_process)
        assert_moved(done)
        return done

    return run


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_trains_as_one_process_does(
    method: str, name: str, adapter: str, one: Callable[[str, str], Path], tmp_path: Path, ptcli_process: Callable
) -> None:
    strategy = STRATEGIES[name]
    run = train(recipe(method, strategy, adapter), strategy, tmp_path, ptcli_process)
    assert_same_training(run, one(method, adapter))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A vLLM server, for one trainer after another: each sends it its weights before the first completion."""
    with rollout_server(tmp_path_factory.mktemp("server") / "rollouts.log") as running:
        yield running


@pytest.fixture(scope="module")
def recorded(server: Server, tmp_path_factory: pytest.TempPathFactory, ptcli_process: Callable) -> tuple[Path, Path]:
    """GRPO on one process: its run, and what the server answered it."""
    folder = tmp_path_factory.mktemp("recorded")
    answers = folder / "answers.jsonl"
    run = train(grpo(ONE, server, callback("Record", answers)), ONE, folder, ptcli_process)
    assert_moved(run)
    assert answers.read_text().count("\n") == 2, "two steps share a generation batch"
    return run, answers


@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
def test_grpo_follows_the_server(name: str, server: Server, tmp_path: Path, ptcli_process: Callable) -> None:
    """The server's own probabilities are the trainer's at every step, and those of the saved model at the end."""
    strategy = STRATEGIES[name]
    run = train(grpo(strategy, server), strategy, tmp_path, ptcli_process)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    generated = [row for row in rows if "sampling/sampling_logp_difference/max" in row]
    assert generated
    assert max(row["sampling/sampling_logp_difference/max"] for row in generated) < 1e-3
    assert_serves_what_was_trained(server, run)


@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
def test_grpo_trains_as_one_process_does_on_the_same_completions(
    name: str, server: Server, recorded: tuple[Path, Path], tmp_path: Path, ptcli_process: Callable
) -> None:
    strategy, (one, answers) = STRATEGIES[name], recorded
    run = train(grpo(strategy, server, callback("Replay", answers)), strategy, tmp_path, ptcli_process)
    assert_same_training(run, one)
    assert_serves_what_was_trained(server, run)


def grpo(strategy: Strategy, server: Server, *callbacks: Mapping[str, Any]) -> dict[str, Any]:
    described = recipe("grpo", strategy)
    return described | {
        "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
        "rollouts": {"url": server.url, "max_model_len": server.max_model_len},
        "callbacks": [*described["callbacks"], *callbacks],
    }


def callback(name: str, answers: Path) -> dict[str, Any]:
    return {"use": f"tests.trainer_callbacks:{name}", "args": {"path": str(answers)}}
