"""What can be said of memory before anything runs: the GPUs of each side, and for vLLM inside the trainer the split.

All sizes are bytes. What training needs is a lower bound: weights, gradients and optimizer states in closed form
(torch.optim.AdamW keeps two states of a weight's own type; DeepSpeed in bf16 or fp16 keeps an fp32 copy besides, ZeRO
paper, section 3.1), without activations, buffers and the CUDA context.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ptcli.errors import Problem
from ptcli.plan.arguments import argument, computes_in
from ptcli.plan.layout import Layout, decide_backend
from ptcli.plan.model import Machine
from ptcli.recipe.local_models import BadWeights, find_base, local_folder, read_header, weight_files
from ptcli.recipe.model import Recipe

GIB = 2**30
_DEFAULT_UTILIZATION = 0.9
"""vLLM's own share of a GPU when nothing is said."""
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
_KEY = ("rollouts", "gpu_memory_utilization")


def memory_facts(machine: Machine, layout: Layout, recipe: Recipe) -> dict[str, Any]:
    """Bytes of the smallest GPU of each side, what vLLM will take of its own, and of the trainer's where it shares
    them; nothing where it is unknown. `recipe` is the resolved one."""
    facts: dict[str, Any] = {}
    for side, picked in (("trainer", layout.split.trainer), ("rollouts", layout.split.server)):
        sizes = [machine.gpus[index].memory for index in picked]
        known = [size for size in sizes if size is not None]
        if known and len(known) == len(sizes):
            facts[f"{side}_gpu_bytes"] = min(known)
    if "rollouts_gpu_bytes" in facts:
        share = recipe.rollouts.gpu_memory_utilization or _DEFAULT_UTILIZATION
        facts["rollouts_vllm_bytes"] = int(facts["rollouts_gpu_bytes"] * share)
    if decide_backend(recipe) == "vllm" and recipe.rollouts.mode == "colocate" and "trainer_gpu_bytes" in facts:
        facts |= _split(facts["trainer_gpu_bytes"], layout, recipe)
    return facts


def memory_problems(machine: Machine, layout: Layout, recipe: Recipe) -> list[Problem]:
    """Why vLLM and the training state cannot share the trainer's GPUs. `recipe` has its rollouts decided."""
    facts = memory_facts(machine, layout, recipe)
    share, left = facts.get("rollouts_vllm_bytes"), facts.get("trainer_left_bytes")
    if share is None or left is None:
        return []
    given = f"rollouts.gpu_memory_utilization {recipe.rollouts.gpu_memory_utilization:g} of {_gib(share + left)}"
    problems = []
    weights, least = facts.get("rollouts_weights_bytes", 0), facts.get("trainer_least_bytes", 0)
    if weights > share:
        message = f"{given} gives vLLM {_gib(share)}, and its copy of the weights alone takes {_gib(weights)}"
        problems.append(Problem(message, "raise it, or rollouts.tensor_parallel_size", _KEY))
    if least > left:
        message = f"{given} leaves {_gib(left)} of each GPU to training, which needs at least {_gib(least)}"
        fix = "lower it, train an adapter (peft), shard with launch.accelerate: zero3 or fsdp2, or use mode: server"
        problems.append(Problem(message, fix, _KEY))
    return problems


def count_parameters(path: str, revision: str | None = None) -> int | None:
    """Weights of a model on this machine, from the headers of its safetensors files; None when that is unknown."""
    folder = local_folder(*find_base(path, revision))
    files = weight_files(folder) if folder else []
    try:
        shapes = [shape for file in files for shape in read_header(file).values()]
    except BadWeights:
        return None
    return sum(map(prod, shapes)) or None


def describe_split(facts: Mapping[str, Any]) -> str:
    """`memory_facts` of GPUs that vLLM and the trainer share, in words; empty where they are not shared."""
    if "trainer_left_bytes" not in facts:
        return ""
    weights, least = facts.get("rollouts_weights_bytes"), facts.get("trainer_least_bytes")
    served = f" (weights {_gib(weights)}, the rest for the KV cache)" if weights else ""
    trained = f" (weights, gradients and optimizer take at least {_gib(least)})" if least else ""
    return (
        f"of each GPU's {_gib(facts['trainer_gpu_bytes'])}: {_gib(facts['rollouts_vllm_bytes'])} for vLLM{served}, "
        f"{_gib(facts['trainer_left_bytes'])} for training{trained}"
    )


def _split(gpu: int, layout: Layout, recipe: Recipe) -> dict[str, int]:
    share = int(gpu * (recipe.rollouts.gpu_memory_utilization or _DEFAULT_UTILIZATION))
    facts = {"rollouts_vllm_bytes": share, "trainer_left_bytes": gpu - share}
    parameters = count_parameters(recipe.model.path, recipe.model.revision)
    if parameters is not None:
        width = _WIDTH[recipe.rollouts.dtype or "float32"]
        facts["rollouts_weights_bytes"] = parameters * width // recipe.rollouts.tensor_parallel_size
        facts["trainer_least_bytes"] = least_training_bytes(recipe, layout, parameters)
    return facts


def least_training_bytes(recipe: Recipe, layout: Layout, parameters: int) -> int:
    """Bytes on each GPU that training `parameters` weights takes at the least."""
    weights, gradients, states = _bytes_a_weight(recipe, layout)
    everything, rest, optimizer = _shards(layout)
    return int(parameters * (weights / everything + gradients / rest + states / optimizer))


def _bytes_a_weight(recipe: Recipe, layout: Layout) -> tuple[float, float, float]:
    """For the weight itself, its gradient, and its optimizer states. An adapter's own are left out: they are few."""
    width = float(_WIDTH[recipe.model.dtype or "float32"])
    quantization = recipe.model.quantization or {}
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        width = 0.5 if quantization.get("load_in_4bit") else 1.0
    halves = layout.strategy.kind == "DEEPSPEED" and computes_in(recipe) != "no"  # it casts frozen weights, too
    if recipe.trains_adapter or quantization:
        return min(width, 2.0) if halves else width, 0.0, 0.0
    optimizer = str(argument(recipe, "optim", ""))
    adam = optimizer.startswith(("adamw_torch", "adamw_apex", "adamw_anyprecision")) and "bit" not in optimizer
    if halves:
        return 2.0, 2.0, 12.0 if adam else 4.0
    return width, width, 2 * width if adam else 0.0


def _shards(layout: Layout) -> tuple[float, float, float]:
    """Over how many GPUs weights, gradients and optimizer states are spread: endlessly many where they are offloaded,
    or where a file of the user's own decides it."""
    strategy, world, away = layout.strategy, float(layout.world), float("inf")
    if strategy.kind == "FSDP":
        offloads = str(strategy.fsdp("offload_params")).lower() == "true"
        return (away if offloads else world,) * 3
    if strategy.deepspeed is not None:
        return away, away, away
    config = strategy.section("deepspeed_config")
    stage = int(config.get("zero_stage", 0))
    weights = away if config.get("offload_param_device", "none") != "none" else world
    optimizer = away if config.get("offload_optimizer_device", "none") != "none" else world
    return weights if stage >= 3 else 1.0, world if stage >= 2 else 1.0, optimizer if stage >= 1 else 1.0


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
