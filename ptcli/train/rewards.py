"""Reward functions as a recipe names them: found, made by their factories, bound to their arguments.

Imports nothing heavy, because a reward with a `timeout` is made in a process of its own (`ptcli.train.reward_child`).
What a trainer gets is made of this in `ptcli.train.reward_loading`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ptcli.errors import WorkError
from ptcli.recipe.model import RewardSpec
from ptcli.recipe.secrets import reveal
from ptcli.train.objects import load_object

Reward = Callable[..., Any]
"""Called with keywords only: lists of equal length (`prompts`, `completions`, `completion_ids`, the data's columns) and
what the trainer adds. Gives one number or None for each completion, or a coroutine of them."""

_CHAT_ONLY = "trl.rewards."
"""Modules whose functions want each completion as a list of messages, also where the prompts are text: TRL documents
`completions` as `list[list[dict[str, str]]]` for all of them, and those that read it fail on a string."""


def make_reward(spec: RewardSpec) -> Reward:
    """The function that `spec` names, its `args` bound, secrets among them revealed.

    Raises WorkError when there is none, when it cannot be called or when it does not take its `args`.
    """
    found = load_object(spec.use)
    if not callable(found):
        raise WorkError(f"reward `{spec.use}` is a {type(found).__name__}, not a function")
    args: Mapping[str, Any] = reveal(spec.args)
    if is_factory(found):
        return _fit(_made_by(found, args, spec.use), {}, spec.use)
    check_arguments(found, args, f"reward `{spec.use}`")
    return _fit(found, args, spec.use)


def is_factory(found: Reward) -> bool:
    """True for what makes a reward function: a class, or a function that has no place for `completions`.

    Trainers pass `completions` to every reward, so what cannot take it is no reward itself.
    """
    if isinstance(found, type):
        return True
    parameters = signature_of(found)
    return parameters is not None and not takes(parameters, "completions")


def is_async(function: Reward) -> bool:
    """True for a coroutine function and for an object whose `__call__` is one."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def name_of(function: Reward) -> str:
    """The name that TRL logs a reward under (`rewards/<name>/mean`): the function's, or its class's."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def signature_of(function: Reward) -> Sequence[inspect.Parameter] | None:
    """The parameters; None for what does not say (some functions written in C)."""
    try:
        return tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def takes(parameters: Sequence[inspect.Parameter], name: str) -> bool:
    """Whether `name` can be passed by keyword."""
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(each.kind is each.VAR_KEYWORD or (each.name == name and each.kind in by_keyword) for each in parameters)


def check_arguments(function: Reward, args: Mapping[str, Any], what: str) -> None:
    """Raise WorkError for arguments of the recipe that the function does not take."""
    parameters = signature_of(function)
    unknown = sorted(name for name in args if parameters is not None and not takes(parameters, name))
    if unknown:
        raise WorkError(f"{what} takes no argument {', '.join(f'`{name}`' for name in unknown)}")


def _made_by(factory: Reward, args: Mapping[str, Any], use: str) -> Reward:
    check_arguments(factory, args, f"`{use}`, which makes a reward,")
    try:
        made = factory(**args)
    except TypeError as error:
        if _is_raised_inside(error):
            raise
        needs = str(error).removeprefix(f"{name_of(factory)}() ").removeprefix(f"{name_of(factory)}.__init__() ")
        raise WorkError(
            f"reward `{use}` has no parameter `completions`, so it is taken for one that makes the reward function; "
            f"called with the recipe's `args`, it is {needs}"
        ) from error
    if not callable(made):
        raise WorkError(
            f"reward `{use}` has no parameter `completions`, so it is taken for one that makes the reward function; "
            f"it made a {type(made).__name__}"
        )
    return made


def _is_raised_inside(error: BaseException) -> bool:
    """False for the TypeError of the call itself, whose innermost frame is that of the caller."""
    trace = error.__traceback__
    return trace is not None and trace.tb_next is not None


def _fit(function: Reward, args: Mapping[str, Any], use: str) -> Reward:
    """A function as TRL wants it: with a name, visibly async if it is, arguments bound, completions in its shape."""
    chat_only = str(getattr(function, "__module__", "")).startswith(_CHAT_ONLY)
    name = name_of(function)
    name = name if name.isidentifier() else use.rpartition(":")[2]  # a lambda
    plain = inspect.iscoroutinefunction(function) or not is_async(function)
    if not args and not chat_only and plain and name == name_of(function):
        return function

    def given(columns: dict[str, Any]) -> dict[str, Any]:
        return (as_chats(columns) if chat_only else columns) | dict(args)

    if is_async(function):

        async def bound_async(**columns: Any) -> Any:
            return await function(**given(columns))

        return _named(bound_async, function, name)

    def bound(**columns: Any) -> Any:
        return function(**given(columns))

    return _named(bound, function, name)


def as_chats(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns with every completion that is a string turned into a chat of one message."""
    return dict(columns) | {"completions": [_as_chat(each) for each in columns["completions"]]}


def _as_chat(completion: Any) -> Any:
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion


def renamed(function: Reward, name: str) -> Reward:
    """The function under another name. Not a partial: TRL looks through one, so that two would share a name."""
    if is_async(function):

        async def under_another_name_async(**columns: Any) -> Any:
            return await function(**columns)

        return _named(under_another_name_async, function, name)

    def under_another_name(**columns: Any) -> Any:
        return function(**columns)

    return _named(under_another_name, function, name)


def _named(wrapper: Reward, function: Reward, name: str) -> Reward:
    functools.update_wrapper(wrapper, function, updated=())
    wrapper.__name__ = name
    return wrapper
