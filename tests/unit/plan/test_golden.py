"""Plans to the letter: each launch config and each family recipe on 1, 8 and 2 x 8 GPUs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ptcli.plan.accelerate import shipped_names
from tests.unit.plan import golden


@pytest.fixture(scope="module")
def planned() -> Mapping[str, str]:
    return golden.texts()


@pytest.mark.parametrize("name", golden.NAMES)
def test_plans_are_the_golden_ones(name: str, planned: Mapping[str, str]) -> None:
    """`python -m tests.unit.plan.golden --write` writes them again: read what git then shows."""
    written = (golden.FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert planned[name].splitlines() == written.splitlines()


def test_every_config_and_every_recipe_is_there(planned: Mapping[str, str]) -> None:
    assert {path.stem for path in golden.FOLDER.iterdir()} == set(planned)
    titles = [line for text in planned.values() for line in text.splitlines() if line.startswith("## ")]
    recipes = sum(len(list((golden.ROOT / "recipes" / family).glob("*.yaml"))) for family in golden.FAMILIES)
    assert len(titles) == len(set(titles)) == len(golden.MACHINES) * (len(shipped_names()) + 1 + recipes)
    planned_for = [line for text in planned.values() for line in text.splitlines() if line.startswith("batch: ")]
    assert len(planned_for) > len(titles) / 2, "most of them can run"
