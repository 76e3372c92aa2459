"""From the tensors of an adapter to what is done to each tensor of the base. Every one is used exactly once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptcli.errors import Problem
from ptcli.merge.adapter import Adapter
from ptcli.merge.base import Base
from ptcli.merge.experts import expert_changes, is_fused, streams_parameters
from ptcli.merge.model import AddBias, AddLora, Operation, Output, Replace, ReplaceRows, Tensor, tensors_of
from ptcli.merge.names import CONV1D, FUSED_EXPERTS, MIXED, SCORE_HEADS, Names, is_head, is_input
from ptcli.merge.scales import rank_of, scale_of

_PREFIX = re.compile(r"^base_model\.model\.")
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_(?P<side>[AB])\.weight|lora_embedding_(?P<table>[AB])|lora_B\.(?P<bias>bias)|"
    r"token_adapter\.(?P<rows>trainable_tokens_delta)|"
    r"(?P<copy>(?:token_adapter\.)?base_layer\.|modules_to_save\.|original_module\.)?(?P<whole>weight|bias))"
)
_SCORING = ("SEQ_CLS", "TOKEN_CLS")
"""PEFT's tasks of models that give scores in the place of text."""
_FLOATS = ("F32", "F16", "BF16")
_SHOWN = 3
"""Modules that are named before they are only counted."""
_OTHER_BASE = "give the base that it was trained on: --base PATH"
_OTHER_CONFIG = "config, weights and base are not of the same adapter"


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
    consumer = _Consumer(adapter.config, base, names)
    if not streams_parameters(adapter.config.get("target_parameters"), names):
        consumer.found.handover.append("`target_parameters` of this model are merged by PEFT itself")
        return consumer.found
    pairs = consumer.sort(adapter.tensors)
    missing = [pair.module for pair in pairs if not consumer.is_known(pair)]
    if missing:
        consumer.found.problems.append(_wrong_base(missing, base))
    for pair in pairs:
        if pair.module not in missing:
            consumer.take(pair)
    consumer.check()
    return consumer.found


def _wrong_base(missing: list[str], base: Base) -> Problem:
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    return Problem(f"the adapter changes modules that the base {base.name} does not have: {shown}", _OTHER_BASE)


class _Consumer:
    """Takes the tensors of an adapter, module by module."""

    def __init__(self, config: Mapping[str, Any], base: Base, names: Names):
        self._config, self._base, self._names = config, base, names
        self._sorted: set[str] = set()
        """Keys of the tensors that have a use."""
        self.found = Consumed()

    def sort(self, tensors: Mapping[str, Tensor]) -> list[Pair]:
        """The adapter's tensors by module."""
        pairs: dict[str, Pair] = {}
        for key, tensor in tensors.items():
            match = _KEY.fullmatch(_PREFIX.sub("", key))
            if match is None:
                self.found.handover.append(f"{key} is no tensor of a plain LoRA")
                continue
            parts = pairs.setdefault(match["module"], Pair(match["module"])).parts
            if not _is_said_twice(match, parts):
                parts[_part(match)] = tensor
        self._sorted = {tensor.name for pair in pairs.values() for tensor in pair.parts.values()}
        return list(pairs.values())

    def is_known(self, pair: Pair) -> bool:
        """Whether the base has the module. A tied head is there without being in the files."""
        if is_fused(pair.module) or self._is_new_head(pair) or self._is_tied_head(pair.module):
            return True
        return any(self._names.find(f"{pair.module}.{leaf}") for leaf in ("weight", "bias"))

    def _is_tied_head(self, module: str) -> bool:
        return is_head(module) and self._base.tied and self._names.inputs() is not None

    def take(self, pair: Pair) -> None:
        """Find a use for every tensor of a module."""
        weight = self._names.find(f"{pair.module}.weight")
        if weight is None and self._is_new_head(pair):
            return self._new_head(pair)
        if weight is None and self._is_tied_head(pair.module):
            weight = f"{pair.module}.weight"
        self._whole(pair, weight)
        self._pairs(pair, weight)
        if "bias" in pair.parts:
            self._bias(pair)
        if "rows" in pair.parts and weight:
            self._rows(pair, weight)

    def check(self) -> None:
        """Whether each tensor of the adapter has been used, and each of the base is changed by one module only."""
        found = self.found
        if found.problems or found.handover:
            return
        steps = [step for done in found.operations.values() for step in done]
        steps += [step for output in found.added for step in output.operations]
        unused = self._sorted - {tensor.name for step in steps for tensor in tensors_of(step)}
        found.problems += [
            Problem(f"the adapter's {name} has no place in the base", _OTHER_BASE) for name in sorted(unused)
        ]
        for name, done in found.operations.items():
            kinds = [type(each) for each in done]
            if len(kinds) != len(set(kinds)):
                found.problems.append(Problem(f"two modules of the adapter change {name} of the base", _OTHER_BASE))
            tensor = self._base.tensors.get(name)
            if tensor is not None and tensor.dtype not in _FLOATS:
                message = f"{name} of the base {self._base.name} is {tensor.dtype}, into which nothing is merged"
                found.problems.append(Problem(message, "give a base in bf16, fp16 or fp32: --base PATH"))

    # whole tensors

    def _is_new_head(self, pair: Pair) -> bool:
        """A head that gives scores: trained whole, on a language model that has none."""
        scores = str(self._config.get("task_type")) in _SCORING and pair.module in SCORE_HEADS
        return scores and pair.parts.keys() <= {"weight", "whole bias"}

    def _new_head(self, pair: Pair) -> None:
        inputs = self._base.tensors[self._names.inputs() or next(iter(self._base.tensors))]
        for part, leaf in (("weight", "weight"), ("whole bias", "bias")):
            if part in pair.parts:
                tensor = pair.parts[part]
                head = Output(f"{pair.module}.{leaf}", inputs.dtype, tensor.shape, None, (Replace(tensor),))
                self.found.added.append(head)

    def _whole(self, pair: Pair, weight: str | None) -> None:
        """`modules_to_save`, trained biases, and the copy of an embedding that PEFT saves beside its change."""
        bias = self._names.find(f"{pair.module}.bias")
        for part, name in (("weight", weight), ("whole bias", bias)):
            tensor = pair.parts.get(part)
            if tensor is None or name is None:
                continue  # what has no place is found by `check`
            shape = self._shape(name)
            if tensor.shape != shape and _resized(pair.module, tensor.shape, shape):
                self.found.shapes[name] = tensor.shape
            elif tensor.shape != shape:
                self._misfit(tensor, name, shape)
            self.found.operations[name].append(Replace(tensor))

    def _rows(self, pair: Pair, weight: str) -> None:
        """Rows of an embedding that were trained by themselves: they replace those of the base."""
        tensor, given = pair.parts["rows"], self._config.get("trainable_token_indices")
        rows = given if isinstance(given, list) else _rows_of(given, pair.module)
        shape = self._shape(weight)
        if rows is None:
            self.found.handover.append(f"which rows {tensor.name} holds is for PEFT to tell")
        elif tensor.shape != (len(rows), *shape[1:]) or not all(0 <= row < shape[0] for row in rows):
            message = f"{tensor.name} is {_by(tensor.shape)} for {len(rows)} tokens of {weight}, {_by(shape)}"
            self.found.problems.append(Problem(message, _OTHER_CONFIG))
        else:
            self.found.operations[weight].append(ReplaceRows(tuple(rows), tensor))

    # low rank

    def _pairs(self, pair: Pair, weight: str | None) -> None:
        for first, second, take in (("A", "B", self._linear), ("table A", "table B", self._table)):
            a, b = pair.parts.get(first), pair.parts.get(second)
            if a and b and is_fused(pair.module):
                self._fused(pair.module, a, b)
            elif a and b and weight:
                take(pair.module, a, b, weight)
            elif a or b:
                there, lacking = (a, "B") if a else (b, "A")
                message = f"{there.name if there else ''} has no lora_{lacking} beside it"
                self.found.problems.append(Problem(message, "the adapter is not whole: save it again"))

    def _linear(self, module: str, a: Tensor, b: Tensor, weight: str) -> None:
        shape, kind = self._shape(weight), self._names.model_type
        expert, conv = self._names.is_expert(module), kind in CONV1D
        if len(a.shape) != 2 or len(b.shape) != 2 or len(shape) != 2:
            self.found.handover.append(f"{module} is no linear layer")
        elif expert and kind not in FUSED_EXPERTS:
            self.found.handover.append(f"experts of {kind or 'a model without a type'} are merged by PEFT itself")
        elif kind in MIXED or (self._config.get("fan_in_fan_out") and not conv):
            self.found.handover.append("layers may be of either orientation (`fan_in_fan_out`), which only PEFT knows")
        else:
            self._add(module, a, b, weight, transposed=conv and not is_head(module), rounded=expert)

    def _table(self, module: str, a: Tensor, b: Tensor, weight: str) -> None:
        """Embeddings: A is (rank, tokens), B is (width, rank), and the table (tokens, width)."""
        self._add(module, a, b, weight, transposed=True, rounded=True)

    def _add(self, module: str, a: Tensor, b: Tensor, weight: str, *, transposed: bool, rounded: bool) -> None:
        shape = self._shape(weight)
        outputs, inputs = reversed(shape) if transposed else shape
        if a.shape[1:] != (inputs,) or b.shape[:1] != (outputs,) or len(b.shape) != 2:
            self._misfit(a if a.shape[1:] != (inputs,) else b, weight, shape)
        elif self._is_sound(module, a, b):
            scale = scale_of(self._config, module, a.shape[0])
            self.found.operations[weight].append(AddLora(a, b, scale, transposed=transposed, rounded=rounded))
            self.found.modules.append(module)

    def _is_sound(self, module: str, a: Tensor, b: Tensor) -> bool:
        """Whether A and B have the rank that the config says, and a dtype that PEFT computes in float32."""
        wanted = rank_of(self._config, module)
        if not a.shape[0] == b.shape[1] == wanted:
            message = f"{a.name} has rank {a.shape[0]}, {b.name} {b.shape[1]}, and the adapter's config says {wanted}"
            self.found.problems.append(Problem(message, _OTHER_CONFIG))
            return False
        return self._are_floats(a, b)

    def _are_floats(self, a: Tensor, b: Tensor) -> bool:
        strange = [f"{each.name} is {each.dtype}" for each in (a, b) if each.dtype not in _FLOATS]
        self.found.handover += strange
        return not strange

    def _fused(self, module: str, a: Tensor, b: Tensor) -> None:
        """All experts of a layer at once."""
        if not self._are_floats(a, b):
            return
        changes = list(expert_changes(module, a, b, self._config, self._base, self._names))
        if not changes:
            self.found.handover.append(f"{a.name} is {_by(a.shape)}, of which only PEFT knows what it changes")
        for name, change in changes:
            self.found.operations[name].append(change)

    def _bias(self, pair: Pair) -> None:
        name, a = self._names.find(f"{pair.module}.bias"), pair.parts.get("A")
        if name is None:
            message = f"the adapter has a bias for {pair.module} (`lora_bias`), and the base's layer has none"
            self.found.problems.append(Problem(message, "PEFT cannot merge it either; serve it with PEFT"))
        elif a is not None:
            scale = scale_of(self._config, pair.module, a.shape[0])
            self.found.operations[name].append(AddBias(pair.parts["bias"], scale))

    # shapes

    def _shape(self, name: str) -> tuple[int, ...]:
        """Shape that a tensor of the base will have; of a tied head that of the input embeddings."""
        tensors = self._base.tensors
        tensor = tensors.get(name) or tensors[self._names.inputs() or name]
        return self.found.shapes.get(name) or tensor.shape

    def _misfit(self, tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
        told = f"{name} of {self._base.name} is {_by(shape)}, and the adapter's {tensor.name} is {_by(tensor.shape)}"
        self.found.problems.append(Problem(f"the adapter does not fit the base: {told}", _OTHER_BASE))


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


def _rows_of(given: Any, module: str) -> list[int] | None:
    for name, rows in given.items() if isinstance(given, Mapping) else ():
        if (module == name or module.endswith(f".{name}")) and isinstance(rows, list):
            return rows
    return None


def _resized(module: str, mine: tuple[int, ...], base: tuple[int, ...]) -> bool:
    return (is_input(module) or is_head(module)) and len(mine) == len(base) and mine[1:] == base[1:]


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
