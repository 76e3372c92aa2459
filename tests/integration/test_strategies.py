"""Two processes train as one does; every other strategy, adapter and method: tests/long/test_strategies.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.strategies import STRATEGIES, assert_same_training, recipe, train


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_two_processes_train_as_one_does(name: str, one: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = STRATEGIES[name]
    assert_same_training(train(recipe("sft", strategy), strategy, tmp_path, ptcli_process), one)
