"""The adapter, put on a model without weights."""

from __future__ import annotations

from collections.abc import Iterator

from ptcli.recipe.model import Recipe
from ptcli.train.checks import Finding


def check_adapter(recipe: Recipe) -> Iterator[Finding]:
    """What is wrong with the recipe's adapter."""
    yield from ()
