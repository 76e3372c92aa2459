"""`--smoke`: the same recipe, with only what cannot exist on a laptop replaced, so that it runs in a minute or two.

Method, strategy, rewards, backend and launch path stay, because they are what a smoke run is there to try.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptcli.builtin import MODEL, PREFIX
from ptcli.methods import METHODS, Batching
from ptcli.plan.accelerate import load_strategy
from ptcli.plan.arguments import argument
from ptcli.plan.resolve import MODELS, change
from ptcli.plan.rows import given_rows
from ptcli.recipe.catalogue import fields
from ptcli.recipe.local_models import find_base
from ptcli.recipe.model import DataEntry, DataSpec, LaunchSpec, ModelSpec, NcclSpec, Recipe, RewardSpec, RolloutsSpec
from ptcli.recipe.tokenizers import read_vocabulary, tokenizer_folder

TINY = "builtin:tiny"
_TRAIN_ROWS, _EVAL_ROWS = 64, 16
_STEPS_ONLINE, _STEPS_OFFLINE = 3, 5
_MOST_GENERATIONS = 4
_MOST_PER_DEVICE = 2
_PROCESSES = 2
_PROMPT_AND_COMPLETION = {True: 1024, False: 256}
"""Longest sequence, for the tiny model (a few letters a token, so texts are long) and for a model of the user's own."""
_COMPLETION = 32
_COMPLETION_NAMES = ("max_completion_length", "max_new_tokens", "response_length")
_CPU_OPTIMIZER = "adamw_torch"
_GPU_OPTIMIZERS = ("8bit", "4bit", "paged", "apex", "bnb", "torchao", "anyprecision")
_TINY_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head", "score"}
)
_GPU_ONLY = {"bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "ddp_backend", "use_liger_kernel"} | {
    "vllm_enable_sleep_mode"
}
"""Arguments that go back to their default, which is off (mixed precision follows `launch.device`)."""
_ELSEWHERE = {"push_to_hub", "log_completions_hub_repo", "report_to", "use_transformers_paged"}
_SLOW_START = {
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "dataloader_num_workers", "dataset_num_proc",
    "dataloader_prefetch_factor", "dataloader_persistent_workers", "use_transformers_continuous_batching",
}  # fmt: skip
_NOT_OFFLOADED = {"zero3_offload": "zero3"}
"""What offloads, and the same without: all is in main memory already, and DeepSpeed's Adam takes a minute to build."""
_UNLIKE_THE_POLICY = frozenset({"teacher"})
"""Models whose stand-in gets random weights: a student has nothing to learn from its like, and its loss would be 0."""
_GPU_ENGINE = frozenset(
    {
        "attention_backend", "attention_config", "compilation_config", "cpu_offload_gb", "cudagraph_capture_sizes",
        "data_parallel_size_local", "enable_expert_parallel", "hf_overrides", "kv_cache_dtype", "kv_offloading_size",
        "limit_mm_per_prompt", "max_num_batched_tokens", "moe_backend", "pipeline_parallel_size", "quantization",
        "speculative_config", "swap_space", "tokenizer",
    }
)  # fmt: skip
"""Flags of `vllm serve` that need GPUs, or the model that was replaced."""


def shrink(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe as it can run here, and a line for each thing that was replaced: `model.path: X -> builtin:tiny`."""
    launch = _launch(recipe.launch)
    small = change(
        recipe,
        launch=launch,
        rollouts=_rollouts(recipe),
        data=_data(recipe),
        rewards=[_reward(reward) for reward in recipe.rewards],
        peft=_peft(recipe),
        **{name: _model(recipe, name) for name in MODELS if getattr(recipe, name) is not None},
    )
    small = change(small, training=_training(recipe, launch.processes or 1))
    return small, tuple(_differences(recipe.model_dump(), small.model_dump()))


def _is_hub(path: str) -> bool:
    return not path.startswith(PREFIX) and not Path(path).is_absolute()


def _model(recipe: Recipe, section: str) -> ModelSpec:
    spec = getattr(recipe, section)
    attention = "sdpa" if spec.attn_implementation and "flash" in spec.attn_implementation else spec.attn_implementation
    spec = change(spec, dtype="float32", attn_implementation=attention)
    stand_in = _model_stand_in(recipe, section)
    if stand_in is None:
        return spec
    known = _tiny_tokens() if stand_in == TINY else ()
    tokens = {name: getattr(spec, name) for name in ("eos_token", "pad_token")}
    kept = {name: token if token in known else None for name, token in tokens.items()}
    start = "config" if section in _UNLIKE_THE_POLICY else spec.from_
    return change(spec, path=stand_in, from_=start, revision=None, adapter=None, trust_remote_code=False, **kept)


def _model_stand_in(recipe: Recipe, section: str) -> str | None:
    """What takes the place of a section's model; None when it stays. One that must have the policy's vocabulary, and
    has not the policy's fate, becomes the same as the policy, unless it reads the stand-in's tokens: what an earlier
    smoke run trained."""
    spec = getattr(recipe, section)
    own, policy = _is_hub(spec.path), _is_hub(recipe.model.path)
    if section in METHODS[recipe.method].same_vocabulary and own != policy and not (policy and _reads_tiny(spec)):
        return TINY if policy or recipe.model.path.startswith(PREFIX) else find_base(recipe.model.path)[0]
    return TINY if own else None


def _reads_tiny(spec: ModelSpec) -> bool:
    folder = tokenizer_folder(spec)
    return folder is not None and read_vocabulary(folder) == read_vocabulary(MODEL)


def _tiny_tokens() -> frozenset[str]:
    """The special tokens of the tiny model's tokenizer."""
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    return frozenset(token["content"] for token in tokenizer["added_tokens"])


def _data(recipe: Recipe) -> DataSpec:
    stand_in = _stand_in(recipe)
    shipped = stand_in.path.startswith(PREFIX)
    unseen = change(stand_in, split=f"train[-{_EVAL_ROWS}:]") if shipped else stand_in  # no rows that are trained on
    train = [_entry(entry, stand_in, _TRAIN_ROWS) for entry in recipe.data.train]
    held_out: Any = recipe.data.eval
    if isinstance(held_out, float):
        held_out = _share(recipe, train, held_out)
    elif isinstance(held_out, int):
        held_out = min(held_out, _EVAL_ROWS)
    elif isinstance(held_out, Mapping):
        held_out = {name: [_entry(entry, unseen, _EVAL_ROWS) for entry in part] for name, part in held_out.items()}
    elif held_out is not None:
        held_out = [_entry(entry, unseen, _EVAL_ROWS) for entry in held_out]
    return change(recipe.data, train=train, eval=held_out)


def _share(recipe: Recipe, train: list[DataEntry], share: float) -> float:
    """The share to hold out: of few rows a small one would be none, unless that is so in the real run as well."""
    real = given_rows(recipe)
    rows = given_rows(change(recipe, data=change(recipe.data, train=train))) or 1
    if share * rows >= 1 or (real and not round(share * real)):
        return share
    return min(_EVAL_ROWS, math.ceil(rows / 2)) / rows


def _stand_in(recipe: Recipe) -> DataEntry:
    """What takes the place of hub data: shipped rows, or, where the recipe also trains on rows of its own, those. All
    rows of a run must have the same columns, and in the shipped ones they would be others."""
    own = (entry for entry in recipe.data.train if not _is_hub(entry.path) and not entry.path.startswith(PREFIX))
    return next(own, DataEntry(path=METHODS[recipe.method].smoke_data))


def _entry(entry: DataEntry, stand_in: DataEntry, rows: int) -> DataEntry:
    kept = change(stand_in, weight=entry.weight) if _is_hub(entry.path) else entry
    return change(kept, take=min(entry.take or rows, rows), shuffle=False)


def _reward(reward: RewardSpec) -> RewardSpec:
    is_model = ":" not in reward.use and _is_hub(reward.use)
    return change(reward, use=TINY) if is_model else reward


def _peft(recipe: Recipe) -> dict[str, Any] | None:
    """The adapter, on modules that the tiny model has."""
    if recipe.peft is None or not _is_hub(recipe.model.path):
        return recipe.peft
    gone = ("layers_to_transform", "layers_pattern", "target_parameters", "rank_pattern", "alpha_pattern")
    peft = {name: value for name, value in recipe.peft.items() if name not in gone}
    targets = peft.get("target_modules")
    if targets is not None and targets != "all-linear":
        peft["target_modules"] = (_known_modules(targets) if isinstance(targets, list) else None) or "all-linear"
    if isinstance(peft.get("modules_to_save"), list):
        peft["modules_to_save"] = _known_modules(peft["modules_to_save"]) or None
    return peft


def _known_modules(names: list[Any]) -> list[Any]:
    return [name for name in names if str(name).rpartition(".")[2] in _TINY_MODULES]


def _launch(launch: LaunchSpec) -> LaunchSpec:
    accelerate = launch.accelerate
    strategy = load_strategy(accelerate)[0] if accelerate else None
    if strategy is not None and strategy.kind == "FSDP":
        accelerate = "ddp"  # accelerate has no FSDP on a CPU, and would run DDP without a word
    elif strategy is not None and strategy.shipped:
        accelerate = _NOT_OFFLOADED.get(strategy.name, strategy.name)
    single = strategy is not None and strategy.single
    count = 1 if single else _processes(launch)
    processes = None if count == 1 and launch.processes is None else count
    return change(launch, device="cpu", gpus=None, nodes=1, processes=processes, accelerate=accelerate, nccl=NcclSpec())


def _processes(launch: LaunchSpec) -> int:
    """Two wherever the real run has several; a strategy for several, too, when the recipe leaves their number open."""
    gpus = launch.gpus if isinstance(launch.gpus, int) else len(launch.gpus or ())
    asked = launch.processes or (gpus or (_PROCESSES if launch.accelerate else 1)) * launch.nodes
    return max(1, min(asked, _PROCESSES))


def _rollouts(recipe: Recipe) -> RolloutsSpec:
    rollouts = recipe.rollouts
    if not rollouts.model_fields_set:
        return rollouts
    length = rollouts.max_model_len
    if length is not None and _is_hub(recipe.model.path):
        length = min(length, _tiny_limit())
    return change(
        rollouts,
        gpus=None,
        tensor_parallel_size=1,
        data_parallel_size=None if rollouts.data_parallel_size is None else 1,
        dtype=None,
        gpu_memory_utilization=None,
        max_model_len=length,
        url=None,
        nodes=0,
        host="127.0.0.1",
        port=None,
        group_port=None,
        engine={name: value for name, value in rollouts.engine.items() if name.replace("-", "_") not in _GPU_ENGINE},
    )


def _tiny_limit() -> int:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    return int(config["max_position_embeddings"])


def _training(recipe: Recipe, processes: int) -> dict[str, Any]:
    """The training section: few and small steps, no GPU features, nothing sent anywhere."""
    row = METHODS[recipe.method]
    dropped = _GPU_ONLY | _ELSEWHERE | _SLOW_START
    training = {name: value for name, value in recipe.training.items() if name not in dropped}
    limit = _STEPS_ONLINE if row.online else _STEPS_OFFLINE
    asked = argument(recipe, "max_steps", -1)
    steps = min(asked, limit) if asked > 0 else limit  # epochs are counted on rows that are not those of the real run
    training |= {"max_steps": steps, "logging_strategy": "steps", "logging_steps": 1}
    training |= _lengths(recipe) | _schedule(recipe, steps)
    if any(word in str(training.get("optim", "")) for word in _GPU_OPTIMIZERS):
        training["optim"] = _CPU_OPTIMIZER
    training |= _SIZES.get(row.batching, _plain_sizes)(recipe, processes, steps)
    known = fields(row.config)
    return {
        name: value
        for name, value in training.items()
        if name in known and value is not _UNSET and (name in recipe.training or value != argument(recipe, name))
    }


class _Unset:
    """Marks an argument that goes."""


_UNSET = _Unset()


def _lengths(recipe: Recipe) -> dict[str, Any]:
    longest = _PROMPT_AND_COMPLETION[_is_hub(recipe.model.path) or recipe.model.path == TINY]
    limits = {"max_length": longest} | dict.fromkeys(_COMPLETION_NAMES, _COMPLETION)
    said = {name: argument(recipe, name) for name in limits}
    return {name: min(said[name], limits[name]) for name in limits if isinstance(said[name], int)}


def _schedule(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Evaluation and checkpoints, where the recipe has them, once at the end."""
    changes: dict[str, Any] = {}
    if _evaluates(recipe):
        changes |= {"eval_strategy": "steps", "eval_steps": steps}
    if argument(recipe, "load_best_model_at_end", False):
        changes |= {"save_strategy": "steps"}
    if argument(recipe, "save_strategy", "steps") == "steps" or "save_strategy" in changes:
        changes |= {"save_steps": steps}
    return changes


def _evaluates(recipe: Recipe) -> bool:
    return argument(recipe, "eval_strategy", "no") not in ("no", False)


def _plain_sizes(recipe: Recipe, processes: int, steps: int) -> dict[str, Any]:
    sizes = {"gradient_accumulation_steps": _accumulation(recipe)}
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size")[: 1 + _evaluates(recipe)]:
        sizes[name] = min(argument(recipe, name, 8), _MOST_PER_DEVICE)
    return sizes


def _generation_sizes(recipe: Recipe, processes: int, steps: int) -> dict[str, Any]:
    """Smaller groups, and the smallest batches that hold whole ones."""
    accumulation = _accumulation(recipe)
    group = max(METHODS[recipe.method].smallest_group, min(argument(recipe, "num_generations", 8), _MOST_GENERATIONS))
    slices = recipe.training.get("steps_per_generation")
    slices = min(slices, 2) if slices else None
    evaluation = {"per_device_eval_batch_size": group // math.gcd(group, processes)} if _evaluates(recipe) else {}
    return evaluation | {
        "num_generations": group,
        "num_generations_eval": _UNSET,
        "generation_batch_size": _UNSET,
        "steps_per_generation": slices or _UNSET,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": group // math.gcd(group, processes * (slices or accumulation)),
    }


def _ppo_sizes(recipe: Recipe, processes: int, steps: int) -> dict[str, Any]:
    """PPO counts episodes, not steps; whitening wants mini-batches of 8."""
    sizes = _plain_sizes(recipe, processes, steps)
    per_device = 8 if argument(recipe, "whiten_rewards", False) else sizes["per_device_train_batch_size"]
    batch = per_device * sizes["gradient_accumulation_steps"] * processes
    episodes = {"total_episodes": steps * batch, "num_mini_batches": 1, "max_steps": _UNSET}
    # Samples are shown once, from evaluation batches of this size, so that few rows are held out.
    samples = {"num_sample_generations": min(argument(recipe, "num_sample_generations", 10), 1)}
    evaluation = {
        "per_device_eval_batch_size": min(argument(recipe, "per_device_eval_batch_size", 8), _MOST_PER_DEVICE)
    }
    return sizes | {"per_device_train_batch_size": per_device} | episodes | samples | evaluation


_SIZES = {Batching.GENERATION: _generation_sizes, Batching.PPO: _ppo_sizes}


def _accumulation(recipe: Recipe) -> int:
    """At most 2, unless a DeepSpeed config of the user's own says a number, which must be the argument's."""
    strategy = load_strategy(recipe.launch.accelerate)[0] if recipe.launch.accelerate else None
    fixed = strategy.section("deepspeed_config").get("gradient_accumulation_steps") if strategy else None
    if isinstance(fixed, int):
        return fixed
    return min(argument(recipe, "gradient_accumulation_steps", 1), 2)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """A line for each place where two dumps differ."""
    if old == new and type(old) is type(new):
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{key}.{index}")
    else:
        yield f"{key}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    return "(default)" if value is None or value == {} else str(value)
