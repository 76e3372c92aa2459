"""Adapters of experts that are one tensor in memory: `target_parameters`, what "all-linear" means in such a model.

Two parameters of one module are wrapped one in the other, so that keys say which of them is inside and not which it is:
`experts.base_layer.lora_A` and `experts.lora_A`. Their shapes tell: gate and up are (2 x inner, hidden), down is
(hidden, inner), and no inner width makes these the same. A is (experts x rank, inputs), expert by expert; B is
(outputs, rank x experts), an expert's columns lying `experts` apart (`peft.tuners.lora.layer.ParamWrapper`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from ptcli.merge.base import Base
from ptcli.merge.model import AddLora, Expert, Tensor
from ptcli.merge.names import FUSED_EXPERTS, Names
from ptcli.merge.scales import rank_of, scale_of

_FUSED = (".experts", ".experts.base_layer")
_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""Parameter in memory -> names of its parts in files, from its first row on: Qwen's, and Mixtral's."""
_ROUTER = "gate.weight"


def is_fused(module: str) -> bool:
    """Whether an adapter's module is all experts of a layer."""
    return module.endswith(_FUSED)


def streams_parameters(targets: Any, names: Names) -> bool:
    """Whether `target_parameters` are experts and routers whose places in the files are known."""
    known = (*_PARTS, _ROUTER)
    return not targets or (names.model_type in FUSED_EXPERTS and all(str(each).endswith(known) for each in targets))


def expert_changes(
    module: str, a: Tensor, b: Tensor, config: Mapping[str, Any], base: Base, names: Names
) -> Iterator[tuple[str, AddLora]]:
    """Each expert's tensor in the base, and its change. Nothing when A and B fit no parameter of the layer."""
    root = module.removesuffix(".base_layer")
    for parameter, spellings in _PARTS.items():
        parts = next((found for leaves in spellings if (found := _experts(root, leaves, names))), [])
        key = f"{root}.{parameter}"
        rank = a.shape[0] // len(parts) if parts else 0
        if rank and rank == rank_of(config, key) and _fits(a, b, rank, parts, base):
            yield from _changes(a, b, parts, scale_of(config, key, rank), base)


def _experts(root: str, leaves: Sequence[str], names: Names) -> list[list[str]]:
    """Checkpoint names of each expert's parts."""
    found: list[list[str]] = []
    for index in count():
        parts = [names.find(f"{root}.{index}.{leaf}.weight") for leaf in leaves]
        if None in parts:
            return found
        found.append([str(part) for part in parts])
    return found


def _fits(a: Tensor, b: Tensor, rank: int, parts: list[list[str]], base: Base) -> bool:
    shapes = [base.tensors[name].shape for name in parts[0]]
    outputs, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
    return (a.shape, b.shape) == ((rank * len(parts), inputs), (outputs, rank * len(parts)))


def _changes(a: Tensor, b: Tensor, parts: list[list[str]], scale: float, base: Base) -> Iterator[tuple[str, AddLora]]:
    nbytes = a.nbytes // len(parts)
    for index, expert in enumerate(parts):
        rows = (a.shape[0] // len(parts), a.shape[1])
        mine = replace(a, shape=rows, start=a.start + index * nbytes, nbytes=nbytes)
        first = 0
        for name in expert:
            yield name, AddLora(mine, b, scale, rounded=True, expert=Expert(index, len(parts), first))
            first += base.tensors[name].shape[0]
