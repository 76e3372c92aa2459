"""RLOO with the vLLM server: it logs no metric that shows whether the server follows, so the server is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rollouts_server import rollout_server
from tests.server_runs import assert_serves_what_was_trained, train_with


@pytest.mark.timeout(600)
def test_rloo(tmp_path: Path, ptcli_process: Callable) -> None:
    with rollout_server(tmp_path / "rollouts.log") as server:
        run = train_with(server, "rloo", tmp_path, ptcli_process)
        assert_serves_what_was_trained(server, run)
