"""`ptcli train recipes/<method>.yaml --smoke` for the methods that tests/integration/test_methods.py leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smoke_runs import FURTHER, smoke

pytestmark = pytest.mark.long


@pytest.mark.parametrize("method", FURTHER)
def test_smoke(method: str, tmp_path: Path, ptcli_process: Callable) -> None:
    smoke(method, tmp_path / "run", ptcli_process)
