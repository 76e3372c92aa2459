"""Rows that were turned into tokens before the launch: the cases that tests/integration leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_prepared import (
    CASES,
    USUAL,
    own_caches,  # noqa: F401
    the_same_as_the_trainer_makes,
)

pytestmark = pytest.mark.long


@pytest.mark.parametrize("case", [case for case in CASES if case not in USUAL])
def test_the_same_as_the_trainer_makes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    the_same_as_the_trainer_makes(case, tmp_path, monkeypatch)
