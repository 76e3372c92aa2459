"""`from: config`: what a model of random weights cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from ptcli.errors import Problem, RequestError
from ptcli.recipe.local_models import adapter_config, local_folder, read_model_config, resolve_model_path
from ptcli.recipe.model import ModelSpec, Recipe


def check_random_weights(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the models that are made from their config alone."""
    for section in ("model", "ref_model", "reward_model", "value_model", "teacher"):
        spec = getattr(recipe, section)
        if spec is not None and spec.from_ == "config":
            yield from _check_source(spec, section)
    if recipe.model.from_ == "config":
        yield from _check_server(recipe)


def _check_source(spec: ModelSpec, section: str) -> Iterator[Problem]:
    """An adapter has no architecture of its own; what to do with one is said beside weights. Only the policy's random
    weights are written down before the start (`ptcli.train.start`), from where they can be loaded quantised."""
    if spec.quantization and section != "model":
        message = f"`{section}.quantization` and `from: config` exclude each other"
        yield Problem(message, "leave one out", (section, "quantization"))
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
