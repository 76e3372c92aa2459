"""A model path that is itself a PEFT adapter: what the recipe must say of it, and whether it fits its base.

Read from `adapter_config.json` and safetensors headers alone. A folder with an `adapter_config.json` is an adapter,
whatever else is in it: transformers and PEFT load it as one, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.methods import METHODS, Head
from ptcli.recipe.catalogue import peft_types
from ptcli.recipe.local_models import (
    ADAPTER_CONFIG,
    BadWeights,
    adapter_config,
    is_local,
    local_folder,
    module_shapes,
    read_header,
    read_json,
    resolve_model_path,
    weight_files,
)
from ptcli.recipe.model import ModelSpec, Recipe

TASKS: Mapping[Head, str] = {
    "causal_lm": "CAUSAL_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
}
"""PEFT's name for what a model with this head does."""

UNMERGEABLE = frozenset({"beft", "lily", "p_tuning", "prompt_tuning", "shadow"})
"""PEFT types that are no change of weights (tried with peft 0.21.2)."""
VIRTUAL_TOKENS = frozenset({"p_tuning", "prompt_tuning"})
"""Types that put tokens of their own before every row. PEFT cannot train a loaded one on."""

_WORDS = "`adapter: continue` trains it on, `merge` trains its base with it merged in, `new` puts a new one on its base"
_FROZEN_WORDS = "write `adapter: merge`"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_HEADS = re.compile(r"\.(score|classifier)\.")


def adapter_folder(spec: ModelSpec) -> Path | None:
    """Folder of the adapter that a model's path is; None when it is none, or not on this machine."""
    try:
        folder = local_folder(resolve_model_path(spec.path), spec.revision)
    except RequestError:
        return None
    return folder if folder is not None and os.path.exists(folder / ADAPTER_CONFIG) else None


def check_adapters(recipe: Recipe) -> Iterator[Problem]:
    """Problems of every model of the recipe whose path is an adapter, or whose `adapter` says so."""
    for section, head in _sections(recipe):
        spec = getattr(recipe, section)
        folder = adapter_folder(spec)
        if folder is None:
            yield from _superfluous(spec, section)
            continue
        yield from _check_word(spec, section, folder)
        yield from check_folder(folder, head, (section, "path"), word=spec.adapter)
    for index, reward in enumerate(recipe.rewards):
        folder = adapter_folder(ModelSpec(path=reward.use))  # merged, as nothing else can be meant
        if folder is not None:
            yield from check_folder(folder, "sequence_classification", ("rewards", index, "use"))
    yield from _check_new_adapter(recipe)


def check_folder(folder: Path, head: Head, key: KeyPath, *, word: str | None = None) -> list[Problem]:
    """Whether an adapter is whole and fits its base. `head`: what the model shall be loaded with."""
    config = adapter_config(folder)
    if config is None:
        return [Problem(f"{folder / ADAPTER_CONFIG} is not a JSON mapping", "", key)]
    if os.path.exists(folder / "config.json") and _whole_model(folder):
        message = f"{folder} holds both a model and an adapter, and transformers would load the adapter"
        return [Problem(message, "put one of the two into a folder of its own", key)]
    if word == "new":
        return _check_base(config, folder, key)
    header, problem = _read_weights(folder, key)
    if problem:
        return [problem]
    return (
        _check_base(config, folder, key)
        or _check_kind(config, folder, key, word)
        or _check_task(config, header, head, folder, key, word)
        or _check_shapes(config, header, folder, key)
    )


def _sections(recipe: Recipe) -> Iterator[tuple[str, Head]]:
    row = METHODS[recipe.method]
    yield "model", row.head
    for section in ("ref_model", "reward_model", "value_model", "teacher"):
        if getattr(recipe, section) is not None:
            yield section, "sequence_classification" if section in ("reward_model", "value_model") else "causal_lm"


def _superfluous(spec: ModelSpec, section: str) -> Iterator[Problem]:
    known = spec.path.startswith("builtin:") or os.path.isdir(resolve_model_path(spec.path))
    if spec.adapter is not None and known:
        message = f"`{section}.adapter` is for a path that is a PEFT adapter, and {spec.path} is none"
        yield Problem(message, "leave it out", (section, "adapter"))


def _check_word(spec: ModelSpec, section: str, folder: Path) -> Iterator[Problem]:
    key: KeyPath = (section, "path")
    frozen = section != "model"
    if spec.adapter is None:
        base = (adapter_config(folder) or {}).get("base_model_name_or_path") or "a base that it does not name"
        what = f"{folder} is a PEFT adapter of {base}"
        yield Problem(f"{what}: say what to do with it", _FROZEN_WORDS if frozen else _WORDS, key)
    elif frozen and spec.adapter == "new":
        message = f"`{section}` is not trained, so it gets no new adapter"
        yield Problem(message, f"{_FROZEN_WORDS}, or give the path of its base", (section, "adapter"))


def _check_new_adapter(recipe: Recipe) -> Iterator[Problem]:
    """`peft` describes a new adapter, and so goes with `merge` and `new` and not with `continue`."""
    word = recipe.model.adapter
    if word == "continue" and recipe.peft is not None:
        message = "`peft` describes a new adapter, and `model.adapter: continue` trains on the one that is there"
        yield Problem(message, "leave `peft` out, or write merge or new", ("peft",))
    if word == "new" and recipe.peft is None:
        message = "`model.adapter: new` needs a `peft` section that describes the new adapter"
        yield Problem(message, "add `peft:`, or give the path of the base", ("model", "adapter"))


def _whole_model(folder: Path) -> bool:
    return any(not path.name.startswith("adapter_") for path in weight_files(folder))


def _read_weights(folder: Path, key: KeyPath) -> tuple[dict[str, tuple[int, ...]], Problem | None]:
    """Shapes of the adapter's tensors, empty for a pickle, and why they cannot be read."""
    found = next((folder / name for name in _WEIGHTS if os.path.exists(folder / name)), None)
    if found is None:
        return {}, Problem(f"{folder} has no adapter weights ({_WEIGHTS[0]})", "", key)
    if found.suffix != ".safetensors":
        return {}, None
    try:
        return read_header(found), None
    except BadWeights as error:
        return {}, Problem(f"{found} {error}", "", key)


def _check_base(config: Mapping[str, Any], folder: Path, key: KeyPath) -> list[Problem]:
    base, name = config.get("base_model_name_or_path"), f"{folder}/{ADAPTER_CONFIG}"
    if not isinstance(base, str) or not base:
        return [Problem(f"{name} does not say what the adapter's base is", "set base_model_name_or_path there", key)]
    if not is_local(base):
        return []
    if not os.path.isdir(base):
        message = f"the adapter's base {base} is not on this machine"
        return [Problem(message, f"set base_model_name_or_path in {name} to where it is", key)]
    if os.path.exists(Path(base) / ADAPTER_CONFIG) and Path(base) != folder:
        return [Problem(f"the base of {folder} is an adapter itself: {base}", "merge that one first", key)]
    return []


def _check_kind(config: Mapping[str, Any], folder: Path, key: KeyPath, word: str | None) -> list[Problem]:
    kind = str(config.get("peft_type")).lower()
    if kind not in peft_types():
        message = f"{folder} is an adapter of type {kind}, which the pinned PEFT does not know"
        return [Problem(message, "give one that this PEFT has: `ptcli schema` lists them under peft.type", key)]
    if kind in VIRTUAL_TOKENS and word == "continue" and key[0] == "model":
        return [Problem(f"{folder} is an adapter of type {kind}, which PEFT cannot train on once it is saved", "", key)]
    if kind in UNMERGEABLE and (word == "merge" or key[0] != "model"):
        return [Problem(f"{folder} is an adapter of type {kind}, which cannot be merged into its base", "", key)]
    return []


def _check_task(
    config: Mapping[str, Any], header: Mapping[str, Any], head: Head, folder: Path, key: KeyPath, word: str | None
) -> list[Problem]:
    """A head that gives scores is trained with the adapter and saved in it; one that is not there starts at random."""
    task = config.get("task_type")
    if head == "causal_lm" and task in (TASKS["sequence_classification"], TASKS["token_classification"]):
        return [Problem(f"{folder} is the adapter of a model that gives scores ({task}), not text", "", key)]
    if head == "causal_lm" or (key[0] == "model" and word == "merge"):
        return []
    if task != TASKS[head] or (header and not any(map(_HEADS.search, header))):
        message = f"{folder} has no score head: it was trained for {task or 'another task'}"
        fix = "merge it, and train the head" if key[0] == "model" else "give the adapter of a reward model"
        return [Problem(message, fix, key)]
    return []


def _check_shapes(
    config: Mapping[str, Any], header: Mapping[str, tuple[int, ...]], folder: Path, key: KeyPath
) -> list[Problem]:
    """LoRA tensors against the base's: A is (rank, inputs), B is (outputs, rank) of a weight (outputs, inputs)."""
    place = local_folder(config["base_model_name_or_path"], config.get("revision"))
    shapes = module_shapes(place) if place else {}
    if not shapes or "vision_config" in (read_json(place / "config.json") or {} if place else {}):
        return []
    base = config["base_model_name_or_path"]
    for name, shape in header.items():
        match = _LORA.fullmatch(name)
        if match is None or "experts" in name:  # fused in memory, and split in files
            continue
        weight = shapes.get(match["module"])
        if weight is None:
            message = f"{folder} is an adapter for another base: {base} has no module {match['module']}"
            return [Problem(message, "give the adapter's own base", key)]
        size, given = (weight[1], shape[1]) if match["side"] == "A" else (weight[0], shape[0])
        if len(weight) == 2 and len(shape) == 2 and size != given:
            message = (
                f"{folder} is an adapter for another base: {match['module']} of {base} is {weight[0]} x {weight[1]}"
            )
            return [Problem(message, f"the adapter's {name} is {shape[0]} x {shape[1]}", key)]
    return []
