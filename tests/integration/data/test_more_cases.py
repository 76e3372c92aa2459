"""Many data sets, each with the verdict that it must get."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_cases import CASES
from tests.data_cases.case import Case
from tests.data_cases.runner import disagreement, report_on


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_verdict(case: Case, folder: Path) -> None:
    assert not disagreement(case, report_on(case, folder).findings)


def test_names_are_different() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) > 600
