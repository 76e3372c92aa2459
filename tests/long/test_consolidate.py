"""Checkpoints of DeepSpeed's ZeRO, made by two processes, put together by `ptcli merge`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sharded_runs import assert_same, consolidate, make_run

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("kind", "dtype"), [("zero2", "bfloat16"), ("zero3", "bfloat16"), ("zero3", "float32")])
def test_zero(kind: str, dtype: str, tmp_path: Path) -> None:
    run, trained = make_run(tmp_path, kind, dtype)
    assert_same(consolidate(f"{run}@1", tmp_path / "out"), trained)
