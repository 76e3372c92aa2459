"""What a trainer argument will be: what the worker is going to pass, or else the TRL config's own default."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ptcli.errors import KeyPath
from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import Recipe
from ptcli.train.config import training_arguments


def argument(recipe: Recipe, name: str, fallback: Any = None) -> Any:
    """The value that the TRL config will have under `name`; `fallback` when it has no such field, or None there."""
    arguments = training_arguments(recipe)
    if name in arguments:
        value = arguments[name]
    else:
        spec = fields(METHODS[recipe.method].config).get(name)
        value = spec.default if spec else None
    return fallback if value is None else value


def argument_key(recipe: Recipe, names: Iterable[str]) -> KeyPath:
    """The place in the recipe to blame: the first of `names` that it sets, else the section."""
    return next((("training", name) for name in names if recipe.training.get(name) is not None), ("training",))


def computes_in(recipe: Recipe) -> str:
    """The mixed precision of the run as accelerate spells it: `bf16`, `fp16` or `no`. TRL's default is bf16.

    `launch.device` must be decided: on a CPU the default is `no`.
    """
    if argument(recipe, "fp16", False):
        return "fp16"
    return "bf16" if argument(recipe, "bf16", True) else "no"
