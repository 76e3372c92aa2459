"""Reward functions as a recipe names them, ready for a TRL trainer."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ptcli.errors import WorkError
from ptcli.recipe.model import RewardSpec
from ptcli.recipe.secrets import reveal
from ptcli.train.objects import is_object_reference, load_object

Reward = Callable[..., Any]


def load_reward(spec: RewardSpec) -> Reward | str:
    """The function with its `args` bound, or the model path as it stands. Raises WorkError when it cannot be called."""
    if not is_object_reference(spec.use):
        return spec.use
    function = load_object(spec.use)
    if not callable(function):
        raise WorkError(f"reward `{spec.use}` is a {type(function).__name__}, not a function")
    _check_arguments(function, spec)
    spec = spec.model_copy(update={"args": reveal(spec.args)})
    return _bind(function, spec) if spec.args or spec.timeout else function


def load_rewards(specs: Sequence[RewardSpec]) -> list[Reward | str]:
    """Every reward in the recipe's order, each function under a name of its own (TRL logs `rewards/<name>`)."""
    loaded = [load_reward(spec) for spec in specs]
    taken: set[str] = set()
    return [_named_apart(reward, taken) if callable(reward) else reward for reward in loaded]


def _check_arguments(function: Reward, spec: RewardSpec) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    unknown = sorted(set(spec.args) - {parameter.name for parameter in parameters})
    if unknown:
        raise WorkError(f"reward `{spec.use}` takes no argument {', '.join(f'`{name}`' for name in unknown)}")


def _bind(function: Reward, spec: RewardSpec) -> Reward:
    """A function and not a partial: TRL looks through a partial, so that two of one function would share a name."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def bound_async(**columns: Any) -> Any:
            return await asyncio.wait_for(function(**{**columns, **spec.args}), spec.timeout)

        return bound_async

    @functools.wraps(function, updated=())
    def bound(**columns: Any) -> Any:
        with _time_limit(spec):
            return function(**{**columns, **spec.args})

    bound.__name__ = _name(function)
    return bound


def _named_apart(function: Reward, taken: set[str]) -> Reward:
    name = base = _name(function)
    number = 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return function if name == base else _renamed(function, name)


def _renamed(function: Reward, name: str) -> Reward:
    renamed = _bind(function, RewardSpec(use=name))
    renamed.__name__ = name
    return renamed


def _name(function: Reward) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


@contextlib.contextmanager
def _time_limit(spec: RewardSpec) -> Iterator[None]:
    """End the process when the block takes longer than `spec.timeout` seconds.

    A thread cannot be stopped and a signal would break rewards that set an alarm themselves (math_verify does), so the
    only safe end of a reward that hangs is that of the process; its stack is in the log.
    """
    if spec.timeout is None:
        yield
        return
    timer = threading.Timer(spec.timeout, _give_up, (spec,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(spec: RewardSpec) -> None:
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    print(f"error: reward `{spec.use}` took longer than its timeout of {spec.timeout:g} s", file=sys.stderr, flush=True)
    os._exit(1)
