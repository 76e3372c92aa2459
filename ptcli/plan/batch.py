"""Batch arithmetic: how many sequences a step takes, and whether TRL will accept the numbers.

One function for each `Batching`. The rules are those of the pinned TRL's configs (`GRPOConfig.__post_init__`,
`PPOTrainer.__init__`); the world size is the number of trainer processes on all nodes, GPUs of the rollout server do
not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ptcli.errors import Problem
from ptcli.methods import METHODS, Batching
from ptcli.plan.arguments import argument, argument_key
from ptcli.recipe.model import Recipe

_SIZES = ("generation_batch_size", "steps_per_generation")
_PER_DEVICE = "per_device_train_batch_size"
_ACCUMULATION = "gradient_accumulation_steps"
_GENERATIONS = "num_generations"
_WHITENING_MINIMUM = 8
"""PPOTrainer asserts at least this many sequences a process and mini-batch when it whitens rewards."""


@dataclass(frozen=True)
class Batch:
    """Sizes in sequences, under the names that the plan shows, and what is wrong with them."""

    sizes: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()


def batch_of(recipe: Recipe, world: int, rows: int | None = None) -> Batch:
    """The batch arithmetic of a recipe on `world` trainer processes; `rows` are at most so many training rows."""
    per_device, accumulation = argument(recipe, _PER_DEVICE, 8), argument(recipe, _ACCUMULATION, 1)
    wrong = [_positive(name, value) for name, value in ((_PER_DEVICE, per_device), (_ACCUMULATION, accumulation))]
    if any(wrong):
        return Batch({"world_size": world}, tuple(problem for problem in wrong if problem))
    sizes = {
        "world_size": world,
        _PER_DEVICE: per_device,
        _ACCUMULATION: accumulation,
        "global_batch_size": per_device * accumulation * world,
    }
    more, problems = _ARITHMETIC[METHODS[recipe.method].batching](recipe, sizes, rows)
    return Batch(MappingProxyType(sizes | _duration(recipe) | more), tuple(problems))


def batch_at_any_size(recipe: Recipe, rows: int | None = None) -> list[Problem]:
    """The problems that no number of processes mends: all that can be said when that number is unknown."""
    found = [batch_of(recipe, world, rows).problems for world in (1, 2, 3, 4, 8)]
    everywhere = set.intersection(*({problem.key for problem in problems} for problems in found))
    return [problem for problem in found[0] if problem.key in everywhere]


def _plain(recipe: Recipe, sizes: dict[str, int], rows: int | None) -> tuple[dict[str, int], list[Problem]]:
    return {}, []


def _pairs(recipe: Recipe, sizes: dict[str, int], rows: int | None) -> tuple[dict[str, int], list[Problem]]:
    """OnlineDPO and its children: two completions for each prompt of the batch, no divisibility rule."""
    return {"completions_per_prompt": 2, "completions_per_step": 2 * sizes["global_batch_size"]}, []


def _generation(recipe: Recipe, sizes: dict[str, int], rows: int | None) -> tuple[dict[str, int], list[Problem]]:
    """GRPO's groups: N = generation_batch_size sequences are N / num_generations prompts."""
    group = argument(recipe, _GENERATIONS, 8)
    problems = [_no_automatic_batch(recipe), _group_size(recipe, group)]
    problems += [_positive(name, argument(recipe, name, 1)) for name in ("num_iterations", "max_completion_length")]
    total, steps, wrong = _generation_batch(recipe, sizes)
    problems.append(wrong)
    more = {_GENERATIONS: group}
    if total is None or steps is None or group < 1:
        return more, [problem for problem in problems if problem]
    problems += [_whole_groups(recipe, sizes, group, total, steps), _evaluation(recipe, sizes, group)]
    more |= {"steps_per_generation": steps, "generation_batch_size": total}
    if total % group == 0:
        more["prompts_per_generation_batch"] = total // group
        problems.append(_enough_prompts(recipe, total // group, rows))
    return more, [problem for problem in problems if problem]


def _generation_batch(recipe: Recipe, sizes: dict[str, int]) -> tuple[int | None, int | None, Problem | None]:
    """generation_batch_size and steps_per_generation, of which a recipe may give one."""
    total, steps = (recipe.training.get(name) for name in _SIZES)
    micro = sizes[_PER_DEVICE] * sizes["world_size"]
    if total is not None and steps is not None:
        message = "generation_batch_size and steps_per_generation cannot both be given, one follows from the other"
        return None, None, Problem(message, "leave one of them out", ("training", _SIZES[0]))
    for name, value in zip(_SIZES, (total, steps), strict=True):
        wrong = _positive(name, value) if value is not None else None
        if wrong:
            return None, None, wrong
    if total is None:
        steps = steps or sizes[_ACCUMULATION]
        return micro * steps, steps, None
    if total % micro:
        message = f"generation_batch_size {total} is not a multiple of {_product(sizes, _PER_DEVICE)} = {micro}"
        unit = math.lcm(micro, max(argument(recipe, _GENERATIONS, 8), 1))
        fix = f"nearest legal generation_batch_size: {_either(_around(total, unit))}"
        return None, None, Problem(message, fix, ("training", _SIZES[0]))
    return total, total // micro, None


def _whole_groups(recipe: Recipe, sizes: dict[str, int], group: int, total: int, steps: int) -> Problem | None:
    if total % group == 0:
        return None
    smallest = METHODS[recipe.method].smallest_group
    legal = [size for size in (1, *divisors(total)) if size >= smallest]
    fix = f"legal num_generations: {_listed(legal)}" if legal else "num_generations has no legal value here"
    if recipe.training.get(_SIZES[0]) is not None:
        how = f"generation_batch_size {total}"
        unit = math.lcm(sizes[_PER_DEVICE] * sizes["world_size"], group)
        fix += f"; nearest legal generation_batch_size: {_either(_around(total, unit))}"
    else:
        given = "steps_per_generation" if recipe.training.get(_SIZES[1]) is not None else _ACCUMULATION
        how = f"a generation batch of {_product(sizes, _PER_DEVICE)} x {given} {steps} = {total} sequences"
        unit = group // math.gcd(group, sizes["world_size"] * steps)
        fix += f"; nearest legal {_PER_DEVICE}: {_either(_around(sizes[_PER_DEVICE], unit))}"
    key = argument_key(recipe, (_SIZES[0], _GENERATIONS, _PER_DEVICE, _SIZES[1], _ACCUMULATION))
    return Problem(f"{how} does not hold whole groups of num_generations {group}", fix, key)


def _evaluation(recipe: Recipe, sizes: dict[str, int], group: int) -> Problem | None:
    """Evaluation generates too, with groups of its own: TRL wants whole ones in a global evaluation batch."""
    if argument(recipe, "eval_strategy", "no") in ("no", False):
        return None
    group = argument(recipe, "num_generations_eval", 0) or group
    per_device = argument(recipe, "per_device_eval_batch_size", 8)
    total = per_device * sizes["world_size"]
    if total % group == 0:
        return None
    message = (
        f"an evaluation batch of per_device_eval_batch_size {per_device} x {_processes(sizes)} = {total} sequences "
        f"does not hold whole groups of {group}"
    )
    unit = group // math.gcd(group, sizes["world_size"])
    fix = f"nearest legal per_device_eval_batch_size: {_either(_around(per_device, unit))}"
    legal = [1, *divisors(total)]
    fix += f"; legal num_generations_eval: {_listed(legal)}"
    names = ("per_device_eval_batch_size", "num_generations_eval", "eval_strategy", _GENERATIONS)
    return Problem(message, fix, argument_key(recipe, names))


def _enough_prompts(recipe: Recipe, needed: int, rows: int | None) -> Problem | None:
    """With fewer prompts than one generation batch TRL's sampler yields nothing: 0 steps and exit code 0."""
    if rows is None or rows >= needed:
        return None
    message = f"a generation batch takes {needed} prompts and data.train has {rows}: TRL would train 0 steps"
    key = argument_key(recipe, (_SIZES[0], _PER_DEVICE, _ACCUMULATION, _SIZES[1], _GENERATIONS))
    return Problem(message, "add rows, or make the batch smaller", key if len(key) > 1 else ("data", "train"))


def _group_size(recipe: Recipe, group: int) -> Problem | None:
    smallest = METHODS[recipe.method].smallest_group
    if group >= smallest:
        return None
    reason = ": advantages compare completions of one prompt" if smallest > 1 else ""
    message = f"num_generations must be at least {smallest}, not {group}{reason}"
    return Problem(message, "", argument_key(recipe, (_GENERATIONS,)))


def _no_automatic_batch(recipe: Recipe) -> Problem | None:
    if not argument(recipe, "auto_find_batch_size", False):
        return None
    message = f"auto_find_batch_size does not work with {recipe.method}: a smaller batch would break the prompt groups"
    return Problem(message, f"set {_PER_DEVICE} yourself", ("training", "auto_find_batch_size"))


def _ppo(recipe: Recipe, sizes: dict[str, int], rows: int | None) -> tuple[dict[str, int], list[Problem]]:
    """PPO: a rollout batch is cut into mini-batches, on every process and over all of them."""
    parts = argument(recipe, "num_mini_batches", 1)
    wrong = _positive("num_mini_batches", parts)
    if wrong:
        return {}, [wrong]
    local = sizes[_PER_DEVICE] * sizes[_ACCUMULATION]
    more = {"num_mini_batches": parts, "local_batch_size": local}
    episodes = argument(recipe, "total_episodes", 0)
    if episodes > 0:  # wins over epochs
        more["max_steps"] = math.ceil(episodes / sizes["global_batch_size"])
    found = [_episodes_not_steps(recipe, sizes), _a_whole_batch(recipe, sizes, rows)]
    found.append(_mini_batches(recipe, local, parts))
    if not found[-1]:
        more["mini_batch_size"] = local // parts
    return more, [problem for problem in found if problem]


def _mini_batches(recipe: Recipe, local: int, parts: int) -> Problem | None:
    if local % parts:
        message = f"{_PER_DEVICE} x {_ACCUMULATION} = {local} sequences cannot be cut into {parts} mini-batches"
        fix = f"legal num_mini_batches: {_listed([1, *divisors(local)])}"
        return Problem(message, fix, argument_key(recipe, ("num_mini_batches", _PER_DEVICE, _ACCUMULATION)))
    if argument(recipe, "whiten_rewards", False) and local // parts < _WHITENING_MINIMUM:
        message = f"whiten_rewards needs mini-batches of at least {_WHITENING_MINIMUM} sequences, not {local // parts}"
        fix = f"make {_PER_DEVICE} x {_ACCUMULATION} / num_mini_batches larger"
        return Problem(message, fix, ("training", "whiten_rewards"))
    return None


def _episodes_not_steps(recipe: Recipe, sizes: dict[str, int]) -> Problem | None:
    """PPOTrainer reads `total_episodes` or the epochs; with `max_steps` alone it would train for three epochs."""
    steps = argument(recipe, "max_steps", -1)
    if steps <= 0:
        return None
    message = f"max_steps is not read by the trainer of {recipe.method}, which counts episodes"
    fix = f"write total_episodes: {steps * sizes['global_batch_size']} for {steps} steps of this batch"
    return Problem(message, fix, ("training", "max_steps"))


def _a_whole_batch(recipe: Recipe, sizes: dict[str, int], rows: int | None) -> Problem | None:
    """PPOTrainer drops a batch that is not full and starts over, so with fewer rows it waits for ever."""
    needed = sizes["global_batch_size"]
    if rows is None or rows >= needed:
        return None
    share = recipe.data.eval
    less = " besides those that are held out" if isinstance(share, float | int) else ""
    message = f"a batch takes {needed} prompts and data.train has {rows}{less}: {recipe.method} would wait for ever"
    key = argument_key(recipe, (_PER_DEVICE, _ACCUMULATION))
    return Problem(message, "add rows, or make the batch smaller", key if len(key) > 1 else ("data", "train"))


_ARITHMETIC: Mapping[Batching, Callable[[Recipe, dict[str, int], int | None], tuple[dict[str, int], list[Problem]]]] = (
    MappingProxyType(
        {Batching.PLAIN: _plain, Batching.GENERATION: _generation, Batching.PAIRS: _pairs, Batching.PPO: _ppo}
    )
)


def divisors(number: int) -> list[int]:
    """Every divisor from 2 on, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)} - {1})


def _duration(recipe: Recipe) -> dict[str, Any]:
    """`max_steps` wins over epochs in transformers."""
    steps = argument(recipe, "max_steps", -1)
    return {"max_steps": steps} if steps > 0 else {"num_train_epochs": argument(recipe, "num_train_epochs", 3.0)}


def _positive(name: str, value: Any) -> Problem | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return None
    return Problem(f"{name} must be a whole number of at least 1, not {value}", "", ("training", name))


def _around(value: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `value`, at most one on each side, none below `unit`."""
    below = value // unit * unit
    return [number for number in (below, below + unit) if number >= unit]


def _product(sizes: dict[str, int], name: str) -> str:
    return f"{name} {sizes[name]} x {_processes(sizes)}"


def _processes(sizes: dict[str, int]) -> str:
    count = sizes["world_size"]
    return f"{count} process{'' if count == 1 else 'es'}"


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, numbers))


def _listed(numbers: list[int], most: int = 12) -> str:
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")
