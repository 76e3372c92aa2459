"""The weights that an adapter adds to a model and trains, from PEFT's own rules of which modules it goes on.

LoRA (Hu et al., 2021, section 4.1) puts A of r x in and B of out x r beside a matrix of out x in; DoRA (Liu et al.,
2024, section 4.1) a magnitude for each of its outputs besides. Names and rules are those of peft 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ptcli.methods import Head
from ptcli.plan.memory.architecture import Architecture, Weight

_USUAL_RANK = 8
_USUAL_TARGETS: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), ("q_proj", "v_proj")
)
"""What PEFT takes where `target_modules` is not given; it refuses the other types."""
_NEW_HEADS = ("score", "classifier")
_OTHER_SIZES = ("use_qalora", "alora_invocation_tokens", "velora_config", "use_bdlora", "monteclora_config")
"""Fields of LoRA with which its matrices have other sizes."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter trains."""

    matrices: tuple[Weight, ...]
    """New weights."""
    copies: tuple[Weight, ...] = ()
    """Copies of whole modules (`modules_to_save`)."""
    unfrozen: tuple[Weight, ...] = ()
    """Weights of the model itself (`bias`)."""

    @property
    def parameters(self) -> int:
        """Values that are trained."""
        return sum(weight.size for weight in (*self.matrices, *self.copies, *self.unfrozen))


def describe_adapter(architecture: Architecture, peft: Mapping[str, Any], head: Head) -> Adapter | None:
    """The adapter of a recipe's `peft` section on this model; None where its weights cannot be counted: a type other
    than LoRA, or a variant of it with other matrices."""
    if str(peft.get("type", "lora")).lower() != "lora" or any(peft.get(name) for name in _OTHER_SIZES):
        return None
    saved = _saved(peft, head)
    try:
        targets = [weight for weight in _layers(architecture) if _is_target(weight, architecture, peft, saved, head)]
        matrices = (
            *(each for weight in targets for each in _matrices(weight, peft)),
            *_stacked(architecture, peft),
            *_tokens(architecture, peft),
        )
    except (re.error, TypeError, ValueError):
        return None
    return Adapter(matrices, tuple(_copies(architecture, saved)), tuple(_biases(architecture, peft, targets)))


def _layers(architecture: Architecture) -> Iterator[Weight]:
    """Weights that LoRA can go on: linear layers, embeddings, and a head that is the embeddings once more."""
    for weight in architecture.weights:
        if weight.linear or weight.part == "embeddings":
            yield weight
    if architecture.tied:
        yield from _tied_head(architecture)


def _tied_head(architecture: Architecture) -> Iterator[Weight]:
    embeddings = next((each for each in architecture.weights if each.part == "embeddings"), None)
    if embeddings is not None:
        yield Weight("lm_head.weight", embeddings.shape, "head", linear=True)


def _saved(peft: Mapping[str, Any], head: Head) -> tuple[str, ...]:
    """Modules that are trained whole; PEFT adds a new head where the task says that there is one."""
    said = tuple(map(str, peft.get("modules_to_save") or ()))
    return said if head == "causal_lm" else (*said, *_NEW_HEADS)


def _is_target(
    weight: Weight, architecture: Architecture, peft: Mapping[str, Any], saved: Iterable[str], head: Head
) -> bool:
    name, targets = weight.module, peft.get("target_modules")
    if _named(name, peft.get("exclude_modules")) or any(re.match(rf"(^|.*\.){each}($|\..*)", name) for each in saved):
        return False
    if targets is None:
        targets = () if peft.get("target_parameters") else _USUAL_TARGETS.get(architecture.model_type, ())
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return weight.linear and weight.part != "head"
    return _named(name, targets) and (isinstance(targets, str) or _in_layers(name, peft))


def _named(module: str, names: Any) -> bool:
    """Whether the names mean the module: a text is a pattern of the whole name, a list holds ends of it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _in_layers(module: str, peft: Mapping[str, Any]) -> bool:
    layers, patterns = peft.get("layers_to_transform"), peft.get("layers_pattern") or ()
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found = next(filter(None, (re.match(expression, module) for expression in expressions)), None)
    return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)


def _matrices(weight: Weight, peft: Mapping[str, Any]) -> Iterator[Weight]:
    rank, (rows, columns) = _rank(weight.module, peft), weight.shape
    yield Weight(f"{weight.module}.lora_A.weight", (rank, columns), weight.part)
    yield Weight(f"{weight.module}.lora_B.weight", (rows, rank), weight.part)
    if peft.get("lora_bias"):
        yield Weight(f"{weight.module}.lora_B.bias", (rows,), weight.part)
    if peft.get("use_dora"):
        yield Weight(f"{weight.module}.lora_magnitude_vector.weight", (rows,), weight.part)


def _rank(module: str, peft: Mapping[str, Any]) -> int:
    ranks = peft.get("rank_pattern") or {}
    pattern = next((each for each in ranks if re.match(rf"(.*\.)?({each})$", module)), None)
    return int(ranks[pattern] if pattern is not None else peft.get("r", _USUAL_RANK))


def _stacked(architecture: Architecture, peft: Mapping[str, Any]) -> Iterator[Weight]:
    """LoRA on the tensors of all experts (`target_parameters`): A and B for each of them."""
    names = peft.get("target_parameters") or ()
    for weight in architecture.weights:
        if len(weight.shape) == 3 and _named(weight.name, names):
            rank, (count, rows, columns) = _rank(weight.module, peft), weight.shape
            yield Weight(f"{weight.name}.lora_A.weight", (rank * count, columns), weight.part)
            yield Weight(f"{weight.name}.lora_B.weight", (rows, rank * count), weight.part)


def _copies(architecture: Architecture, saved: Iterable[str]) -> Iterator[Weight]:
    names = tuple(saved)
    heads = _tied_head(architecture) if architecture.tied else iter(())
    for weight in (*architecture.weights, *heads):
        if names and weight.module.endswith(names):
            yield Weight(f"{weight.module}.modules_to_save.{weight.name.rpartition('.')[2]}", weight.shape, weight.part)


def _tokens(architecture: Architecture, peft: Mapping[str, Any]) -> Iterator[Weight]:
    """Rows of the embeddings that are trained beside the adapter."""
    indices = peft.get("trainable_token_indices")
    groups = list(indices.values()) if isinstance(indices, Mapping) else [indices] if indices else []
    width = next((each.shape[1] for each in architecture.weights if each.part == "embeddings"), 0)
    yield from (Weight("trainable_tokens_delta", (len(group), width), "embeddings") for group in groups)


def _biases(architecture: Architecture, peft: Mapping[str, Any], targets: Iterable[Weight]) -> Iterator[Weight]:
    kind, on = peft.get("bias", "none"), {weight.module for weight in targets}
    for weight in architecture.weights:
        if weight.name.endswith("bias") and (kind == "all" or (kind == "lora_only" and weight.module in on)):
            yield weight
