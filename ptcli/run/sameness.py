"""What must be the same in a run and in the one that goes on from its checkpoint, compared before anything loads.

Three kinds of keys: what only says where and how often things are written may change; what changes the objective may
change and is told; all else must be the same. The trainer would break on it, train on other rows, or, as with the
learning rate, which the optimizer's saved state holds, silently not do what the recipe says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.plan.launch import ACCELERATE_FILE, RECIPE_FILE
from ptcli.plan.model import Plan
from ptcli.recipe.catalogue import fields
from ptcli.run.checkpoints import Checkpoint, Kind
from ptcli.run.stack import read_stack

_FREE = re.compile(
    r"(?:name|output_dir|extends|guards|callbacks|after|data\.allow|data\.eval|rollouts"
    r"|launch\.(?:gpus|processes|nodes|env|nccl|slurm|accelerate))(?:\.|$)"
    r"|training\.(?:(?:logging|log|save|eval|hub|include|ddp|dataloader|torch_compile|vllm|ds3)_\w+"
    r"|gradient_checkpointing\w*|activation_checkpointing\w*|report_to|run_name|project|trackio\w*|disable_tqdm"
    r"|push_to_hub|do_\w+|max_steps|num_train_epochs|load_best_model_at_end|metric_for_best_model|greater_is_better"
    r"|per_device_eval_batch_size|dataset_num_proc|tf32|use_liger_kernel|skip_memory_metrics|torch_empty_cache_steps"
    r"|num_completions_to_print|ignore_data_skip|restore_callback_states_from_checkpoint|fp16_full_eval"
    r"|bf16_full_eval|prediction_loss_only|enable_jit_checkpoint|model_init_kwargs)(?:\.|$)"
)
_NOT_FREE = frozenset({"training.dataloader_drop_last"})
_TOLD = re.compile(
    r"(?:rewards)(?:\.|$)"
    r"|training\.(?:beta|temperature|top_p|top_k|min_p|repetition_penalty|generation_kwargs|max_completion_length"
    r"|max_new_tokens|epsilon\w*|delta|loss_type|loss_weights|scale_rewards|reward_weights|kl_coef|label_smoothing"
    r"|max_grad_norm|sync_ref_model|ref_model_\w+|missing_eos_penalty|mask_truncated_completions"
    r"|importance_sampling\w*|top_entropy_quantile|lmbda|use_bias_correction_kl)(?:\.|$)"
)
_PLACES = frozenset(
    {"main_process_ip", "main_process_port", "machine_rank", "num_machines", "num_processes", "same_network", "debug"}
)
"""Keys of an accelerate config that say where processes run. Their number is compared for itself."""
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "deepspeed")
_KINDS: Mapping[str, Kind] = {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}
_SPOKEN: Mapping[Kind, str] = {"plain": "without DeepSpeed or FSDP", "deepspeed": "by DeepSpeed", "fsdp": "by FSDP"}


@dataclass(frozen=True)
class Differences:
    """What is different, and must not be, or may be and is worth a word."""

    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Before:
    """What the run directory of a checkpoint says of the run; empty where it does not."""

    recipe: Mapping[str, Any]
    accelerate: Mapping[str, Any]
    stack: Mapping[str, Any]


def compare(plan: Plan, checkpoint: Checkpoint) -> Differences:
    """Compare a plan with the checkpoint that it shall go on from and with what that one's run directory says."""
    before = _read(checkpoint.path.parent)
    way_out = _way_out(checkpoint)
    problems = [*_processes(plan, checkpoint), *_strategy(plan, checkpoint, before), *_adapter(plan, checkpoint)]
    notes: list[str] = []
    if before.recipe:
        now = yaml.safe_load(plan.files[RECIPE_FILE])
        for key, old, new in changed_keys(before.recipe, now):
            text = f"{_dotted(key)} was {_shown(old)} in {checkpoint.path.parent.name} and is {_shown(new)}"
            if _TOLD.match(_dotted(key)):
                notes.append(f"{text} from step {checkpoint.step + 1} on")
            else:
                problems.append(Problem(text, f"put it back, or {way_out}", key))
        notes += _longer(before.recipe, now)
    if before.stack:
        stack = read_stack(plan)
        problems += [*_data(plan, before.stack, stack), *_base(plan, before.stack, stack)]
        notes += _packages(before.stack, stack)
    return Differences(tuple(problems), tuple(notes))


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Keys of two resolved recipes, as plain data, that differ and are not free to; with both values."""
    old, new = (dict(_leaves(recipe)) for recipe in (before, now))
    defaults = _defaults(str(now.get("method")))
    for key in dict.fromkeys((*old, *new)):
        pair = old.get(key, defaults.get(key)), new.get(key, defaults.get(key))
        if pair[0] != pair[1] and not _is_free(key, before, now):
            yield key, *pair


def _is_free(key: KeyPath, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    text = _dotted(key)
    if text.startswith("data.eval") and any(isinstance(_eval(recipe), int | float) for recipe in (before, now)):
        return False  # rows are held out of the training rows
    return bool(_FREE.match(text)) and text not in _NOT_FREE


def _eval(recipe: Mapping[str, Any]) -> Any:
    return (recipe.get("data") or {}).get("eval")


def _leaves(value: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if children is None:
        if value is not None:
            yield key, value
        return
    for name, child in children:
        yield from _leaves(child, (*key, name))


def _defaults(method: str) -> dict[KeyPath, Any]:
    """Defaults of the trainer's arguments, so that one that is spelt out is no change."""
    if method not in METHODS:
        return {}
    return {("training", name): spec.default for name, spec in fields(METHODS[method].config).items()}


# --- the ways to differ ----------------------------------------------------------------------------------------------


def _processes(plan: Plan, checkpoint: Checkpoint) -> Iterator[Problem]:
    now = plan.batch.get("world_size")
    if not now or checkpoint.world is None or now == checkpoint.world:
        return
    message = f"{checkpoint.path} was written by {_count(checkpoint.world)}, and this run has {now}"
    why = {
        "plain": "rows would come in another order and in other batches",
        "deepspeed": "DeepSpeed cannot split its optimizer anew",
        "fsdp": "rows would come in another order and in other batches",
    }[checkpoint.kind]
    key = ("launch", "processes" if plan.recipe.launch.device == "cpu" else "gpus")
    yield Problem(f"{message}: {why}", f"run it on as many, or {_way_out(checkpoint)}", key)


def _count(world: int) -> str:
    return f"{world} process{'' if world == 1 else 'es'}"


def plan_kind(plan: Plan) -> Kind:
    """Who writes the checkpoints of a plan."""
    return _KINDS.get(str(_config(plan).get("distributed_type")), "plain")


def zero_stage(plan: Plan) -> int:
    """The stage that the launch config says; 3, of which least is written, where a file of DeepSpeed's says it."""
    stage = (_config(plan).get("deepspeed_config") or {}).get("zero_stage")
    return stage if isinstance(stage, int) else 3 if plan_kind(plan) == "deepspeed" else 0


def _config(plan: Plan) -> Mapping[str, Any]:
    return yaml.safe_load(plan.files.get(ACCELERATE_FILE, "")) or {}


def _strategy(plan: Plan, checkpoint: Checkpoint, before: _Before) -> Iterator[Problem]:
    now, kind = _config(plan), plan_kind(plan)
    key = ("launch", "accelerate")
    if now and kind != checkpoint.kind:
        message = f"{checkpoint.path} was written {_SPOKEN[checkpoint.kind]}, and this run trains {_SPOKEN[kind]}"
        yield Problem(message, f"name the launch config that it was written with, or {_way_out(checkpoint)}", key)
        return
    for place, old, new in _changed_config(before.accelerate, now):
        message = f"launch.accelerate: {_dotted(place)} was {_shown(old)} and is {_shown(new)}"
        yield Problem(message, f"put it back, or {_way_out(checkpoint)}", key)


def _changed_config(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any, Any]]:
    if not before or not now:
        return
    old, new = (dict(_leaves(config)) for config in (before, now))
    for key in dict.fromkeys((*old, *new)):
        if key[0] not in _PLACES and old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _adapter(plan: Plan, checkpoint: Checkpoint) -> Iterator[Problem]:
    if checkpoint.has_adapter == plan.recipe.trains_adapter:
        return
    held, trained = ("an adapter", "all weights") if checkpoint.has_adapter else ("all weights", "an adapter")
    message = f"{checkpoint.path} holds {held}, and this recipe trains {trained}"
    yield Problem(message, _way_out(checkpoint), ("peft",))


def _data(plan: Plan, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Problem]:
    """Files of the training data that were changed since: the rows that are left would be others."""
    entries = zip(before.get("data") or (), now["data"], plan.recipe.data.train, strict=False)
    for index, (old, new, entry) in enumerate(entries):
        if _contents(old) != _contents(new):
            message = f"the files of {entry.path} have changed since the checkpoint was written"
            yield Problem(message, "put them back, or start again with --overwrite", ("data", "train", index, "path"))


def _contents(entry: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What is in the files, wherever they lie. Of large ones it is the size: their time changes with a copy."""
    files = (entry.get("files") or {}).items()
    return [(Path(path).name, about.get("bytes"), about.get("sha256")) for path, about in files]


def _base(plan: Plan, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Problem]:
    old, new = (((stack.get("models") or {}).get("model") or {}).get("fingerprint") for stack in (before, now))
    if plan.recipe.trains_adapter and old and new and old != new:
        message = f"the weights of {plan.recipe.model.path} have changed since the checkpoint was written"
        yield Problem(message, "put back those that the adapter was trained on", ("model", "path"))


def _packages(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = before.get("packages") or {}, now["packages"]
    changed = [f"{name} {old[name]} -> {new[name]}" for name in _PACKAGES if name in old and old[name] != new.get(name)]
    if changed:
        yield f"the checkpoint was written with other versions, and figures may differ: {', '.join(changed)}"


def _longer(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    lengths = [
        {name: (recipe.get("training") or {}).get(name) for name in ("max_steps", "num_train_epochs")}
        for recipe in (before, now)
    ]
    if lengths[0] != lengths[1]:
        yield "the run has another length now: a learning rate that decays follows the new one from here on"


# --- reading and wording ---------------------------------------------------------------------------------------------


def _read(run: Path) -> _Before:
    return _Before(_yaml(run / RECIPE_FILE), _yaml(run / ACCELERATE_FILE), _json(run / "stack.json"))


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _way_out(checkpoint: Checkpoint) -> str:
    weights = f"{checkpoint.path.parent}@{checkpoint.step}"
    return f"begin a run of its own from its weights (model.path: {weights}, another output_dir)"


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))


def _shown(value: Any) -> str:
    if value is None:
        return "not said"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
