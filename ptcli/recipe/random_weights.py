"""`from: config`: what a model of random weights cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from ptcli.errors import Problem, RequestError
from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.local_models import adapter_config, local_folder, read_model_config, resolve_model_path
from ptcli.recipe.model import ModelSpec, Recipe


def check_random_weights(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the models that are made from their config alone."""
    for section in ("model", "ref_model", "reward_model", "value_model", "teacher"):
        spec = getattr(recipe, section)
        if spec is not None and spec.from_ == "config":
            yield from _check_source(spec, section)
    if recipe.model.from_ == "config":
        yield from _check_reference(recipe)
        yield from _check_server(recipe)


def _check_source(spec: ModelSpec, section: str) -> Iterator[Problem]:
    """An adapter has no architecture of its own; what to do with one is said beside weights."""
    if spec.adapter is not None:
        yield Problem(f"`{section}.adapter` and `from: config` exclude each other", "leave one out", (section, "from"))
        return
    try:
        folder = local_folder(resolve_model_path(spec.path), spec.revision)
    except RequestError:
        return
    if folder and adapter_config(folder):
        message = f"{spec.path} is an adapter, which has no config to make a model from"
        yield Problem(message, "name the base model", (section, "path"))


def _check_reference(recipe: Recipe) -> Iterator[Problem]:
    """Some trainers take no reference: where one is wanted, they load it from the model's path, weights and all."""
    row = METHODS[recipe.method]
    known = fields(row.config)
    loads = "ref_model" not in row.sections and {"beta", "sync_ref_model"} <= known.keys() and recipe.peft is None
    if loads and recipe.training.get("beta", known["beta"].default):
        key = ("training", "beta") if "beta" in recipe.training else ("model", "from")
        message = f"with beta other than 0 the trainer of {recipe.method} loads its reference from `model.path`"
        yield Problem(
            f"{message}, and not the random weights of `from: config`", "set beta: 0, or train an adapter", key
        )


def _check_server(recipe: Recipe) -> Iterator[Problem]:
    """The server makes its model from the same config, but does not see what `init_kwargs` changes in it."""
    if not recipe.rollouts.model_fields_set or recipe.rollouts.backend == "transformers":
        return
    config = read_model_config(recipe.model.path, recipe.model.revision) or {}
    changed = sorted(recipe.model.init_kwargs.keys() & config.keys())
    if changed:
        message = (
            f"`model.init_kwargs` changes the config ({', '.join(changed)}), which the rollout server does not see"
        )
        yield Problem(message, "write a folder with the changed config.json", ("model", "init_kwargs"))
