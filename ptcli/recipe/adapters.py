"""The `peft` section against the method, the model's config and the tensors in its files.

What holds of PEFT's types was tried with peft 0.21.2 and trl 1.12.0, each type with each method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS, Method
from ptcli.recipe.adapter_folders import TASKS, VIRTUAL_TOKENS, adapter_folder
from ptcli.recipe.local_models import adapter_config, local_modules, read_model_config
from ptcli.recipe.model import Recipe
from ptcli.recipe.suggest import nearest

UNTRAINABLE: Mapping[str, str] = {
    "adalora": "its ranks are only adapted by a call after each step, which TRL's trainers do not make",
    "adaption_prompt": "it needs attention layers of an older transformers",
    "cartridge": "its attention mask is too short for the pinned transformers",
    "cpt": "it needs the labels of its own tokens in every batch, which TRL's trainers do not pass",
    "multitask_prompt_tuning": "it needs task_ids in every batch, which TRL's trainers do not pass",
    "poly": "it needs task_ids in every batch, which TRL's trainers do not pass",
    "prefix_tuning": "its attention mask is too short for the pinned transformers",
    "xlora": "it mixes adapters that are trained already, and none of TRL's trainers turns the cache off for it",
}
"""PEFT types that no trainer can train, and why."""

NEEDED: Mapping[str, tuple[str, ...]] = {
    "prompt_tuning": ("num_virtual_tokens",),
    "p_tuning": ("num_virtual_tokens",),
    "trainable_tokens": ("token_indices",),
}
"""Type -> fields that PEFT gives no usable default."""

_NEEDS_DATA = ("eva", "corda", "lora_ga")
"""Values of `init_lora_weights` that are computed from activations or gradients on data, before training."""
_REFUSED: Mapping[str, str] = {
    "megatron_config": "is for models of Megatron, which ptcli does not train",
    "arrow_config": "routes between adapters that are trained already",
}
_PLAIN = frozenset({
    "type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "bias",
    "target_modules", "modules_to_save", "layers_to_transform", "trainable_token_indices", "ensure_weight_tying",
})  # fmt: skip
"""Fields of LoRA that the checks here know all about."""
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_TRAINED = ("modules_to_save", "target_modules")
_EMBEDDINGS = ("embed_tokens", "wte", "lm_head")
"""Names of the input and output embeddings, which are one tensor in many models."""


def check_peft(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with the recipe's `peft` section, as far as the files on this machine tell."""
    peft = recipe.peft
    if peft is None:
        return
    row, kind = METHODS[recipe.method], str(peft.get("type", "lora"))
    yield from _check_type(kind, peft, row)
    yield from _check_task(peft, row)
    if kind == "lora":
        yield from _check_numbers(peft)
    yield from _check_start(peft)
    yield from _check_output_layer(recipe, row)
    yield from _check_against_model(recipe, peft)


def _check_type(kind: str, peft: Mapping[str, Any], row: Method) -> Iterator[Problem]:
    key: KeyPath = ("peft", "type")
    if kind in UNTRAINABLE:
        yield Problem(f"`peft.type: {kind}` cannot be trained here: {UNTRAINABLE[kind]}", "use lora", key)
        return
    if kind in VIRTUAL_TOKENS and not row.virtual_tokens:
        message = f"{row.name} does not know of the tokens that {kind} puts before a row's own"
        able = ", ".join(each.name for each in METHODS.values() if each.virtual_tokens)
        yield Problem(message, f"use lora, or one of {able}", key)
    if kind == "trainable_tokens" and row.head != "causal_lm":
        yield Problem(f"trainable_tokens has no place for the score head that {row.name} trains", "use lora", key)
    for name in NEEDED.get(kind, ()):
        if not peft.get(name):
            yield Problem(f"`peft.type: {kind}` needs `{name}`", f"add `{name}:` to `peft`", ("peft",))


def _check_task(peft: Mapping[str, Any], row: Method) -> Iterator[Problem]:
    """PEFT trains and saves a score head only where the task says that there is one."""
    task = peft.get("task_type")
    if task is not None and task != TASKS[row.head]:
        message = f"`peft.task_type: {task}` is not the task of {row.name}, which is {TASKS[row.head]}"
        yield Problem(message, "leave it out", ("peft", "task_type"))


def _check_numbers(peft: Mapping[str, Any]) -> Iterator[Problem]:
    """Sizes of LoRA that PEFT refuses once the model is loaded, or that leave nothing to train."""
    for name in ("r", "lora_alpha"):
        value = peft.get(name)
        if isinstance(value, int) and value < 1:
            yield Problem(f"`peft.{name}` must be at least 1, not {value}", "", ("peft", name))
    dropout = peft.get("lora_dropout")
    if isinstance(dropout, int | float) and not 0 <= dropout < 1:
        yield Problem(f"`peft.lora_dropout` is a probability below 1, not {dropout:g}", "", ("peft", "lora_dropout"))


def _check_start(peft: Mapping[str, Any]) -> Iterator[Problem]:
    start = peft.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_NEEDS_DATA):
        message = f"`init_lora_weights: {start}` is computed from a pass over data before training, which ptcli has not"
        yield Problem(message, "use pissa or olora, which need no data, or true", ("peft", "init_lora_weights"))
    if start == "loftq" and not peft.get("loftq_config"):
        message = "`init_lora_weights: loftq` needs `loftq_config`"
        yield Problem(message, "write for example `loftq_config: {loftq_bits: 4}`", ("peft", "init_lora_weights"))
    for name, why in _REFUSED.items():
        if peft.get(name):
            yield Problem(f"`peft.{name}` {why}", "leave it out", ("peft", name))


def _check_output_layer(recipe: Recipe, row: Method) -> Iterator[Problem]:
    """An adapter on the output layer where the loss reads that layer's own weight, and so would not train it."""
    targets = (recipe.peft or {}).get("target_modules")
    named = targets if isinstance(targets, list) else [targets]
    if not any(str(each).rpartition(".")[2] == "lm_head" for each in named):
        return
    key: KeyPath = ("peft", "target_modules")
    liger = recipe.training.get("use_liger_kernel") is True
    chunked = recipe.training.get("loss_type") in (None, "chunked_nll")
    fix = "leave lm_head out"
    if row.reads_output_layer == "always" or (liger and row.reads_output_layer != "no"):
        why = "with Liger kernels " if liger else ""
        yield Problem(f"{row.name} {why}reads lm_head's own weight, and would not train an adapter on it", fix, key)
    elif row.reads_output_layer == "chunked" and chunked:
        message = f"{row.name}'s chunked loss reads lm_head's own weight, and would not train an adapter on it"
        yield Problem(message, f"{fix}, or set training.loss_type: nll", key)


# --- against the model -----------------------------------------------------------------------------------------------


def _check_against_model(recipe: Recipe, peft: Mapping[str, Any]) -> Iterator[Problem]:
    config = read_model_config(recipe.model.path, recipe.model.revision) or {}
    shapes = {} if "vision_config" in config else local_modules(recipe.model.path)
    yield from _check_layers(peft.get("layers_to_transform"), config)
    yield from _check_tokens(peft, config, shapes)
    if not shapes:
        return
    yield from _check_saved(peft.get("modules_to_save"), shapes, METHODS[recipe.method])
    yield from _check_parameters(peft.get("target_parameters"), shapes, config)


def _check_layers(layers: Any, config: Mapping[str, Any]) -> Iterator[Problem]:
    count = next((config[name] for name in _LAYER_COUNTS if isinstance(config.get(name), int)), None)
    given = [layers] if isinstance(layers, int) else layers or []
    beyond = [layer for layer in given if isinstance(layer, int) and count is not None and not 0 <= layer < count]
    if beyond:
        message = f"the model has no layer {beyond[0]}: its layers are 0 to {count - 1 if count else 0}"
        yield Problem(message, "", ("peft", "layers_to_transform"))


def _check_tokens(
    peft: Mapping[str, Any], config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Problem]:
    """Indices of tokens to train against the rows of the embeddings."""
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens")), config.get("vocab_size"))
    for field in ("trainable_token_indices", "token_indices"):
        for index in _token_indices(peft.get(field)):
            if isinstance(rows, int) and not 0 <= index < rows:
                message = f"there is no token {index}: the model's embeddings have {rows} rows"
                yield Problem(message, "", ("peft", field))
                break


def _token_indices(given: Any) -> Iterable[int]:
    lists = given.values() if isinstance(given, Mapping) else [given]
    return (index for each in lists if isinstance(each, list) for index in each if isinstance(index, int))


def _check_saved(names: Any, shapes: Mapping[str, tuple[int, ...]], row: Method) -> Iterator[Problem]:
    heads = () if row.head == "causal_lm" else ("score", "classifier")
    known = {part for name in shapes for part in name.split(".")} | set(heads)
    for index, name in enumerate(names if isinstance(names, list) else []):
        whole = name in shapes or any(each.endswith(f".{name}") for each in shapes)
        if name in known or whole:
            continue
        near = nearest(str(name), sorted(known))
        fix = f"did you mean `{near}`?" if near else f"names look like {next(iter(shapes))}"
        yield Problem(f"the model has no module `{name}` to save", fix, ("peft", "modules_to_save", index))


def _check_parameters(
    names: Any, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> Iterator[Problem]:
    """Experts are one tensor in memory and many in files: their names are left to the check with the model itself."""
    if any("experts" in key for key in config):
        return
    tensors = [f"{name}.weight" for name in shapes]
    for index, name in enumerate(names if isinstance(names, list) else []):
        if not any(each == name or each.endswith(f".{name}") for each in tensors):
            fix = f"names look like {tensors[-1]}; linear layers are target_modules"
            yield Problem(f"the model has no parameter `{name}`", fix, ("peft", "target_parameters", index))


def known_from_files(recipe: Recipe) -> bool:
    """True when the files have told all that PEFT could say of the section: LoRA, on a local model without experts."""
    peft, config = recipe.peft or {}, read_model_config(recipe.model.path, recipe.model.revision) or {}
    plain = peft.get("type", "lora") == "lora" and set(peft) <= _PLAIN
    return plain and not any("experts" in key for key in config) and bool(local_modules(recipe.model.path))


def tied_embeddings(recipe: Recipe) -> list[str]:
    """Names among what the adapters train that are one tensor with another that they do not train.

    The adapters are the recipe's own and the one that the model's path is, whose change is merged or trained on.
    """
    config = read_model_config(recipe.model.path, recipe.model.revision) or {}
    if not config.get("tie_word_embeddings", False):
        return []
    untied = [section for section in _adapters(recipe) if not section.get("ensure_weight_tying")]
    trained = [name for each in untied for key in _TRAINED for name in _names(each.get(key))]
    return [name for name in trained if name.rpartition(".")[2] in _EMBEDDINGS]


def _adapters(recipe: Recipe) -> list[Mapping[str, Any]]:
    folder = adapter_folder(recipe.model) if recipe.model.adapter in ("continue", "merge") else None
    return [recipe.peft or {}, (adapter_config(folder) if folder else None) or {}]


def _names(given: Any) -> list[str]:
    return [str(each) for each in given] if isinstance(given, list) else []
