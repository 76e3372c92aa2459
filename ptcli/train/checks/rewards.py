"""Rewards, called on real rows before the run."""

from __future__ import annotations

from collections.abc import Iterator

from ptcli.recipe.model import Recipe
from ptcli.train.checks import Finding


def check_rewards(recipe: Recipe) -> Iterator[Finding]:
    """What is wrong with the recipe's reward functions."""
    yield from ()
