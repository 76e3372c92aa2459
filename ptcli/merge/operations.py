"""From the tensors of an adapter to what is done to each tensor of the base. Every one is used exactly once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ptcli.errors import Problem
from ptcli.merge.adapter import Adapter
from ptcli.merge.base import Base
from ptcli.merge.experts import expert_changes, is_fused, streams_parameters
from ptcli.merge.model import AddBias, AddLora, Operation, Output, Replace, ReplaceRows, Tensor
from ptcli.merge.names import CONV1D, FUSED_EXPERTS, SCORE_HEADS, Names, is_head, is_input
from ptcli.merge.scales import rank_of, scale_of

_PREFIX = re.compile(r"^base_model\.model\.")
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_(?P<side>[AB])\.weight|lora_embedding_(?P<table>[AB])|lora_B\.(?P<bias>bias)|"
    r"token_adapter\.(?P<rows>trainable_tokens_delta)|"
    r"(?P<copy>(?:token_adapter\.)?base_layer\.|modules_to_save\.|original_module\.)?(?P<whole>weight|bias))"
)
SCORING = ("SEQ_CLS", "TOKEN_CLS")
"""PEFT's tasks of models that give scores in the place of text."""
_FLOATS = ("F32", "F16", "BF16")
_SHOWN = 3
"""Problems of one kind that are named, before they are only counted."""


@dataclass
class Pair:
    """What an adapter has for one module."""

    module: str
    parts: dict[str, Tensor] = field(default_factory=dict)
    """By kind: `A`, `B`, `table A`, `table B`, `bias`, `rows`, `weight`, and `whole bias`."""


@dataclass
class Consumed:
    """What is done to the tensors of a base, by their names in the checkpoint."""

    operations: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors that get another shape: embeddings of a larger vocabulary."""
    added: list[Output] = field(default_factory=list)
    """Heads of classifiers and reward models, which a language model does not have."""
    problems: list[Problem] = field(default_factory=list)
    handover: list[str] = field(default_factory=list)
    """Why it is for PEFT to merge."""
    modules: list[str] = field(default_factory=list)
    """Modules with a pair A and B."""


def consume(adapter: Adapter, base: Base, names: Names) -> Consumed:
    """Turn every tensor of a LoRA adapter into an operation, or into a problem."""
    found = Consumed()
    pairs = _sort(adapter, found)
    if not streams_parameters(adapter.config.get("target_parameters"), names):
        found.handover.append("`target_parameters` of this model are merged by PEFT itself")
        return found
    missing = [pair.module for pair in pairs.values() if not _known(pair, adapter.config, base, names)]
    if missing:
        found.problems.append(_wrong_base(missing, base))
    for pair in pairs.values():
        if pair.module not in missing:
            _consume_pair(pair, adapter.config, base, names, found)
    found.problems += _not_numbers(base, found)
    return found


def _not_numbers(base: Base, found: Consumed) -> Iterator[Problem]:
    """Tensors of the base that are to be changed, and are of no type that sums are made in."""
    for name in found.operations:
        tensor = base.tensors.get(name)
        if tensor is not None and tensor.dtype not in _FLOATS:
            message = f"{name} of the base {base.name} is {tensor.dtype}, into which nothing is merged"
            yield Problem(message, "give a base in bf16, fp16 or fp32: --base PATH")
            return


def _sort(adapter: Adapter, found: Consumed) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    unknown = []
    for key, tensor in adapter.tensors.items():
        match = _KEY.fullmatch(_PREFIX.sub("", key))
        if match is None:
            unknown.append(key)
            continue
        parts = pairs.setdefault(match["module"], Pair(match["module"])).parts
        if not _is_said_twice(match, parts):
            parts[_part(match)] = tensor
    if unknown:
        found.handover.append(f"{unknown[0]} is no tensor of a plain LoRA")
    return pairs


def _is_said_twice(match: re.Match[str], parts: Mapping[str, Tensor]) -> bool:
    """A module trained whole, of a model whose vocabulary has grown, is saved three times: by itself, from its wrapper,
    and as it was before training, which nothing uses."""
    return match["copy"] == "original_module." or (match["copy"] == "modules_to_save." and _part(match) in parts)


def _part(match: re.Match[str]) -> str:
    if match["table"]:
        return f"table {match['table']}"
    if match["whole"]:
        return "weight" if match["whole"] == "weight" else "whole bias"
    return match["side"] or match["bias"] or "rows"


def _known(pair: Pair, config: Mapping[str, Any], base: Base, names: Names) -> bool:
    """Whether the base has the module. A tied head is there without being in the files."""
    if is_fused(pair.module) or _is_new_head(pair, config):
        return True  # see `_fused`, `_new_head`
    tied = is_head(pair.module) and base.tied
    return tied or any(names.find(f"{pair.module}.{leaf}") for leaf in ("weight", "bias"))


def _is_new_head(pair: Pair, config: Mapping[str, Any]) -> bool:
    """A head that gives scores: trained whole, on a language model that has none."""
    scores = str(config.get("task_type")) in SCORING and pair.module in SCORE_HEADS
    return scores and pair.parts.keys() <= {"weight", "whole bias"}


def _new_head(pair: Pair, base: Base, names: Names, found: Consumed) -> None:
    inputs = base.tensors[names.inputs() or next(iter(base.tensors))]
    for part, leaf in (("weight", "weight"), ("whole bias", "bias")):
        if part in pair.parts:
            tensor = pair.parts[part]
            found.added.append(Output(f"{pair.module}.{leaf}", inputs.dtype, tensor.shape, None, (Replace(tensor),)))


def _wrong_base(missing: list[str], base: Base) -> Problem:
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    message = f"the adapter changes modules that the base {base.name} does not have: {shown}"
    return Problem(message, "give the base that it was trained on: --base PATH")


def _consume_pair(pair: Pair, config: Mapping[str, Any], base: Base, names: Names, found: Consumed) -> None:
    weight = names.find(f"{pair.module}.weight")
    if weight is None and _is_new_head(pair, config):
        return _new_head(pair, base, names, found)
    if weight is None and is_head(pair.module) and base.tied:
        weight = f"{pair.module}.weight"
    _whole_tensors(pair, weight, base, names, found)
    parts = pair.parts
    if is_fused(pair.module) and "A" in parts and "B" in parts:
        _fused(pair, parts["A"], parts["B"], config, base, names, found)
    for first, second in (("A", "B"), ("table A", "table B")):
        if (first in parts) != (second in parts):
            there, lacking = (first, second) if first in parts else (second, first)
            message = f"{parts[there].name} has no lora_{lacking.replace('table ', 'embedding_')} beside it"
            found.problems.append(Problem(message, "the adapter is not whole: save it again"))
    if "A" in parts and "B" in parts and weight:
        _low_rank(pair, parts["A"], parts["B"], weight, config, base, names, found)
    if "table A" in parts and "table B" in parts and weight:
        _table(pair, parts["table A"], parts["table B"], weight, config, base, found)
    if "bias" in parts:
        _bias(pair, config, names, found)
    if "rows" in parts and weight:
        _rows(pair, weight, config, base, names, found)


def _whole_tensors(pair: Pair, weight: str | None, base: Base, names: Names, found: Consumed) -> None:
    """`modules_to_save`, trained biases, and the copy of an embedding that PEFT saves beside its change."""
    bias = names.find(f"{pair.module}.bias")
    for part, name in (("weight", weight), ("whole bias", bias)):
        tensor = pair.parts.get(part)
        if tensor is None:
            continue
        if name is None:
            message = f"the adapter holds {tensor.name}, and {pair.module} of the base {base.name} has no such tensor"
            found.problems.append(Problem(message, "give the base that it was trained on: --base PATH"))
            continue
        shape = _shape(name, base, names)
        if tensor.shape != shape and not _resized(pair.module, tensor.shape, shape):
            found.problems.append(_other_shape(tensor, name, shape, base))
        elif tensor.shape != shape:
            found.shapes[name] = tensor.shape
        found.operations[name].append(Replace(tensor))


def _shape(name: str, base: Base, names: Names) -> tuple[int, ...]:
    """Shape of a tensor of the base; of a tied head that of the input embeddings."""
    tensor = base.tensors.get(name) or base.tensors.get(names.inputs() or "")
    return tensor.shape if tensor else ()


def _resized(module: str, mine: tuple[int, ...], base: tuple[int, ...]) -> bool:
    return (is_input(module) or is_head(module)) and len(mine) == len(base) and mine[1:] == base[1:]


def _other_shape(tensor: Tensor, name: str, shape: tuple[int, ...], base: Base) -> Problem:
    told = f"{name} of {base.name} is {_by(shape)}, and the adapter's {tensor.name} is {_by(tensor.shape)}"
    return Problem(f"the adapter does not fit the base: {told}", "give the base that it was trained on: --base PATH")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# --- low rank --------------------------------------------------------------------------------------------------------


def _low_rank(
    pair: Pair, a: Tensor, b: Tensor, weight: str, config: Mapping[str, Any], base: Base, names: Names, found: Consumed
) -> None:
    shape = found.shapes.get(weight) or _shape(weight, base, names)
    if len(a.shape) != 2 or len(b.shape) != 2 or len(shape) != 2:
        found.handover.append(f"{pair.module} is no linear layer")
        return
    expert = names.is_expert(pair.module)
    if expert and names.model_type not in FUSED_EXPERTS:
        found.handover.append(f"experts of {names.model_type or 'a model without a type'} are merged by PEFT itself")
        return
    transposed = names.model_type in CONV1D and not is_head(pair.module)
    outputs, inputs = reversed(shape) if transposed else shape
    if config.get("fan_in_fan_out") and names.model_type not in CONV1D:
        found.handover.append("`fan_in_fan_out` is set, and only PEFT knows which layers it is true of")
        return
    if (b.shape[0], a.shape[1]) != (outputs, inputs):
        found.problems.append(_other_shape(a if a.shape[1] != inputs else b, weight, shape, base))
        return
    if _fits(pair, a, b, a.shape[0], b.shape[1], config, found):
        scale = scale_of(config, pair.module, a.shape[0])
        found.operations[weight].append(AddLora(a, b, scale, transposed=transposed, rounded=expert))
        found.modules.append(pair.module)


def _fused(
    pair: Pair, a: Tensor, b: Tensor, config: Mapping[str, Any], base: Base, names: Names, found: Consumed
) -> None:
    """All experts of a layer at once."""
    changes = list(expert_changes(pair.module, a, b, config, base, names))
    if not changes or a.dtype not in _FLOATS or b.dtype not in _FLOATS:
        found.handover.append(f"{a.name} is {_by(a.shape)}, of which only PEFT knows what it changes")
    for name, change in changes:
        found.operations[name].append(change)


def _table(
    pair: Pair, a: Tensor, b: Tensor, weight: str, config: Mapping[str, Any], base: Base, found: Consumed
) -> None:
    """Embeddings: A is (rank, tokens), B is (width, rank), and the table (tokens, width)."""
    tensor = base.tensors.get(weight)
    shape = found.shapes.get(weight) or (tensor.shape if tensor else ())
    if len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[1], b.shape[0]) != shape:
        found.problems.append(_other_shape(a if a.shape[1:] != shape[:1] else b, weight, shape, base))
        return
    if _fits(pair, a, b, a.shape[0], b.shape[1], config, found):
        scale = scale_of(config, pair.module, a.shape[0])
        found.operations[weight].append(AddLora(a, b, scale, transposed=True, rounded=True))
        found.modules.append(pair.module)


def _fits(pair: Pair, a: Tensor, b: Tensor, rank: int, other: int, config: Mapping[str, Any], found: Consumed) -> bool:
    """Whether A and B have the rank that the config says, and a dtype that PEFT computes in float32."""
    wanted = rank_of(config, pair.module)
    if rank != other or rank != wanted:
        message = f"{a.name} has rank {rank}, {b.name} {other}, and the adapter's config says {wanted}"
        found.problems.append(Problem(message, "config and weights are not of the same adapter"))
        return False
    strange = next((each for each in (a, b) if each.dtype not in _FLOATS), None)
    if strange:
        found.handover.append(f"{strange.name} is {strange.dtype}")
    return strange is None


def _bias(pair: Pair, config: Mapping[str, Any], names: Names, found: Consumed) -> None:
    tensor, name = pair.parts["bias"], names.find(f"{pair.module}.bias")
    a = pair.parts.get("A")
    if name is None:
        message = f"the adapter has a bias for {pair.module} (`lora_bias`), and the base's layer has none to add it to"
        found.problems.append(Problem(message, "PEFT cannot merge it either; serve it with PEFT"))
    elif a is not None:
        found.operations[name].append(AddBias(tensor, scale_of(config, pair.module, a.shape[0])))


def _rows(pair: Pair, weight: str, config: Mapping[str, Any], base: Base, names: Names, found: Consumed) -> None:
    """Rows of an embedding that were trained by themselves: they replace those of the base."""
    tensor, given = pair.parts["rows"], config.get("trainable_token_indices")
    rows = given if isinstance(given, list) else _rows_of(given, pair.module)
    shape = found.shapes.get(weight) or _shape(weight, base, names)
    if rows is None or not shape:
        found.handover.append(f"which rows {tensor.name} holds is for PEFT to tell")
    elif tensor.shape != (len(rows), *shape[1:]) or not all(0 <= row < shape[0] for row in rows):
        message = f"{tensor.name} is {_by(tensor.shape)} for {len(rows)} tokens of {weight}, {_by(shape)}"
        found.problems.append(Problem(message, "config, weights and base are not of the same adapter"))
    else:
        found.operations[weight].append(ReplaceRows(tuple(rows), tensor))


def _rows_of(given: Any, module: str) -> list[int] | None:
    for name, rows in given.items() if isinstance(given, Mapping) else ():
        if (module == name or module.endswith(f".{name}")) and isinstance(rows, list):
            return rows
    return None


# --- what should be there --------------------------------------------------------------------------------------------


def lacking(adapter: Adapter, base: Base, names: Names, modules: list[str]) -> list[str]:
    """Modules of the base that the adapter's config targets, and that the adapter has no tensors for.

    A kind of module (a name without its numbers) that is absent as a whole is lacking only when its target has nothing
    else: the vision tower of a model that was trained for text is not.
    """
    trained = {(names.find(f"{module}.weight") or module).removesuffix(".weight") for module in modules}
    kinds = {_kind(module) for module in trained}
    targets = adapter.config.get("target_modules")
    bare = [each for each in targets if not any(_matches(module, [each]) for module in trained | set(modules))] if (
        isinstance(targets, list)) else []  # fmt: skip
    absent = (module for module in _targeted_in(base, adapter.config) if module not in trained)
    return [module for module in absent if _kind(module) in kinds or _matches(module, bare)]


def _targeted_in(base: Base, config: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in base.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(tensor.shape) == 2 and _targeted(module, config, base.config):
            yield module


def _kind(module: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", re.sub(r"\.\d+\.", ".*.", module))


def _targeted(module: str, config: Mapping[str, Any], base_config: Mapping[str, Any]) -> bool:
    """Whether PEFT's config means the module (`peft.tuners.tuners_utils.check_target_module_exists`)."""
    if _matches(module, config.get("exclude_modules")) or not _matches(module, config.get("target_modules")):
        return False
    layer = re.match(r".*\.[^.]*\.(\d+)\.", module)
    chosen = config.get("layers_to_transform")
    if chosen is not None and not isinstance(config.get("target_modules"), str):
        return layer is not None and int(layer[1]) in (chosen if isinstance(chosen, list) else [chosen])
    count = base_config.get("num_hidden_layers")
    return layer is None or not isinstance(count, int) or int(layer[1]) < count


def _matches(module: str, given: Any) -> bool:
    if isinstance(given, str):
        return re.fullmatch(given, module) is not None
    return any(module == each or module.endswith(f".{each}") for each in given or ())
