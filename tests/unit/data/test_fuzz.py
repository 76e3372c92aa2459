"""Whatever is in rows and files: the rules and the reading say what is wrong, and nothing raises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ptcli.data.check import check
from ptcli.data.context import context_of
from ptcli.data.model import Context, Finding
from ptcli.data.request import DataRequest, accept_data
from ptcli.data.rules import RULES, Checker, conclude
from tests.data_cases import fuzz

RANDOM_ROWS = 200
CHANGED_ROWS = 300
FILES = 40
MOST_LINES = 5000
"""More than any of the files has."""

quick = settings(max_examples=RANDOM_ROWS, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@cache
def context(method: str) -> Context:
    """What is known of a file of rows without a recipe."""
    recipe = accept_data(DataRequest(data="builtin:arithmetic", method=method)).recipe
    return context_of(recipe, "train", tokenizer=False)


def findings(rows: list[Any], method: str) -> list[Finding]:
    known = context(method)
    checker = Checker(known)
    checker.rows(rows)
    return conclude(checker.profile, known)


def assert_sound(found: Sequence[Finding], rows: int) -> None:
    """Findings name known rules and rows that exist, and can be written as JSON."""
    for finding in found:
        assert finding.rule in RULES
        assert finding.severity in ("error", "warning")
        assert finding.message
        assert all(0 <= row < rows for row in finding.rows)
        assert list(finding.rows) == sorted(set(finding.rows))
        json.dumps([finding.message, finding.fix, finding.count, finding.rows]).encode()


@quick
@given(rows=fuzz.st.lists(fuzz.rows, max_size=4), method=fuzz.methods)
def test_random_rows(rows: list[Any], method: str) -> None:
    assert_sound(findings(rows, method), len(rows))


def test_changed_rows() -> None:
    for random in fuzz.numbered(CHANGED_ROWS):
        rows = fuzz.changed(random)
        for method in random.sample(fuzz.METHOD_NAMES, 3):
            assert_sound(findings(rows, method), len(rows))


def test_rows_of_any_method_in_all_methods() -> None:
    for method in fuzz.METHOD_NAMES:
        assert_sound(findings(fuzz.GOOD, method), len(fuzz.GOOD))


def check_file(path: Path, method: str) -> None:
    checked = check(accept_data(DataRequest(data=str(path), method=method)).recipe)
    assert_sound(checked.report.findings, MOST_LINES)
    for finding in checked.report.findings:
        for row in finding.rows:
            checked.place(finding, row)


@pytest.mark.parametrize("seed", range(FILES))
def test_files(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    ending, content = fuzz.file_bytes(random)
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content)
    check_file(path, random.choice(fuzz.METHOD_NAMES))
