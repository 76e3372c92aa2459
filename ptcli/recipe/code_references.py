"""The functions and classes that a recipe names: rewards and callbacks. Looked up in their source, not imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.code import USE, NotFound, find_module, find_object, has_module
from ptcli.recipe.model import CallbackSpec, RewardSpec
from ptcli.recipe.model_references import check_model_path


def check_reward(reward: RewardSpec, key: KeyPath, passed: Sequence[str]) -> list[Problem]:
    """Problems of one reward, whose function gets the arguments `passed` from the trainer."""
    if reward.use.startswith("builtin:") or ":" not in reward.use:
        return _check_reward_model(reward.use, key)
    try:
        node = find_object(reward.use).node
    except NotFound as error:
        return [Problem(error.message, error.fix, key)]
    if isinstance(node, ast.ClassDef | ast.Constant):
        what = "a class" if isinstance(node, ast.ClassDef) else "a constant"
        return [Problem(f"{reward.use} is {what}, not a function", "", key)]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
        return _check_signature(node, reward, key, passed)
    return []


def _check_reward_model(use: str, key: KeyPath) -> list[Problem]:
    """A reward without a colon: a model, unless it is a function with a dot in the place of its colon."""
    module, dot, name = use.rpartition(".")
    if dot and "/" not in use and use.isascii() and has_module(use.split(".")[0]):
        return [Problem(f"{use} is neither a function nor a model", f"write `{module}:{name}`", key)]
    if use in _shipped_rewards():
        return [Problem(f"{use} is a function of TRL, not a model", f"write `trl.rewards:{use}`", key)]
    return check_model_path(use, key, tokenizer=True)


def _shipped_rewards() -> list[str]:
    """Names of the reward functions that TRL ships, which its own scripts take without a module."""
    try:
        source = find_module("trl.rewards")
    except NotFound:
        return []
    return re.findall(r"\b(?:get_)?\w+_(?:reward|punishment)\b", source.read_text(encoding="utf-8")) if source else []


def _check_signature(
    node: ast.FunctionDef | ast.AsyncFunctionDef, reward: RewardSpec, key: KeyPath, passed: Sequence[str]
) -> list[Problem]:
    """TRL calls a reward with keywords only; what the function cannot take ends the run at its first step."""
    arguments = node.args
    if arguments.posonlyargs:
        message = f"{reward.use} takes `{arguments.posonlyargs[0].arg}` by position only, and TRL passes keywords"
        return [Problem(message, "remove the `/` from its signature", key)]
    if arguments.kwarg:
        return []
    taken = {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}
    unknown = [name for name in reward.args if name not in taken]
    if unknown:
        return [Problem(f"{reward.use} takes no argument `{unknown[0]}`", "", (*key[:-1], "args", unknown[0]))]
    missing = [name for name in passed if name not in taken]
    if not missing:
        return []
    message = f"{reward.use} does not take `{missing[0]}`, which TRL passes to every reward function"
    return [Problem(message, "add `**kwargs` to its signature", key)]


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
