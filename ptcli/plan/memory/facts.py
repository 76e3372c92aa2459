"""What a plan says of memory: of each side's GPUs what they have, what they hold at least, and whether that fits.

All sizes are bytes. What is held is a lower bound, so that nothing is refused that could run: activations, buffers and
the CUDA context are not in it, and what cannot be counted is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.plan.arguments import argument
from ptcli.plan.layout import Layout, decide_backend
from ptcli.plan.memory.rollouts import Engine, Room, fill
from ptcli.plan.memory.sources import find_model
from ptcli.plan.memory.trainer import Held, hold
from ptcli.plan.memory.training import WIDTH
from ptcli.plan.model import Machine
from ptcli.plan.server import model_limit
from ptcli.recipe.local_models import read_model_config
from ptcli.recipe.model import Recipe

GIB = 2**30
DEFAULT_UTILIZATION = 0.9
"""vLLM's own share of a GPU when nothing is said."""
_SHARE: KeyPath = ("rollouts", "gpu_memory_utilization")
_SLEEP = "vllm_enable_sleep_mode"
_OTHER_WEIGHTS = ("quantization", "cpu_offload_gb", "cpu_offload_params", "enable_expert_parallel", "load_format")
_OTHER_CACHE = (
    "kv_cache_memory_bytes", "num_gpu_blocks_override", "max_model_len", "kv_cache_dtype_skip_layers",
    "decode_context_parallel_size", "hf_overrides", "kv_offloading_size", "kv_transfer_config",
)  # fmt: skip
"""Flags of vLLM with which it holds something else than is counted here."""


def memory_facts(machine: Machine, layout: Layout, recipe: Recipe) -> dict[str, Any]:
    """Bytes of the smallest GPU of each side and what is on it, under the names that the plan's `memory` has; what is
    unknown is left out. Empty on a CPU. `recipe` is the resolved one."""
    if layout.device == "cpu" or not layout.known:
        return {}
    facts: dict[str, Any] = {}
    for side, picked in (("trainer", layout.split.trainer), ("rollouts", layout.split.server)):
        sizes = [machine.gpus[index].memory for index in picked]
        known = [size for size in sizes if size is not None]
        if known and len(known) == len(sizes):
            facts[f"{side}_gpu_bytes"] = min(known)
    if "rollouts_gpu_bytes" in facts:
        facts["rollouts_vllm_bytes"] = int(facts["rollouts_gpu_bytes"] * _utilization(recipe))
    if _is_colocated(recipe) and "trainer_gpu_bytes" in facts:
        share = int(facts["trainer_gpu_bytes"] * _utilization(recipe))
        facts |= {"rollouts_vllm_bytes": share, "trainer_left_bytes": facts["trainer_gpu_bytes"] - share}
    if layout.split.trainer:
        facts |= _of_trainer(hold(recipe, layout))
    return facts | _of_rollouts(recipe, facts)


def memory_problems(machine: Machine, layout: Layout, recipe: Recipe) -> list[Problem]:
    """Why a run cannot fit: the least that a side holds is more than its GPUs have. `recipe` is the resolved one."""
    facts = memory_facts(machine, layout, recipe)
    problems = [*_rollouts_too_large(recipe, facts)]
    least, room = facts.get("trainer_least_bytes", 0), facts.get("trainer_left_bytes", facts.get("trainer_gpu_bytes"))
    if argument(recipe, _SLEEP, False) and "trainer_left_bytes" in facts:
        least -= facts.get("trainer", {}).get("gradients", 0)  # while vLLM is awake there are none
    if room is None or least <= room or recipe.model.init_kwargs.get("device_map"):
        return problems  # a device map may leave layers in main memory
    if "trainer_left_bytes" in facts:
        given = f"{_share(recipe)} of {gib(facts['trainer_gpu_bytes'])}"
        message = f"{given} leaves {gib(room)} of each GPU to training, which needs at least {gib(least)}"
        fix = "lower it, train an adapter (peft), shard with launch.accelerate: zero3 or fsdp2, or use mode: server"
        return [*problems, Problem(f"{message}{_largest(facts)}", fix, _SHARE)]
    message = f"each trainer GPU has {gib(room)}, and training holds at least {gib(least)} on it{_largest(facts)}"
    return [*problems, Problem(message, _ways_out(recipe, layout, facts), ("launch", "accelerate"))]


def describe_split(facts: Mapping[str, Any]) -> str:
    """`memory_facts` of GPUs that vLLM and the trainer share, in words; empty where they are not shared."""
    if "trainer_left_bytes" not in facts:
        return ""
    weights, least = facts.get("rollouts_weights_bytes"), facts.get("trainer_least_bytes")
    served = f" (weights {gib(weights)}, {_cache(facts)})" if weights else ""
    trained = f" (weights, gradients and optimizer take at least {gib(least)})" if least else ""
    return (
        f"of each GPU's {gib(facts['trainer_gpu_bytes'])}: {gib(facts['rollouts_vllm_bytes'])} for vLLM{served}, "
        f"{gib(facts['trainer_left_bytes'])} for training{trained}"
    )


def describe_memory(facts: Mapping[str, Any]) -> list[str]:
    """`memory_facts` in words, a line for each side; none where nothing is known."""
    lines = []
    if facts.get("trainer"):
        of = f" of {gib(facts['trainer_gpu_bytes'])}" if "trainer_gpu_bytes" in facts else ""
        items = ", ".join(f"{name} {gib(size)}" for name, size in _by_size(facts["trainer"]))
        lines.append(f"a trainer GPU holds at least {gib(facts['trainer_least_bytes'])}{of}: {items}; no activations")
    if facts.get("trainer_logits_bytes"):
        lines.append(f"besides, a batch of full length makes logits of {gib(facts['trainer_logits_bytes'])}")
    if "rollouts_gpu_bytes" in facts and facts.get("rollouts_weights_bytes"):
        share, of = gib(facts["rollouts_vllm_bytes"]), gib(facts["rollouts_gpu_bytes"])
        weights = gib(facts["rollouts_weights_bytes"])
        lines.append(f"vLLM takes {share} of a rollout GPU's {of}: weights {weights}, {_cache(facts)}")
    unknown = facts.get("unknown_models")
    if unknown:
        lines.append(f"unknown of {', '.join(unknown)}: no config.json on this machine whose weights can be counted")
    return lines


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


# --- the facts of each side ------------------------------------------------------------------------------------------


def _of_trainer(held: Held) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if held.items:
        facts |= {"trainer": dict(held.items), "trainer_least_bytes": held.bytes, "trainer_largest": held.largest}
    if held.parameters is not None:
        facts["parameters"] = held.parameters
    if held.trained is not None:
        facts["trained_parameters"] = held.trained
    if held.logits is not None:
        facts["trainer_logits_bytes"] = held.logits
    return facts | ({"unknown_models": list(held.unknown)} if held.unknown else {})


def _of_rollouts(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, Any]:
    if "rollouts_vllm_bytes" not in facts or recipe.rollouts.url is not None:
        return {}
    room = _room(recipe, facts["rollouts_vllm_bytes"])
    if room is None:
        return {}
    found: dict[str, Any] = {"rollouts_weights_bytes": room.weights, "rollouts_cache_bytes": max(room.cache, 0)}
    if room.token and not _says(recipe, _OTHER_CACHE):
        found |= {"rollouts_token_bytes": room.token, "rollouts_tokens": room.tokens or 0}
    if room.sequence is not None and room.sequences is not None and not _says(recipe, _OTHER_CACHE):
        length = {"rollouts_max_model_len": _longest(recipe)}
        found |= {"rollouts_sequence_bytes": room.sequence, "rollouts_sequences": int(room.sequences)} | length
    return found


def _room(recipe: Recipe, share: int) -> Room | None:
    """What vLLM fills its share with; None where that cannot be counted."""
    model = find_model(recipe.model)
    if model is None or model.comes_quantized or _says(recipe, _OTHER_WEIGHTS):
        return None
    rollouts, engine = recipe.rollouts, _flags(recipe)
    width = float(WIDTH.get(rollouts.dtype or "float32", 2))
    pipeline = engine.get("pipeline_parallel_size", 1)
    return fill(
        model.architecture,
        Engine(
            share=share,
            width=width,
            cache_width=_cache_width(str(engine.get("kv_cache_dtype", "auto")), width),
            tensor=rollouts.tensor_parallel_size,
            pipeline=pipeline if isinstance(pipeline, int) and pipeline > 0 else 1,
            max_model_len=_longest(recipe),
        ),
    )


def _cache_width(dtype: str, width: float) -> float:
    """Bytes of a value in the KV cache; of types that are not known here at least half of one."""
    return width if dtype == "auto" else float(WIDTH.get(dtype, 1 if dtype.startswith("fp8") else 0.5))


def _longest(recipe: Recipe) -> int | None:
    """Tokens of the longest sequence; None when only the model's config would say."""
    config = read_model_config(recipe.model.path, recipe.model.revision)
    return recipe.rollouts.max_model_len or model_limit(config)


def _flags(recipe: Recipe) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in recipe.rollouts.engine.items()}


def _says(recipe: Recipe, names: Iterable[str]) -> bool:
    flags = _flags(recipe)
    return any(flags.get(name) is not None for name in names)


def _is_colocated(recipe: Recipe) -> bool:
    return decide_backend(recipe) == "vllm" and recipe.rollouts.mode == "colocate"


def _utilization(recipe: Recipe) -> float:
    return recipe.rollouts.gpu_memory_utilization or DEFAULT_UTILIZATION


# --- what does not fit -----------------------------------------------------------------------------------------------


def _rollouts_too_large(recipe: Recipe, facts: Mapping[str, Any]) -> list[Problem]:
    share, weights = facts.get("rollouts_vllm_bytes"), facts.get("rollouts_weights_bytes")
    if share is None or weights is None:
        return []
    gpu = facts.get("rollouts_gpu_bytes", facts.get("trainer_gpu_bytes", share))
    given = f"{_share(recipe)} of {gib(gpu)}"
    if weights > share:
        message = f"{given} gives vLLM {gib(share)}, and its copy of the weights alone takes {gib(weights)}"
        return [Problem(message, "raise it, or rollouts.tensor_parallel_size", _SHARE)]
    sequence = facts.get("rollouts_sequence_bytes", 0)
    if sequence > share - weights:
        length = recipe.rollouts.max_model_len
        what = f"of rollouts.max_model_len {length} tokens" if length else "as long as the model allows"
        message = (
            f"{given} leaves {gib(share - weights)} to the KV cache, and one sequence {what} takes {gib(sequence)}"
        )
        fix = "lower rollouts.max_model_len, or raise rollouts.gpu_memory_utilization or rollouts.tensor_parallel_size"
        return [Problem(message, fix, ("rollouts", "max_model_len"))]
    return []


def _share(recipe: Recipe) -> str:
    return f"rollouts.gpu_memory_utilization {_utilization(recipe):g}"


def _ways_out(recipe: Recipe, layout: Layout, facts: Mapping[str, Any]) -> str:
    """What makes less of it, the surest first."""
    spread, ways = layout.strategy.name, []
    if not recipe.trains_adapter:
        ways.append("train an adapter (peft: {type: lora})")
    elif facts.get("trainer_largest") == "weights" and not recipe.model.quantization:
        ways.append("quantise the frozen weights (model.quantization: {load_in_4bit: true})")
    if spread not in ("zero3", "fsdp2") and layout.strategy.kind != "FSDP" and layout.world > 1:
        ways.append("shard with launch.accelerate: zero3 or fsdp2")
    if "offload" not in spread:
        ways.append("offload to main memory (launch.accelerate: zero3_offload)")
    if METHODS[recipe.method].reference == "always" and "reference" in facts.get("trainer", {}):
        ways.append("leave the reference out of memory (training.precompute_ref_log_probs, where the method has it)")
    return "; ".join([*ways, "or use more or larger GPUs"])


def _largest(facts: Mapping[str, Any]) -> str:
    items = _by_size(facts.get("trainer", {}))
    if not items:
        return ""
    (name, size), *rest = items
    others = ", ".join(f"{other} {gib(each)}" for other, each in rest)
    return f", most of it {name}, {gib(size)}" + (f" ({others})" if others else "")


def _by_size(items: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(items.items(), key=lambda item: -item[1])


def _cache(facts: Mapping[str, Any]) -> str:
    sequences, tokens = facts.get("rollouts_sequences"), facts.get("rollouts_tokens")
    if not tokens:
        return "the rest for the KV cache"
    longest = f", {sequences} sequences of {facts['rollouts_max_model_len']}" if sequences else ""
    return f"the rest for a KV cache of at most {tokens} tokens{longest}"
