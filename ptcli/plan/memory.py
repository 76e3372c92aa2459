"""What can be said of memory before anything runs: for now the sizes of the GPUs of each side."""

from __future__ import annotations

from typing import Any

from ptcli.plan.gpus import Split
from ptcli.plan.model import Machine
from ptcli.recipe.model import Recipe

_DEFAULT_UTILIZATION = 0.9
"""vLLM's own share of a GPU when nothing is said."""


def memory_facts(machine: Machine, split: Split, recipe: Recipe) -> dict[str, Any]:
    """Bytes of the smallest GPU of each side, and what vLLM will take of its own; nothing where it is unknown."""
    facts: dict[str, Any] = {}
    for side, picked in (("trainer", split.trainer), ("rollouts", split.server)):
        sizes = [machine.gpus[index].memory for index in picked]
        known = [size for size in sizes if size is not None]
        if known and len(known) == len(sizes):
            facts[f"{side}_gpu_bytes"] = min(known)
    if "rollouts_gpu_bytes" in facts:
        share = recipe.rollouts.gpu_memory_utilization or _DEFAULT_UTILIZATION
        facts["rollouts_vllm_bytes"] = int(facts["rollouts_gpu_bytes"] * share)
    return facts
