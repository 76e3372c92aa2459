"""Rewards, called on real rows before the run.

Each function is imported and called in a process of its own, as in a run with a `timeout`: what hangs there, or ends
its process, is told as anything else.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ptcli.errors import KeyPath, Problem, WorkError
from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe, RewardSpec
from ptcli.recipe.suggest import nearest
from ptcli.train.checks import Finding
from ptcli.train.checks.canned import NOT_PASSED, Row, Trial, columns_of, make_trial, state_at_start
from ptcli.train.objects import is_object_reference
from ptcli.train.reward_calls import Ready, Scores
from ptcli.train.reward_process import LOADING_SECONDS, RewardFailed, RewardProcess, TimedOut

CALL_SECONDS = 60.0
"""Seconds that a call may take here, for a reward without a `timeout`."""
READING_SECONDS = 60.0
"""Seconds that the first rows may take: data on the hub come from afar."""
_MANY = 64
"""Rows that are looked at when a reward gives None for the first few: it may be meant for others."""


@dataclass(frozen=True)
class _Setting:
    """What a reward is called with."""

    rows: Sequence[Row]
    """The first rows of the data; empty when they cannot be read."""
    passed: tuple[str, ...]
    """What the trainer passes by itself."""
    columns: tuple[str, ...]
    """The columns of the data that it passes too."""
    group: int
    longest: int
    max_steps: int

    def trial(self, rows: Sequence[Row], group: int) -> Trial:
        made = make_trial(rows, group, self.longest)
        given = {name: value for name, value in made.columns.items() if name in (*self.columns, *self.passed)}
        return Trial(given | {"trainer_state": state_at_start(self.max_steps)}, made.texts)


def check_rewards(recipe: Recipe) -> Iterator[Finding]:
    """What is wrong with the recipe's reward functions. Reward models are checked with the other models."""
    chosen = [(index, spec) for index, spec in enumerate(recipe.rewards) if is_object_reference(spec.use)]
    if not chosen:
        return
    with contextlib.ExitStack() as stack:
        processes = [RewardProcess(spec) for _, spec in chosen]
        for process in processes:
            stack.callback(process.end)
            process.start()  # they import while we read
        rows, why_not = _read_rows(recipe)
        if why_not:
            yield Finding(Problem(f"the rewards are not tried out before the run: {why_not}"), "warning")
        setting = _setting(recipe, rows)
        yield from _check_columns(setting)
        for (index, _), process in zip(chosen, processes, strict=True):
            yield from _check_reward(process, ("rewards", index, "use"), setting)


def _read_rows(recipe: Recipe) -> tuple[Sequence[Row], str]:
    """The first rows, or why there are none: the trainer says more of data that cannot be read."""
    found: list[Row] = []
    problems: list[str] = []

    def read() -> None:
        from ptcli.train.first_rows import first_rows

        try:
            found.extend(first_rows(recipe, _MANY))
        except WorkError as error:
            problems.append(str(error))

    reader = threading.Thread(target=read, daemon=True)  # a network that hangs must not hold us
    reader.start()
    reader.join(READING_SECONDS)
    if reader.is_alive():
        return [], f"the first rows of data.train could not be read in {READING_SECONDS:g} s"
    if problems:
        return [], problems[0]
    if any(row.get("prompt") is None for row in found):
        return [], f"there are rows in data.train without a `prompt`; the columns are {', '.join(columns_of(found))}"
    return list(found), ""


def _setting(recipe: Recipe, rows: Sequence[Row]) -> _Setting:
    row, training = METHODS[recipe.method], recipe.training
    keeps = not training.get("remove_unused_columns")
    group = training.get("num_generations")
    longest = training.get("max_completion_length") or training.get("max_new_tokens")
    steps = training.get("max_steps")
    return _Setting(
        rows=rows,
        passed=row.reward_arguments,
        columns=tuple(name for name in columns_of(rows) if keeps and name not in NOT_PASSED),
        group=group if isinstance(group, int) and group > 1 else max(row.smallest_group, 2),
        longest=longest if isinstance(longest, int) else 256,
        max_steps=steps if isinstance(steps, int) and steps > 0 else 0,
    )


def _check_columns(setting: _Setting) -> Iterator[Finding]:
    """A column of the name of something that the trainer passes: Python refuses it twice, or it is lost."""
    for name in sorted(set(setting.columns) & set(setting.passed)):
        message = f"data.train has a column `{name}`, and the trainer passes rewards something else of that name"
        yield Finding(Problem(message, f"rename it: `rename: {{{name}: ...}}`", ("data", "train")))


def _check_reward(process: RewardProcess, key: KeyPath, setting: _Setting) -> Iterator[Finding]:
    use = process.spec.use
    try:
        ready = process.wait_until_ready()
    except TimedOut:
        yield _error(f"reward {use} was not imported in {LOADING_SECONDS:g} s", "see what its module waits for", key)
        return
    except RewardFailed as error:
        yield _error(_loading_failure(use, error), "", key)
        return
    problems = list(_check_signature(ready, process.spec, key, setting)) if setting.rows else []
    yield from problems
    if setting.rows and not problems:
        yield from _check_calls(process, key, setting)


def _loading_failure(use: str, error: RewardFailed) -> str:
    text = str(error.failure)
    return text if use in error.failure.message else f"reward {use} cannot be loaded: {text}"


def _check_signature(ready: Ready, spec: RewardSpec, key: KeyPath, setting: _Setting) -> Iterator[Finding]:
    """Everything is passed by keyword, whether the function wants it or not."""
    if ready.parameters is None:
        return
    given = {*setting.passed, *setting.columns, *spec.args}
    there = ", ".join(setting.columns) or "none; see training.remove_unused_columns"
    for parameter in ready.parameters:
        if parameter.required and parameter.name not in given:
            near = nearest(parameter.name, setting.columns)
            fix = (
                f"rename the column, or the parameter to `{near}`" if near else "rename a column, or give it in `args`"
            )
            message = f"reward {spec.use} needs `{parameter.name}`, which is no column of data.train"
            yield _error(f"{message} (columns for rewards: {there})", fix, key)
    names = {parameter.name for parameter in ready.parameters}
    extra = [name for name in (*setting.passed, *setting.columns) if name not in names]
    if extra and not ready.takes_all:
        message = f"reward {spec.use} does not take `{extra[0]}`, which the trainer passes to every reward"
        yield _error(message, "add `**kwargs` to its signature", key)


def _check_calls(process: RewardProcess, key: KeyPath, setting: _Setting) -> Iterator[Finding]:
    use, seconds = process.spec.use, process.spec.timeout or CALL_SECONDS
    trial = setting.trial(setting.rows, setting.group)
    try:
        scores = _call(process, trial, setting, seconds)
        if all(score is None for score in scores) and _applies_elsewhere(process, setting, seconds):
            return
    except TimedOut:
        said = "its timeout of " if process.spec.timeout else ""
        message = f"reward {use} took longer than {said}{seconds:g} s for {len(trial.texts)} completions of real rows"
        yield _error(message, "look for what it waits for, or give it a longer `timeout`", key)
    except RewardFailed as error:
        yield from _explain(process, error, trial, key, setting, seconds)
    else:
        yield from _judge(use, scores, key)


def _applies_elsewhere(process: RewardProcess, setting: _Setting, seconds: float) -> bool:
    """Whether a reward that gave None for a few rows gives numbers for one of many: it may be meant for some only."""
    parts = [setting.trial([row], 1) for row in setting.rows]
    lists = [name for name, value in parts[0].columns.items() if isinstance(value, list)]
    joined = {name: [part.columns[name][0] for part in parts] for name in lists}
    trial = Trial(parts[0].columns | joined, tuple(part.texts[0] for part in parts))
    return any(score is not None for score in _call(process, trial, setting, seconds))


def _call(process: RewardProcess, trial: Trial, setting: _Setting, seconds: float) -> Scores:
    loggers = {name: _ignore for name in ("log_extra", "log_metric") if name in setting.passed}
    return process.call(trial.columns | loggers, seconds).scores


def _ignore(name: str, value: object) -> None:
    """Nothing is logged before the run."""


def _explain(
    process: RewardProcess, error: RewardFailed, trial: Trial, key: KeyPath, setting: _Setting, seconds: float
) -> Iterator[Finding]:
    """A failed call, and what it works with: the other shape of completions, or none that is empty."""
    use, failure = process.spec.use, error.failure
    if failure.kind in ("", "WorkError"):  # it ended its process, or returned what is no list of scores
        yield _error(f"reward {use}, called on the first rows of data.train: {failure}", "", key)
        return
    message = f"reward {use} failed on the first rows of data.train: {failure}"
    if _works(process, trial.without_empty(), setting, seconds):
        text = f"{message}; it works without the empty completion, which a model may well write"
        yield Finding(Problem(text, "", key), "warning")
        return
    fix = ""
    if _works(process, trial.in_other_shape(), setting, seconds):
        fix = (
            "the prompts are chats, so a completion is a list of messages: read `completion[-1]['content']`"
            if trial.is_chat
            else "the prompts are text, so a completion is a string: read it as it is, or make the prompts chats"
        )
    yield _error(message, fix, key)


def _works(process: RewardProcess, trial: Trial, setting: _Setting, seconds: float) -> bool:
    try:
        _call(process, trial, setting, seconds)
    except (TimedOut, RewardFailed):
        return False
    return True


def _judge(use: str, scores: Scores, key: KeyPath) -> Iterator[Finding]:
    """Whether the scores are something to learn from."""
    numbers = [score for score in scores if score is not None]
    wrong = [score for score in numbers if not math.isfinite(score)]
    if wrong:
        message = f"reward {use} gave {wrong[0]} for {len(wrong)} of {len(scores)} completions of real rows"
        yield _error(message, "give a finite number, or None where the reward does not apply", key)
    elif not numbers:
        message = f"reward {use} gave None for all of {len(scores)} completions of the first rows"
        yield _error(message, "None means that a reward does not apply to a row; it must apply to some", key)
    elif len(set(numbers)) == 1 and len(numbers) > 1:
        message = f"reward {use} gave {numbers[0]:g} for all of {len(numbers)} different completions of real rows"
        fix = "where all completions of a prompt have one reward, nothing is learnt"
        yield Finding(Problem(message, fix, key), "warning")


def _error(message: str, fix: str, key: KeyPath) -> Finding:
    return Finding(Problem(message, fix, key))
