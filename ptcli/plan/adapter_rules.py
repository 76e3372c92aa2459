"""Adapters and quantised models by themselves, and against the rollout server. What goes with which strategy is in
`ptcli.plan.combinations`.

Sources: user-pain.md O8, C5; trl 1.12 and peft 0.21.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.plan.combinations import specs_of
from ptcli.plan.layout import decide_backend
from ptcli.plan.reference import changes_base, has_reference
from ptcli.recipe.adapter_folders import UNMERGEABLE, adapter_folder
from ptcli.recipe.adapters import tied_embeddings
from ptcli.recipe.local_models import adapter_config, read_model_config
from ptcli.recipe.model import ModelSpec, Recipe

TRAINED = ("model", "value_model")
"""Sections whose model is trained."""


def adapter_problems(recipe: Recipe, *, assumed: bool = False) -> list[Problem]:
    """Everything that is wrong. On an `assumed` machine nothing is said about what is installed."""
    return [
        *_nothing_trainable(recipe),
        *_quantization_fields(recipe),
        *_with_vllm(recipe),
        *_changed_base(recipe),
        *([] if assumed else _not_installed(recipe)),
    ]


def adapter_notes(recipe: Recipe) -> list[str]:
    """What a person should know of the adapter before the run."""
    notes = []
    if recipe.model.adapter == "merge":
        notes.append("the model with its adapter merged in is written to start/ in the run directory, and trained from")
    tied = tied_embeddings(recipe)
    if tied:
        notes.append(
            f"the adapter trains {' and '.join(tied)}, one tensor with the other embeddings in this model: after "
            "merging they are two; set peft.ensure_weight_tying: true to train them as one"
        )
    return notes


def _quantized(recipe: Recipe) -> Iterator[tuple[str, ModelSpec, Mapping[str, Any]]]:
    for section, spec in specs_of(recipe):
        if spec.quantization is not None:
            yield section, spec, spec.quantization


def _nothing_trainable(recipe: Recipe) -> Iterator[Problem]:
    """Rounded weights have no gradient: an adapter beside them is what can be trained."""
    for section in TRAINED:
        spec = getattr(recipe, section)
        if spec is None or (section == "model" and recipe.trains_adapter):
            continue
        fix = "add `peft:` to train an adapter" if section == "model" else "leave its quantization out"
        if spec.quantization is not None:
            message = f"`{section}` is quantised, and quantised weights cannot be trained"
            yield Problem(message, fix, (section, "quantization"))
        elif "quantization_config" in (read_model_config(spec.path, spec.revision) or {}):
            message = f"the weights of {spec.path} are quantised, and quantised weights cannot be trained"
            yield Problem(message, fix, (section, "path"))


def _quantization_fields(recipe: Recipe) -> Iterator[Problem]:
    for section, spec, values in _quantized(recipe):
        key = (section, "quantization")
        bits = [name for name in ("load_in_4bit", "load_in_8bit") if values.get(name) is True]
        if len(bits) != 1:
            message = f"`{section}.quantization` says " + ("both 4 and 8 bits" if bits else "nothing of 4 or 8 bits")
            yield Problem(message, "write `load_in_4bit: true` or `load_in_8bit: true`", key)
        if section != "model" and spec.adapter is not None:
            message = f"`{section}` is quantised, and merging its adapter into rounded weights would round that, too"
            yield Problem(message, "leave its quantization out", key)
        if "quantization_config" in (read_model_config(spec.path, spec.revision) or {}):
            message = f"the weights of {spec.path} are quantised already"
            yield Problem(message, f"leave `{section}.quantization` out", key)


def _with_vllm(recipe: Recipe) -> Iterator[Problem]:
    """vLLM gets the adapter merged into the base's own weights."""
    if decide_backend(recipe) != "vllm":
        return
    if tied_embeddings(recipe):
        message = "the adapter trains one of two embeddings that are one tensor in vLLM's model"
        own = recipe.model.adapter is None
        fix = "set peft.ensure_weight_tying: true, or leave them out" if own else "use rollouts.backend: transformers"
        yield Problem(message, fix, ("peft",) if own else ("model", "adapter"))
    if not recipe.trains_adapter:
        return
    kind = str((recipe.peft or {}).get("type", "lora"))
    if kind in UNMERGEABLE:
        message = f"`peft.type: {kind}` cannot be merged into the weights that vLLM gets"
        yield Problem(message, "use lora, or rollouts.backend: transformers", ("peft", "type"))
    if (recipe.peft or {}).get("layer_replication"):
        message = "`peft.layer_replication` makes a model with more layers than vLLM's has"
        yield Problem(message, "use rollouts.backend: transformers", ("peft", "layer_replication"))
    elif recipe.model.quantization and kind not in ("lora", "adalora"):
        message = f"`peft.type: {kind}` on quantised weights cannot be merged into the weights that vLLM gets"
        yield Problem(message, "use lora, or rollouts.backend: transformers", ("peft", "type"))
    if "quantization_config" in (read_model_config(recipe.model.path, recipe.model.revision) or {}):
        message = f"the weights of {recipe.model.path} are quantised, and vLLM would get weights that are not"
        yield Problem(message, "name the original model, and quantise it with model.quantization", ("model", "path"))


def _changed_base(recipe: Recipe) -> Iterator[Problem]:
    """PiSSA and the like start by taking a part out of the base."""
    key = ("peft", "init_lora_weights")
    start = (recipe.peft or {}).get("init_lora_weights")
    row = METHODS[recipe.method]
    if changes_base(recipe.peft):
        if has_reference(recipe) and "ref_model" not in row.takes:
            message = f"`init_lora_weights: {start}` changes the base, which {row.name} takes for its reference"
            yield Problem(message, "set training.beta: 0, or init_lora_weights: true", key)
        if recipe.model.quantization is not None and start != "olora":
            yield Problem(
                f"`init_lora_weights: {start}` needs weights that are not quantised", "use olora or true", key
            )
    folder = adapter_folder(recipe.model) if recipe.model.adapter == "continue" else None
    if folder and changes_base(adapter_config(folder)) and row.reference != "none" and row.keeps_adapter:
        message = f"{folder} changes its base, and the frozen copy that {row.name} makes would change it once more"
        yield Problem(message, "write `adapter: merge`", ("model", "adapter"))


def _not_installed(recipe: Recipe) -> Iterator[Problem]:
    for section, _, _ in _quantized(recipe):
        if importlib.util.find_spec("bitsandbytes") is None:
            message = f"`{section}.quantization` needs bitsandbytes, which is not installed"
            yield Problem(message, "pip install 'ptcli[quantization]'", (section, "quantization"))
