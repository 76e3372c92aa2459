"""Rewards as a trainer gets them: functions of a name each, those with a `timeout` in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ptcli.errors import WorkError
from ptcli.recipe.model import RewardSpec
from ptcli.train.objects import is_object_reference
from ptcli.train.reward_calls import Answer, Scores
from ptcli.train.reward_process import LOADING_SECONDS, RewardProcess, TimedOut
from ptcli.train.rewards import Reward, is_async, make_reward, name_of, renamed

MOST_TIMEOUTS_IN_A_ROW = 3
"""Calls of one reward that may run out of time one after the other. A service that is slow once comes back; one that
never answers would leave the run without this reward, unseen, until somebody looks at its metrics."""


def load_rewards(specs: Sequence[RewardSpec], *, awaits: bool = True) -> list[Reward | str]:
    """Every reward in the recipe's order: functions, and the paths of reward models as they stand.

    Each function has a name of its own (TRL logs `rewards/<name>`). Where the trainer does not await async functions
    (`awaits` is false), they are made to block. Raises WorkError for one that cannot be loaded.
    """
    taken: set[str] = set()
    return [_load(spec, taken, awaits) if is_object_reference(spec.use) else spec.use for spec in specs]


def name_models(trainer: Any, specs: Sequence[RewardSpec]) -> None:
    """Call reward models what the recipe calls them, without the folders above, and no two alike.

    TRL takes the folder of the weights: `checkpoint-500` for every `RUN@500`, and the base of an adapter.
    """
    if not specs:
        return
    names: list[str] = trainer.reward_func_names
    taken = {name for name, spec in zip(names, specs, strict=True) if is_object_reference(spec.use)}
    for index, spec in enumerate(specs):
        if not is_object_reference(spec.use):
            names[index] = _free_name(os.path.basename(spec.use.removeprefix("builtin:")), taken)


def _load(spec: RewardSpec, taken: set[str], awaits: bool) -> Reward:
    if spec.timeout is not None:
        timed = TimedReward(spec)
        timed.name = _free_name(timed.name, taken)
        return timed.as_function(awaits=awaits)
    function = make_reward(spec)
    if is_async(function) and not awaits:
        function = _blocking(function)
    name = _free_name(name_of(function), taken)
    return function if name == name_of(function) else renamed(function, name)


def _free_name(base: str, taken: set[str]) -> str:
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def _blocking(function: Reward) -> Reward:
    runner = asyncio.Runner()  # one loop for all calls: clients of services stay with the one they began in

    def blocking(**columns: Any) -> Any:
        return runner.run(function(**columns))

    blocking.__name__ = name_of(function)
    return blocking


class TimedReward:
    """A reward with a `timeout`. A call that takes longer is killed, counted and named; it gives no rewards.

    The count is logged as `rewards/<name>/timeouts`, where the trainer lets rewards log: the calls of a batch that ran
    out of time, over all processes.
    """

    def __init__(self, spec: RewardSpec):
        assert spec.timeout is not None
        self.spec = spec
        self.timeout = spec.timeout
        self.timeouts = 0
        """Calls of this process that ran out of time."""
        self._in_a_row = 0
        self._process = RewardProcess(spec)
        try:
            self._ready = self._process.wait_until_ready()
        except TimedOut:
            raise WorkError(f"reward `{spec.use}` could not be imported in {LOADING_SECONDS:g} s") from None
        self.name = self._ready.name

    def as_function(self, *, awaits: bool) -> Reward:
        """A function of the reward's name; a coroutine function where the original is one, so that several such run
        at once."""
        if self._ready.is_async and awaits:

            async def timed_async(**columns: Any) -> Scores:
                return await asyncio.to_thread(self, **columns)

            return self._named(timed_async)

        def timed(**columns: Any) -> Scores:
            return self(**columns)

        return self._named(timed)

    def _named(self, function: Reward) -> Reward:
        """Under the reward's name, and with itself as `timed`, for a trainer whose rewards cannot log."""
        function.__name__ = self.name
        function.timed = self  # type: ignore[attr-defined]
        return function

    @property
    def has_timed_out(self) -> bool:
        """Whether the last call ran out of time."""
        return self._in_a_row > 0

    def __call__(self, **columns: Any) -> Scores:
        """The scores, or None for every completion after a timeout. Raises WorkError when that happens too often."""
        try:
            answer = self._process.call(columns, self.timeout)
        except TimedOut:
            self._count(columns)
            answer = Answer([None] * len(columns["completions"]))
        else:
            self._in_a_row = 0
        self._log(answer, columns)
        return answer.scores

    def _count(self, columns: Mapping[str, Any]) -> None:
        self.timeouts += 1
        self._in_a_row += 1
        what = f"reward `{self.name}` ({self.spec.use}) took longer than its timeout of {self.timeout:g} s"
        if self._in_a_row >= MOST_TIMEOUTS_IN_A_ROW:
            raise WorkError(f"{what} {self._in_a_row} times in a row; logs/trainer.log has what it was doing each time")
        step = getattr(columns.get("trainer_state"), "global_step", None)
        at = "" if step is None else f" in step {step + 1}"
        lost = f"the {len(columns['completions'])} completions of the call get no reward from it"
        print(f"warning: {what}{at} and was ended; {lost} ({self.timeouts} so far)", file=sys.stderr, flush=True)

    def _log(self, answer: Answer, columns: Mapping[str, Any]) -> None:
        """Pass on what the function logged, and the count: in every call, since TRL wants the same names from all."""
        for logger, name, value in answer.logged:
            columns[logger](name, value)
        if columns.get("log_metric") is not None:
            # TRL averages over the processes; times their number it is the sum.
            timed_out = float(self.has_timed_out) * int(os.environ.get("WORLD_SIZE", "1"))
            columns["log_metric"](f"rewards/{self.name}/timeouts", timed_out)
