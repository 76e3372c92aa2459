"""20,000 inputs that nobody would write go through reading, rules and tokens: always a report, never an exception."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ptcli.data.check import check
from ptcli.data.context import context_of
from ptcli.data.model import Finding
from ptcli.data.request import DataRequest, accept_data
from ptcli.data.rules import RULES, Checker, conclude
from ptcli.data.tokens import TokenChecker, conclude_tokens, limits_of, load_tokenizer, render_show, summarize
from ptcli.recipe.model import Recipe
from tests.data_cases import fuzz
from tests.data_cases.tokenizer import write_tokenizer

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

VARIANTS = ("", "qwen3", "gemma", "bos", "lenient", "think")
RANDOM_ROWS = 4000
CHANGED_ROWS = 14_000
FILES = 2000
MOST_LINES = 5000
"""More than any of the files has."""

thorough = settings(max_examples=RANDOM_ROWS, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {variant: write_tokenizer(folder / (variant or "base"), variant) for variant in VARIANTS}


@cache
def recipe_of(method: str, model: Path | None = None) -> Recipe:
    return accept_data(DataRequest(data="builtin:arithmetic", method=method, model=model and str(model))).recipe


@cache
def tokenizer_of(model: Path) -> Any:
    return load_tokenizer(recipe_of("sft", model), hide_torch=False)


def examine(rows: list[Any], method: str, model: Path) -> None:
    """Rules and tokens on rows, and what is shown of each."""
    recipe, tokenizer = recipe_of(method, model), tokenizer_of(model)
    context = context_of(recipe, "train", tokenizer=True)
    checker = Checker(context)
    checker.rows(rows)
    tokens = TokenChecker(context, tokenizer, limits_of(recipe))
    tokens.add(list(enumerate(rows)))
    assert_sound([*conclude(checker.profile, context), *conclude_tokens(tokens.tally, context)], len(rows))
    summarize(tokens.tally, context)
    pickle.dumps((checker.profile, tokens.tally))
    for row in rows:
        encoded = tokens.encode(row)
        if encoded is not None:
            render_show(encoded, tokenizer, colour=False).encode()


def assert_sound(findings: Sequence[Finding], rows: int) -> None:
    for finding in findings:
        assert finding.rule in RULES
        assert all(0 <= row < rows for row in finding.rows)
        (finding.message + finding.fix).encode()


@thorough
@given(rows=fuzz.st.lists(fuzz.rows, max_size=4), method=fuzz.methods, variant=fuzz.st.sampled_from(VARIANTS))
def test_random_rows(tokenizers: dict[str, Path], rows: list[Any], method: str, variant: str) -> None:
    examine(rows, method, tokenizers[variant])


def test_changed_rows(tokenizers: dict[str, Path]) -> None:
    for random in fuzz.numbered(CHANGED_ROWS, 1_000_000):
        examine(fuzz.changed(random), random.choice(fuzz.METHOD_NAMES), tokenizers[random.choice(VARIANTS)])


def test_files(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    for seed in range(FILES):
        random = Random(2_000_000 + seed)
        ending, content = fuzz.file_bytes(random)
        path = tmp_path / f"{seed}{ending}"
        path.write_bytes(content)
        model = str(tokenizers[random.choice(VARIANTS)]) if seed % 2 else None
        request = DataRequest(data=str(path), method=random.choice(fuzz.METHOD_NAMES), model=model)
        checked = check(accept_data(request).recipe)
        assert_sound(checked.report.findings, MOST_LINES)
        for finding in checked.report.findings:
            for row in finding.rows:
                checked.place(finding, row)
        path.unlink()
