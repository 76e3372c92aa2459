"""The methods that use the vLLM server and are not seen in the quick tests: one server, one trainer after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptcli.plan.model import Server
from tests.rollouts_server import rollout_server
from tests.server_runs import assert_serves_what_was_trained, train_with


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rollout_server(tmp_path_factory.mktemp("server") / "rollouts.log") as running:
        yield running


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["online_dpo", "distillation", "minillm"])
def test_the_server_has_the_trained_weights(
    server: Server, tmp_path: Path, ptcli_process: Callable, method: str
) -> None:
    run = train_with(server, method, tmp_path, ptcli_process)
    assert_serves_what_was_trained(server, run)
