"""Two processes train as one does; every other strategy, adapter and method: tests/long/test_strategies.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.strategies import ONE, STRATEGIES, assert_moved, assert_same_training, recipe, train


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, ptcli_process: Callable) -> Path:
    """The run of one process."""
    run = train(recipe("sft", ONE), ONE, tmp_path_factory.mktemp("one"), ptcli_process)
    assert_moved(run)
    return run


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_two_processes_train_as_one_does(name: str, one: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = STRATEGIES[name]
    assert_same_training(train(recipe("sft", strategy), strategy, tmp_path, ptcli_process), one)
