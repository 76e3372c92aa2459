"""vLLM inside the trainer (`rollouts.mode: colocate`): parallel size, type, length and memory, each checked.

The same GPUs hold the training state and, in the share that `gpu_memory_utilization` gives it, vLLM. Each trainer
process has an engine of its own; `tensor_parallel_size` neighbours share one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.plan.arguments import argument
from ptcli.plan.batch import divisors
from ptcli.plan.layout import Layout, decide_backend
from ptcli.plan.server import compute_type, head_problems, length_problems, model_limit
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import Recipe, RolloutsSpec

KEY: KeyPath = ("rollouts", "mode")
SLEEP = "vllm_enable_sleep_mode"

_LARGE_SHARE = 0.9

_SERVERS_OWN = {
    "gpus": "vLLM shares the trainer's GPUs: leave it out and say launch.gpus",
    "data_parallel_size": "every trainer process has a copy of its own: leave it out",
    "host": "there is no server: leave it out",
    "port": "there is no server: leave it out",
    "group_port": "there is no server: leave it out",
    "url": "leave it out, or use rollouts.mode: server",
    "startup_timeout": "there is no server to wait for: leave it out",
}
"""What only a server can be told, and what to do instead."""

_NOT_HERE = {
    "enable_sleep_mode": f"set training.{SLEEP}",
    "distributed_executor_backend": "TRL sets it: leave it out",
    "quantization": "the weights that training changes are copied into vLLM as they are: leave it out, or use "
    "rollouts.mode: server",
}
"""Engine flags that cannot be what somebody wants in this mode."""


def uses_colocate(recipe: Recipe) -> bool:
    """True for a recipe whose trainer has vLLM inside."""
    return decide_backend(recipe) == "vllm" and recipe.rollouts.mode == "colocate"


def decide_colocate(
    recipe: Recipe, layout: Layout, precision: str, facts: Mapping[str, Any] | None
) -> tuple[RolloutsSpec, list[Problem]]:
    """The rollouts section with all decided. `precision` is what the trainer computes in, `facts` the model's
    config.json, None when unknown."""
    rollouts = recipe.rollouts
    decided = {
        "dtype": rollouts.dtype or compute_type(recipe, layout, precision),
        "max_model_len": max_model_len(recipe, facts),
        "gpu_memory_utilization": utilization(recipe) if layout.device == "cuda" else None,
    }
    problems = [
        *_not_a_server(rollouts),
        *_not_the_engine(rollouts),
        *_parallel(recipe, layout, facts),
        *_sleeping_on_cpu(recipe, layout),
        *length_problems(recipe, facts),
    ]
    return rollouts.model_copy(update=decided), problems


def utilization(recipe: Recipe) -> float:
    """Share of each GPU that vLLM takes: the recipe's, or else TRL's default for the method."""
    return float(argument(recipe, "vllm_gpu_memory_utilization", 0.9))


def max_model_len(recipe: Recipe, facts: Mapping[str, Any] | None) -> int | None:
    """Longest sequence in tokens; None: the model's own limit. A trainer without an argument for it (OnlineDPO) takes
    the sum of two others, which vLLM refuses where the model's limit (`facts`) is below it."""
    asked = recipe.rollouts.max_model_len
    if asked is not None or "vllm_max_model_length" in fields(METHODS[recipe.method].config):
        return asked
    both = int(argument(recipe, "max_length", 512)) + int(argument(recipe, "max_new_tokens", 64))
    return min(both, model_limit(facts) or both)


def colocate_notes(recipe: Recipe) -> tuple[str, ...]:
    """What a person should know of this mode's traps. `recipe` has its rollouts decided."""
    share, notes = recipe.rollouts.gpu_memory_utilization, []
    if share is not None and share >= _LARGE_SHARE:
        notes.append(
            f"rollouts.gpu_memory_utilization {share:g} leaves {1 - share:.0%} of each GPU to training; "
            "TRL's default in colocate mode is 0.3"
        )
    if argument(recipe, SLEEP, False):
        notes.append(
            f"training.{SLEEP}: vLLM forgets its weights after every generation, and some releases then sampled from "
            "stale ones (trl#5312); watch sampling/sampling_logp_difference/mean, which must not grow from step to step"
        )
    return tuple(notes)


def _not_a_server(rollouts: RolloutsSpec) -> Iterator[Problem]:
    for name, fix in _SERVERS_OWN.items():
        if getattr(rollouts, name) != RolloutsSpec.model_fields[name].default:
            message = f"rollouts.{name} is a server's, and rollouts.mode is colocate"
            yield Problem(message, fix, ("rollouts", name))


def _not_the_engine(rollouts: RolloutsSpec) -> Iterator[Problem]:
    for written in rollouts.engine:
        name, key = written.replace("-", "_"), ("rollouts", "engine", written)
        spec = fields("vllm:serve").get(name)
        if spec is not None and spec.frontend:
            message = f"rollouts.engine.{written} is a flag of the HTTP server, and rollouts.mode is colocate"
            yield Problem(message, "leave it out", key)
        elif name in _NOT_HERE:
            message = f"rollouts.engine.{written} cannot be set with rollouts.mode: colocate"
            yield Problem(message, _NOT_HERE[name], key)


def _parallel(recipe: Recipe, layout: Layout, facts: Mapping[str, Any] | None) -> list[Problem]:
    """TRL cuts the trainer's processes, all of them, into groups of `tensor_parallel_size` neighbours."""
    tensor, key = recipe.rollouts.tensor_parallel_size, ("rollouts", "tensor_parallel_size")
    if tensor == 1:
        return []
    if layout.device == "cpu":
        message = f"tensor_parallel_size {tensor} needs GPUs, and this is a CPU run"
        return [Problem(message, "leave it out", key)]
    if layout.known and layout.world % tensor:
        legal = ", ".join(map(str, (1, *divisors(layout.world))))
        message = f"tensor_parallel_size {tensor} does not divide the trainer's {layout.world} processes"
        return [Problem(message, f"legal sizes in colocate mode: {legal}", key)]
    return head_problems(tensor, layout.world, facts)


def _sleeping_on_cpu(recipe: Recipe, layout: Layout) -> list[Problem]:
    if layout.device != "cpu" or not argument(recipe, SLEEP, False):
        return []
    message = f"training.{SLEEP} needs a GPU, and this is a CPU run"
    return [Problem(message, "leave it out", ("training", SLEEP))]
