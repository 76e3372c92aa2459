"""What the rules know of a run besides its rows, from the recipe alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.data.model import Context, RewardNeeds
from ptcli.methods import METHODS, Method
from ptcli.plan.batch import batch_of
from ptcli.recipe.catalogue import fields
from ptcli.recipe.code import USE, NotFound, find_object, shipped_rewards
from ptcli.recipe.local_models import read_model_config
from ptcli.recipe.model import DataEntry, LaunchSpec, Recipe, RewardSpec
from ptcli.recipe.tokenizers import tokenizer_folder
from ptcli.train.config import training_arguments

_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_PROMPTS = "prompts_per_generation_batch"
_ALWAYS_PASSED = frozenset({"prompts", "completions", "completion_ids", "environments", "self"})
"""Parameters of a reward that never come from a column."""


def context_of(recipe: Recipe, split: str, *, tokenizer: bool) -> Context:
    """The context of one split of a recipe: `train`, `eval` or `eval.NAME`."""
    method = METHODS[recipe.method]
    world = _world(recipe.launch)
    return Context(
        method=method,
        arguments=_arguments(recipe, method),
        split=split,
        world=world,
        prompts_per_generation=batch_of(recipe, world).sizes.get(_PROMPTS),
        rewards=tuple(needs for reward in recipe.rewards if (needs := reward_needs(reward, method))),
        tokenizer=tokenizer,
        vision=_takes_images(recipe),
        shuffled=all(entry.shuffle is not False for entry in dict(splits_of(recipe))[split]),
        has_eval=recipe.data.eval is not None,
    )


def splits_of(recipe: Recipe) -> Iterator[tuple[str, list[DataEntry]]]:
    """The splits that have entries of their own: `train`, then `eval` or every `eval.NAME`."""
    yield "train", recipe.data.train
    evaluation = recipe.data.eval
    if isinstance(evaluation, list):
        yield "eval", evaluation
    elif isinstance(evaluation, Mapping):
        for name, entries in evaluation.items():
            yield f"eval.{name}", entries


def reward_needs(reward: RewardSpec, method: Method) -> RewardNeeds | None:
    """What a reward function asks for by name, read from its source; None for a reward model, and where only running
    the code would tell."""
    use = f"trl.rewards:{reward.use}" if reward.use in shipped_rewards() else reward.use
    if not USE.fullmatch(use):
        return None
    try:
        node = find_object(use).node
    except NotFound:
        return None
    arguments = _called(node)
    if arguments is None:
        return None
    known = _ALWAYS_PASSED | set(method.reward_arguments) | set(reward.args)
    named, optional = _parameters(arguments)
    asked = tuple(name for name in named if name not in known)
    return RewardNeeds(reward.use, tuple(name for name in asked if name not in optional), asked)


def _called(node: ast.AST | None) -> ast.arguments | None:
    """The parameters of what TRL calls: a function, an instance's `__call__`, or the function that a factory makes."""
    if isinstance(node, ast.ClassDef):
        calls = [each for each in node.body if _is_function(each) and each.name == "__call__"]  # type: ignore[attr-defined]
        return calls[0].args if calls else None  # type: ignore[attr-defined]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    if "completions" in _parameters(node.args)[0]:
        return node.args
    inner = (each.args for each in ast.walk(node) if each is not node and _is_function(each))  # type: ignore[attr-defined]
    return next((arguments for arguments in inner if "completions" in _parameters(arguments)[0]), None)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _parameters(arguments: ast.arguments) -> tuple[list[str], set[str]]:
    """All named parameters, and those of them that have a default."""
    positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    optional = set(positional[len(positional) - len(arguments.defaults) :]) if arguments.defaults else set()
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    optional |= {each.arg for each, default in keywords if default is not None}
    return positional + [each.arg for each in arguments.kwonlyargs], optional


def _arguments(recipe: Recipe, method: Method) -> dict[str, Any]:
    defaults = {name: spec.default for name, spec in fields(method.config).items()}
    return defaults | training_arguments(recipe)


def _world(launch: LaunchSpec) -> int:
    """Trainer processes as far as the recipe says; one where only the machine would tell."""
    gpus = len(launch.gpus) if isinstance(launch.gpus, list) else launch.gpus
    return max(launch.nodes * ((gpus if launch.device != "cpu" else None) or launch.processes or 1), 1)


def _takes_images(recipe: Recipe) -> bool | None:
    """By the model's config; a tokenizer that lies there without a processor is that of a text model, too."""
    config = read_model_config(recipe.model.path, recipe.model.revision)
    if config is not None:
        return "vision_config" in config
    folder = tokenizer_folder(recipe.model)
    return None if folder is None else any((folder / name).exists() for name in _PROCESSORS)
