"""The adapter: where it is, and whether it is one that can be merged here, by PEFT, or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptcli.errors import Problem, RequestError
from ptcli.merge.headers import read_tensors
from ptcli.merge.hub import download as fetch
from ptcli.merge.model import Tensor
from ptcli.plan.reference import changes_base
from ptcli.recipe.adapter_folders import UNMERGEABLE
from ptcli.recipe.catalogue import fields, peft_types
from ptcli.recipe.files import near_sibling, unreadable
from ptcli.recipe.local_models import (
    ADAPTER_CONFIG,
    BadWeights,
    checkpoint_of,
    is_local,
    local_folder,
    read_json,
    resolve_model_path,
    weight_files,
)
from ptcli.recipe.suggest import nearest

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NO_MERGE = UNMERGEABLE | {
    "prefix_tuning", "multitask_prompt_tuning", "cpt", "cartridge", "adaption_prompt", "xlora", "poly",
}  # fmt: skip
"""Types that add tokens, caches or routing and change no weights."""
_REPEATABLE = ("pissa", "olora")
"""Starts that change the base by a decomposition which PEFT repeats when it loads the adapter."""
_SAYS_NOTHING = frozenset({
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_type", "peft_version",
})  # fmt: skip
"""Keys that every PEFT config has and that change no merge."""
_STREAMED = frozenset({
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "bias", "lora_bias", "modules_to_save", "trainable_token_indices",
    "target_parameters", "fan_in_fan_out", "lora_dropout", "init_lora_weights", "ensure_weight_tying",
    "megatron_core", "loftq_config", "runtime_config", "qalora_group_size",
    "eva_config", "corda_config", "lora_ga_config",
})  # fmt: skip
"""Fields of LoRA that streaming knows all about, or that have nothing to say unless another field does."""
_REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA) counts only from its invocation tokens on, so PEFT does not "
    "support merging it",
    "layer_replication": "it repeats layers of the base that share their weights, and each repetition has its own "
    "change: the merged layers would be one tensor",
}
"""Field -> why an adapter with it has no merge."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on this machine that can be merged."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """By PEFT's key; empty where they are pickled."""
    handover: str
    """Why it is for PEFT to merge; "" where it can be streamed."""


def read_adapter(path: str, *, download: bool = False) -> Adapter:
    """The adapter at a path: a folder, a run directory, `RUN@500`, a hub id (with `download`, fetched if need be).

    Raises RequestError when it is not there, not whole, or no merge of it exists; with all that is wrong.
    """
    folder = find_adapter(path, download=download)
    config = read_json(folder / ADAPTER_CONFIG)
    if config is None:
        why = unreadable(folder / ADAPTER_CONFIG) or "is not a JSON mapping"
        raise RequestError(f"{folder / ADAPTER_CONFIG} {why}")
    weights, problems = _find_weights(folder), list(_check_config(config, folder))
    tensors: dict[str, Tensor] = {}
    if weights is None:
        problems.append(Problem(f"{folder} has no adapter weights ({WEIGHTS})"))
    elif weights.suffix == ".safetensors":
        try:
            tensors = read_tensors(weights)
        except BadWeights as error:
            problems.append(Problem(f"{weights} {error}"))
    if problems or weights is None:
        raise RequestError(problems)
    return Adapter(folder, config, tensors, _why_handed_over(config, weights))


def find_adapter(path: str, *, download: bool = False) -> Path:
    """Folder of the adapter that a path means. Of a run, the one at its top: what lies in `ref/` is the frozen
    reference that training started from."""
    missing = _missing_checkpoint(path)
    if missing:
        raise RequestError(missing)
    resolved = resolve_model_path(os.path.expanduser(path))
    folder = local_folder(resolved)
    if folder is None and download and _HUB_ID.fullmatch(resolved):
        folder = fetch(resolved, None, "the adapter", "give its folder")
    if folder is None or not folder.is_dir():
        fix = near_sibling(Path(path)) or ("" if is_local(resolved) else "if it is a hub id, download it first")
        raise RequestError(Problem(f"there is no adapter {path}", fix))
    if not os.path.exists(folder / ADAPTER_CONFIG):
        raise RequestError(_no_adapter(folder))
    return folder


def _missing_checkpoint(path: str) -> Problem | None:
    run = checkpoint_of(path)
    if run is None or (Path(run[0]) / f"checkpoint-{run[1]}").is_dir():
        return None
    return Problem(f"{run[0]} has no checkpoint of step {run[1]}", _checkpoints(Path(run[0])))


def _no_adapter(folder: Path) -> Problem:
    message = f"{folder} is not an adapter: it has no {ADAPTER_CONFIG}"
    if (folder / "config.json").exists() and weight_files(folder):
        return Problem(f"{message}, but a whole model", "there is nothing to merge: serve it as it is")
    return Problem(message, _checkpoints(folder))


def _checkpoints(run: Path) -> str:
    """What to write instead: the last checkpoint of a run that has some."""
    steps = [each.name.removeprefix("checkpoint-") for each in run.glob("checkpoint-*")]
    last = max((int(step) for step in steps if step.isdecimal()), default=None)
    return "" if last is None else f"name one of its checkpoints: {run}@{last}"


def _find_weights(folder: Path) -> Path | None:
    return next((folder / name for name in (WEIGHTS, PICKLED) if os.path.exists(folder / name)), None)


# --- what kind of adapter it is --------------------------------------------------------------------------------------


def _check_config(config: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    kind = str(config.get("peft_type")).lower()
    if kind not in peft_types():
        yield Problem(f"{folder} is an adapter of type {kind}, which the pinned PEFT does not know")
        return
    if kind in _NO_MERGE:
        message = f"{folder} is an adapter of type {kind}, which adds to the model's input and changes no weights"
        yield Problem(message, "there is no merge of it: serve it with PEFT")
        return
    yield from _unknown_keys(config, kind, folder)
    for key, why in _REFUSED.items():
        if config.get(key):
            yield Problem(f"{folder} cannot be merged: {why}", f"it is `{key}` in {ADAPTER_CONFIG}")
    yield from _check_start(config, folder)


def _unknown_keys(config: Mapping[str, Any], kind: str, folder: Path) -> Iterator[Problem]:
    """A newer PEFT may mean something by a key that this one would ignore with a warning."""
    known = fields(peft_types()[kind]).keys() | _SAYS_NOTHING
    for key in config:
        if key not in known:
            near = nearest(key, sorted(known))
            what = f"{folder / ADAPTER_CONFIG} has a key that the pinned PEFT does not know: `{key}`"
            made = f" (the adapter was saved by peft {config['peft_version']})" if config.get("peft_version") else ""
            meant = f"did you mean `{near}`?" if near else "it may change what the adapter computes"
            unset = not config[key] and not near
            yield Problem(what + made, f"{meant}; take it out where that is its default" if unset else meant)


def _check_start(config: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    start = str(config.get("init_lora_weights")).lower()
    if not changes_base(dict(config)):
        return
    if not start.startswith(_REPEATABLE) or "_niter_" in start:
        message = (
            f"{folder} starts with what `init_lora_weights: {start}` took out of its base, which cannot be repeated"
        )
        fix = "save it as a plain LoRA: save_pretrained(path_initial_model_for_weight_conversion=...)"
        yield Problem(message, fix)


def _why_handed_over(config: Mapping[str, Any], weights: Path) -> str:
    kind = str(config.get("peft_type")).lower()
    if kind != "lora":
        return f"{kind} is merged by PEFT itself"
    if weights.suffix != ".safetensors":
        return f"{weights.name} is a pickle"
    if changes_base(dict(config)):
        return f"`init_lora_weights: {config['init_lora_weights']}` has changed the base, which PEFT repeats"
    if config.get("init_lora_weights") == "mica":
        return "`init_lora_weights: mica` is merged by PEFT itself"
    known = fields(peft_types()["lora"])
    used = [
        key
        for key, value in config.items()
        if key not in _STREAMED | _SAYS_NOTHING and value and value != known[key].default
    ]
    return f"`{used[0]}` is merged by PEFT itself" if used else ""
