"""The two processes of a run that `ptcli doctor` lets add up a tensor: which, where, and with what environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ptcli.plan.model import Plan, Step


@dataclass(frozen=True)
class Member:
    """One of the two."""

    device: str
    """As torch names it: `cpu`, `cuda:0`."""
    env: Mapping[str, str]
    """What the run sets for it, on top of the caller's environment."""


@dataclass(frozen=True)
class Pair:
    """Two processes that must reach each other."""

    names: str
    """As a person calls them: `GPU 0 (trainer) and GPU 4 (rollouts)`."""
    backend: Literal["gloo", "nccl"]
    members: tuple[Member, Member]
    one_node: bool = True
    """The run has no other: an interface that only this machine knows will do."""


def pair_of(plan: Plan) -> Pair | None:
    """The trainer and its server where there is one, whose weights go from one to the other; else the trainer's first
    two processes. None where a run has but one process on this node."""
    steps = {step.name: step for step in plan.steps if step.node == 0}
    trainer, server = steps.get("trainer"), steps.get("rollouts")
    if trainer is None:
        return None
    if plan.recipe.launch.device == "cpu":
        return _on_cpu(plan, trainer, server)
    one_node = plan.recipe.launch.nodes == 1
    if server and server.gpus:
        names = f"GPU {trainer.gpus[0]} (trainer) and GPU {server.gpus[0]} (rollouts)"
        return Pair(names, "nccl", (Member("cuda:0", trainer.env), Member("cuda:0", server.env)), one_node)
    if len(trainer.gpus) > 1:
        names = f"GPU {trainer.gpus[0]} and GPU {trainer.gpus[1]}"
        return Pair(names, "nccl", (Member("cuda:0", trainer.env), Member("cuda:1", trainer.env)), one_node)
    return None


def pair_of_gpus() -> Pair:
    """The first two GPUs of a machine, without a recipe."""
    return Pair("the first two GPUs", "nccl", (Member("cuda:0", {}), Member("cuda:1", {})))


def _on_cpu(plan: Plan, trainer: Step, server: Step | None) -> Pair | None:
    if server is None and (plan.recipe.launch.processes or 1) < 2:
        return None
    names = "trainer and rollout server" if server else "two processes of the trainer"
    members = (Member("cpu", trainer.env), Member("cpu", (server or trainer).env))
    return Pair(names, "gloo", members, plan.recipe.launch.nodes == 1)
