"""The functions and classes that a recipe names: rewards and callbacks. Looked up in their source, not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.code import USE, NotFound, find_object, has_module, shipped_rewards
from ptcli.recipe.model import NO_PROGRESS_SECONDS, CallbackSpec, Recipe, RewardSpec
from ptcli.recipe.model_references import check_model_path
from ptcli.recipe.suggest import nearest


def check_reward(reward: RewardSpec, key: KeyPath, passed: Sequence[str]) -> list[Problem]:
    """Problems of one reward, whose function gets the arguments `passed` from the trainer."""
    if reward.use.startswith("builtin:") or ":" not in reward.use:
        return _check_reward_model(reward.use, key) or list(_check_not_a_function(reward, key))
    try:
        node = find_object(reward.use).node
    except NotFound as error:
        return [Problem(error.message, error.fix, key)]
    if isinstance(node, ast.Constant):
        return [Problem(f"{reward.use} is a constant, not a function", "", key)]
    if isinstance(node, ast.ClassDef):
        return _check_class(node, reward, key)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
        return _check_function(node, reward, key, passed)
    return []


def check_timeouts(recipe: Recipe) -> Iterator[Problem]:
    """A problem for each reward that may take longer than a run without progress is allowed to go on."""
    limit = recipe.guards.no_progress_seconds or NO_PROGRESS_SECONDS
    for index, reward in enumerate(recipe.rewards):
        if reward.timeout is not None and reward.timeout >= limit:
            message = (
                f"`rewards.{index}.timeout` is {reward.timeout:g} s, and a run without a step for {limit:g} s is ended"
            )
            fix = f"write a shorter timeout, or `guards: {{no_progress_seconds: {3 * reward.timeout:g}}}`"
            yield Problem(message, fix, ("rewards", index, "timeout"))


def _check_reward_model(use: str, key: KeyPath) -> list[Problem]:
    """A reward without a colon: a model, unless it is a function with a dot in the place of its colon."""
    module, dot, name = use.rpartition(".")
    if dot and "/" not in use and use.isascii() and has_module(use.split(".")[0]):
        return [Problem(f"{use} is neither a function nor a model", f"write `{module}:{name}`", key)]
    meant = nearest(use, shipped_rewards()) if use.isidentifier() else None
    if meant:
        return [Problem(f"TRL ships no reward {use}", f"did you mean `{meant}`?", key)]
    return check_model_path(use, key, tokenizer=True)


def _check_not_a_function(reward: RewardSpec, key: KeyPath) -> Iterator[Problem]:
    """What only a function has, given to a reward that is a model; nothing would read it."""
    given = {"args": bool(reward.args), "timeout": reward.timeout is not None}
    for name in (name for name, is_given in given.items() if is_given):
        message = f"`{name}` is for a reward function, and {reward.use} is the path of a reward model"
        yield Problem(message, "leave it out; a function is `file.py:name` or `package.module:name`", (*key[:-1], name))


def _check_class(node: ast.ClassDef, reward: RewardSpec, key: KeyPath) -> list[Problem]:
    """A class is made with the recipe's `args`, and its instance is called."""
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    alone = not node.bases and not node.keywords and not node.decorator_list
    if alone and "__call__" not in methods:
        message = f"{reward.use} is a class whose instances cannot be called"
        return [Problem(message, "give it a method `__call__(self, completions, **kwargs)`, or name a function", key)]
    if "__init__" in methods:
        return _check_making(methods["__init__"], reward, key, bound=1)
    return []


def _check_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, reward: RewardSpec, key: KeyPath, passed: Sequence[str]
) -> list[Problem]:
    """TRL calls a reward with keywords only; what the function cannot take ends the run at its first step."""
    arguments = node.args
    by_position = [argument.arg for argument in arguments.posonlyargs]
    if by_position and ("completions" in by_position or not reward.args):
        message = f"{reward.use} takes `{by_position[0]}` by position only, and TRL passes keywords"
        return [Problem(message, "remove the `/` from its signature", key)]
    if arguments.kwarg:
        return []
    taken = _names(arguments)
    if "completions" not in taken:
        return _check_factory(node, reward, key)
    unknown = [name for name in reward.args if name not in taken]
    if unknown:
        return [Problem(f"{reward.use} takes no argument `{unknown[0]}`", "", (*key[:-1], "args", unknown[0]))]
    missing = [name for name in passed if name not in taken]
    if not missing:
        return []
    message = f"{reward.use} does not take `{missing[0]}`, which TRL passes to every reward function"
    return [Problem(message, "add `**kwargs` to its signature", key)]


def _check_factory(node: ast.FunctionDef | ast.AsyncFunctionDef, reward: RewardSpec, key: KeyPath) -> list[Problem]:
    """What has no place for `completions` is no reward: with `args`, or without a need of any, it makes one."""
    if _required(node.args) and not reward.args:
        message = f"{reward.use} does not take `completions`, which TRL passes to every reward function"
        fix = f"add `completions` and `**kwargs` to its signature, or `args: {{{_required(node.args)[0]}: ...}}` here"
        return [Problem(message, f"{fix} if it makes a reward function", key)]
    return _check_making(node, reward, key)


def _check_making(
    node: ast.FunctionDef | ast.AsyncFunctionDef, reward: RewardSpec, key: KeyPath, bound: int = 0
) -> list[Problem]:
    """Whether a factory can be called with the recipe's `args`. `bound`: leading parameters that Python fills."""
    taken = _names(node.args)[bound:]
    unknown = [] if node.args.kwarg else [name for name in reward.args if name not in taken]
    missing = [name for name in _required(node.args)[bound:] if name not in reward.args]
    problems = []
    if unknown:
        near = nearest(unknown[0], taken)
        fix = f"did you mean `{near}`?" if near else f"it takes {', '.join(taken) or 'none'}"
        place = (*key[:-1], "args", unknown[0])
        problems.append(Problem(f"{reward.use} takes no argument `{unknown[0]}`", fix, place))
    if missing:
        message = f"{reward.use} needs the argument `{missing[0]}`"
        problems.append(Problem(message, f"write `args: {{{missing[0]}: ...}}`", key))
    return problems


def _names(arguments: ast.arguments) -> list[str]:
    """What can be passed by keyword."""
    return [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]


def _required(arguments: ast.arguments) -> list[str]:
    """The parameters without a default."""
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    keywords = [
        each.arg for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default
    ]
    return positional[: len(positional) - len(arguments.defaults)] + keywords


def check_callback(callback: CallbackSpec, key: KeyPath) -> list[Problem]:
    if not USE.fullmatch(callback.use):
        return [Problem(f"{callback.use!r} does not name a class", "write `file.py:Class`", key)]
    try:
        node = find_object(callback.use).node
    except NotFound as error:
        return [Problem(error.message, error.fix, key)]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Constant):
        return [Problem(f"{callback.use} is not a class", "name a subclass of transformers.TrainerCallback", key)]
    return []
