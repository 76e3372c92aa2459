"""The shipped recipes as they are, not shrunk, against the pinned TRL."""

from functools import cache
from pathlib import Path

import pytest

from ptcli.methods import METHODS
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.train.config import training_arguments
from ptcli.train.objects import import_class
from ptcli.train.processors import load_processor

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "base")


def _id(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


@cache
def _load(path: Path) -> Recipe:
    recipe = load_recipe(path).recipe
    assert recipe is not None
    return recipe


@pytest.mark.parametrize("path", RECIPES, ids=_id)
def test_trl_takes_the_arguments(path: Path) -> None:
    recipe = _load(path)
    arguments = training_arguments(recipe) | {"use_cpu": True}
    config = import_class(METHODS[recipe.method].config)(**arguments)
    given = {name: getattr(config, name) for name in recipe.training}
    assert given == {name: type(given[name])(value) for name, value in recipe.training.items()}


TURN_ENDS = {
    "chatml.jinja": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
}
"""What ends a turn in the chat templates of the recipes; a template that is not here uses the tokenizer's own."""

CHAT = [
    {"role": "user", "content": "Which colour has the sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "And grass?"},
    {"role": "assistant", "content": "Green."},
]


def _templates() -> dict[tuple[str, str | None], Path]:
    """A recipe for each template and end-of-sequence token of those that train the assistant's words only."""
    marked = [path for path in RECIPES if _load(path).training.get("assistant_only_loss")]
    models = {path: _load(path).model for path in marked}
    unnamed = [path for path, model in models.items() if model.chat_template is None]
    assert unnamed == [], "a hub model's own template is not known here: name one of TRL's"
    return {(str(model.chat_template), model.eos_token): path for path, model in models.items()}


@pytest.mark.parametrize("path", _templates().values(), ids=_id)
def test_what_the_assistant_says_is_marked(path: Path) -> None:
    """TRL knows a template by its exact text. The turn's end is trained, and is where generation stops."""
    from trl.chat_template_utils import get_training_chat_template

    model = _load(path).model
    assert model.chat_template
    tokenizer = load_processor(ModelSpec(path="builtin:tiny", chat_template=model.chat_template), generates=False)
    end = TURN_ENDS.get(Path(model.chat_template).name, tokenizer.eos_token)
    rendered = tokenizer.apply_chat_template(
        CHAT,
        chat_template=get_training_chat_template(tokenizer),  # None: the tokenizer's own will do
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    words = [
        token for token, trained in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if trained
    ]
    said = "".join(tokenizer.decode(words).split())
    assert said.removeprefix("<think></think>").replace("<think></think>", "") == f"Blue.{end}Green.{end}"
    assert model.eos_token in (None, end)
