"""The shipped recipes as they are, not shrunk, against the pinned TRL."""

from pathlib import Path

import pytest

from ptcli.methods import METHODS
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.train.config import training_arguments
from ptcli.train.objects import import_class
from ptcli.train.processors import load_processor

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def _load(path: Path) -> Recipe:
    recipe = load_recipe(path).recipe
    assert recipe is not None
    return recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_trl_takes_the_arguments(path: Path) -> None:
    recipe = _load(path)
    arguments = training_arguments(recipe) | {"use_cpu": True}
    config = import_class(METHODS[recipe.method].config)(**arguments)
    given = {name: getattr(config, name) for name in recipe.training}
    assert given == {name: type(given[name])(value) for name, value in recipe.training.items()}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_trl_can_mark_what_the_assistant_says(path: Path) -> None:
    """TRL knows a template by its exact text, and refuses `assistant_only_loss` with any other."""
    from trl.chat_template_utils import get_training_chat_template

    recipe = _load(path)
    if recipe.training.get("assistant_only_loss"):
        assert recipe.model.chat_template, "a hub model's own template is not known here: name one of TRL's"
        tokenizer = load_processor(
            ModelSpec(path="builtin:tiny", chat_template=recipe.model.chat_template), generates=False
        )
        assert "generation %}" in (get_training_chat_template(tokenizer) or tokenizer.chat_template)
