"""Everything that a recipe names outside itself, looked up without importing user code, torch or transformers.

What is on the hub is not looked up: a recipe can be checked offline.
"""

from __future__ import annotations

from collections.abc import Iterator

from ptcli.data.head import read_head
from ptcli.data.transforms import row_keys
from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.recipe.adapter_folders import check_adapters
from ptcli.recipe.adapters import check_peft
from ptcli.recipe.code_references import check_callback, check_reward, check_timeouts
from ptcli.recipe.data_references import check_data
from ptcli.recipe.local_models import read_model_config, resolve_model_path
from ptcli.recipe.lora_targets import check_targets
from ptcli.recipe.model import DataEntry, Recipe
from ptcli.recipe.model_references import check_model
from ptcli.recipe.padding import check_padding
from ptcli.recipe.random_weights import check_random_weights
from ptcli.recipe.scorers import check_scorers
from ptcli.recipe.tokenizers import check_tokenizers
from ptcli.recipe.transform_references import check_allow, check_transforms, check_weights

__all__ = ["check_data_entries", "check_references", "read_model_config", "resolve_model_path"]


def check_references(recipe: Recipe) -> list[Problem]:
    """A problem for each file, folder, model, function or LoRA target that the recipe names and that is not there."""
    problems: list[Problem] = []
    for name in ("model", "ref_model", "reward_model", "value_model", "teacher"):
        spec = getattr(recipe, name)
        if spec is not None:
            problems += check_model(spec, (name,))
    problems += check_data_entries(recipe)
    passed = METHODS[recipe.method].reward_arguments
    for index, reward in enumerate(recipe.rewards):
        problems += check_reward(reward, ("rewards", index, "use"), passed)
    for index, callback in enumerate(recipe.callbacks):
        problems += check_callback(callback, ("callbacks", index, "use"))
    problems += [*check_tokenizers(recipe), *check_padding(recipe), *check_scorers(recipe)]
    problems += [*check_timeouts(recipe), *check_random_weights(recipe), *check_adapters(recipe), *check_peft(recipe)]
    return [*problems, *check_targets(recipe)]


def check_data_entries(recipe: Recipe) -> Iterator[Problem]:
    """A problem for each file, folder, shipped set, function, column or rule of `data` that is not there."""
    for key, entries in data_lists(recipe):
        for index, entry in enumerate(entries):
            place = (*key, index)
            problems = check_data(entry, (*place, "path"))
            yield from problems
            head = read_head(entry) if row_keys(entry) and not problems else None
            yield from check_transforms(entry, place, head)
        yield from check_weights(entries, key)
    yield from check_allow(recipe.data.allow)


def data_lists(recipe: Recipe) -> Iterator[tuple[KeyPath, list[DataEntry]]]:
    """The lists of entries in `data`, each with its key: for training, and for every evaluation set."""
    yield ("data", "train"), recipe.data.train
    groups = recipe.data.eval
    if isinstance(groups, list):
        yield ("data", "eval"), groups
    elif isinstance(groups, dict):
        yield from ((("data", "eval", name), entries) for name, entries in groups.items())
