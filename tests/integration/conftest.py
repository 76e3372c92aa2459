"""Runs that several modules compare theirs with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.strategies import ONE, assert_moved, recipe, train


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, ptcli_process: Callable) -> Path:
    """SFT over one process."""
    run = train(recipe("sft", ONE), ONE, tmp_path_factory.mktemp("one"), ptcli_process)
    assert_moved(run)
    return run
