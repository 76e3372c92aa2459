"""Bytes that training holds on each GPU from one step to the next: weights, gradients, master weights, optimizer.

Sources: ZeRO (Rajbhandari et al., 2020), section 3.1 for mixed precision with Adam, sections 5.1 to 5.3 for what each
stage shards; QLoRA (Dettmers et al., 2023), section 3 for NF4 and double quantisation; the optimizers' own papers and
code for their states. Activations, buffers, fragmentation and the CUDA context are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, inf
from types import MappingProxyType
from typing import Any, Literal

from ptcli.plan.memory.adapters import Adapter
from ptcli.plan.memory.architecture import Architecture, Weight

WIDTH: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
"""Bytes of a value."""
_HALF, _FULL = 2.0, 4.0

# --- quantised weights -----------------------------------------------------------------------------------------------

_BLOCK, _OUTER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one (QLoRA, section 3)."""
_CODE, _OUTER_CODE = 16 * 4, 256 * 4
"""Bytes of the tables of values that every quantised matrix carries."""


@dataclass(frozen=True)
class Quantization:
    """How the weights of linear layers are held."""

    bits: Literal[4, 8]
    double: bool = False
    """Whether the scales are quantised, too (4 bits only)."""
    skipped: tuple[str, ...] | None = None
    """Modules left as they are; None: the output layer, as transformers has it."""

    def takes(self, weight: Weight) -> bool:
        """Whether this weight is quantised. Those of all experts in one tensor are counted as if they were."""
        if not weight.linear and len(weight.shape) != 3:
            return False
        if self.skipped is None:
            return weight.part != "head"
        parts = f".{weight.module}."
        return not any(f".{name}." in parts for name in self.skipped)

    def bytes_of(self, weight: Weight) -> int:
        """4 bits: half a byte a weight, and a scale for 64 of them: 4 bytes, or 1 byte and 4/256 where the scales are
        quantised. 8 bits: a byte a weight and 4 for each row (LLM.int8, Dettmers et al., 2022, section 3.1)."""
        if self.bits == 8:
            return weight.size + 4 * weight.shape[0]
        scales = ceil(weight.size / _BLOCK)
        if not self.double:
            return ceil(weight.size / 2) + 4 * scales + _CODE
        return ceil(weight.size / 2) + scales + 4 * ceil(scales / _OUTER_BLOCK) + 4 + _CODE + _OUTER_CODE


def read_quantization(section: Mapping[str, Any] | None) -> Quantization | None:
    """What a `quantization` section asks for; None for nothing."""
    bits = next((bits for bits in (4, 8) if (section or {}).get(f"load_in_{bits}bit")), None)
    if section is None or bits is None:
        return None
    skipped = section.get("llm_int8_skip_modules")
    names = None if skipped is None else tuple(map(str, skipped))
    return Quantization(4 if bits == 4 else 8, bool(section.get("bnb_4bit_use_double_quant")), names)


def weight_bytes(weights: Iterable[Weight], width: float, quantization: Quantization | None = None) -> float:
    """Bytes of the weights, of `width` each where they are not quantised."""
    if quantization is None:
        return width * sum(weight.size for weight in weights)
    return sum(
        quantization.bytes_of(weight) if quantization.takes(weight) else width * weight.size for weight in weights
    )


# --- optimizers ------------------------------------------------------------------------------------------------------

_SMALLEST_IN_8_BITS = 4096
"""Values of a tensor below which the 8-bit optimizers keep float32 states (`min_8bit_size`)."""


@dataclass(frozen=True)
class Optimizer:
    """What an optimizer keeps for each trained value."""

    states: int = 0
    """Values it keeps for each."""
    width: float | None = None
    """Bytes of such a value; None: as the weight."""
    block: int | None = None
    """Values that share a float32 scale, where the states are quantised."""
    wide_embeddings: bool = False
    """Whether those of embeddings are kept in float32 all the same."""
    factored: bool = False
    """Whether it keeps a row and a column for a matrix (Adafactor, Shazeer and Stern, 2018, section 3)."""
    paged: bool = False
    """Whether states may be in main memory, which makes nothing the least that they take on the GPU."""
    frees_gradients: bool = False
    """Whether each weight is changed as soon as its gradient is there, so that no two gradients need be kept."""

    def bytes_of(self, weight: Weight, width: float) -> float:
        """Bytes for one weight, whose values have `width`."""
        if self.paged:
            return 0.0
        if self.factored:
            return _FULL * (weight.size if len(weight.shape) < 2 else _factors(weight.shape))
        if self.block is not None and (
            weight.size < _SMALLEST_IN_8_BITS or (self.wide_embeddings and weight.part == "embeddings")
        ):
            return self.states * _FULL * weight.size
        scales = _FULL * ceil(weight.size / self.block) if self.block else 0.0
        return self.states * ((width if self.width is None else self.width) * weight.size + scales)


def _factors(shape: tuple[int, ...]) -> int:
    *outer, rows, columns = shape
    stacked = 1
    for size in outer:
        stacked *= size
    return stacked * (rows + columns)


_ADAM, _BNB_8BIT = Optimizer(2), {"width": 1.0, "block": 256, "wide_embeddings": True}
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        **dict.fromkeys(
            ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "stable_adamw"), _ADAM
        ),
        "adamw_torch_8bit": Optimizer(2, 1.0, block=256),
        "adamw_torch_4bit": Optimizer(2, 0.5, block=128),
        "adafactor": Optimizer(factored=True),
        "sgd": Optimizer(),
        **dict.fromkeys(
            (
                "lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise",
                "galore_adafactor_layerwise", "apollo_adamw_layerwise",
            ),
            Optimizer(frees_gradients=True),
        ),
        "adagrad": Optimizer(1),
        "rmsprop": Optimizer(1),
        **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), Optimizer(2, **_BNB_8BIT)),  # type: ignore[arg-type]
        **dict.fromkeys(("lion_8bit", "rmsprop_bnb_8bit"), Optimizer(1, **_BNB_8BIT)),  # type: ignore[arg-type]
        **dict.fromkeys(("lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"), Optimizer(1, _FULL)),
        **dict.fromkeys(
            ("paged_adamw_32bit", "paged_adamw_8bit", "paged_lion_32bit", "paged_lion_8bit"), Optimizer(paged=True)
        ),
    }
)  # fmt: skip
"""By the names that `training.optim` takes. What an optimizer that is not here keeps is counted as nothing."""


# --- how a launch holds numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Widths:
    """Bytes of each value."""

    frozen: float
    """Weights that are not trained (nor quantised)."""
    trained: float
    """The model's own weights that are."""
    adapter: float
    """An adapter's new weights."""
    master: float = 0.0
    """A copy for the optimizer besides."""
    least_state: float = 0.0
    """The optimizer's states are at least so wide, as they are made for the master copy."""


def decide_widths(dtype: str, precision: str, kind: str, stage: int, *, quantized: bool) -> Widths:
    """How numbers are held. `dtype` is the weights' in the recipe, `precision` what is computed in (`no`: nothing else
    than the weights' type), `kind` accelerate's distributed_type, `stage` ZeRO's.

    torch computes in bf16 beside weights of their own type (autocast). DeepSpeed casts all weights, frozen ones too, to
    bf16 or fp16 and keeps a float32 copy of the trained ones for the optimizer (ZeRO, section 3.1); weights that are
    float32 already it copies all the same (deepspeed 0.19.8; stage 3 means not to, but compares a device with a text).
    accelerate makes the trained weights float32 for FSDP2. PEFT makes an adapter's float32, and TRL bf16 where the base
    is quantised (QLoRA, section 3).
    """
    width = float(WIDTH.get(dtype, 2))
    mixed = precision != "no"
    if kind == "DEEPSPEED":
        copied = _FULL if mixed or stage else 0.0
        if mixed:
            return Widths(min(width, _HALF), _HALF, _HALF, copied, _FULL)
        adapter = width if stage == 3 and not quantized else _FULL
        return Widths(width, width, adapter, copied, _FULL if stage else 0.0)
    adapter = _HALF if quantized and mixed else _FULL
    if kind == "FSDP" and mixed and not quantized:
        return Widths(width, _FULL, _FULL)
    return Widths(width, width, adapter)


# --- sharding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """Over how many GPUs each is spread; `inf` where it is kept in main memory."""

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    quantized: float | None = None
    """The quantised weights, where that is another number."""


def zero_shards(stage: int, world: int, *, offload_weights: bool = False, offload_optimizer: bool = False) -> Shards:
    """ZeRO: stage 1 shards the optimizer and its copy of the weights, 2 the gradients too, 3 the weights too (sections
    5.1 to 5.3). Gradients follow an optimizer that is offloaded (ZeRO-Offload, Ren et al., 2021, section 3)."""
    optimizer = inf if offload_optimizer and stage >= 1 else world if stage >= 1 else 1.0
    gradients = inf if offload_optimizer and stage >= 1 else world if stage >= 2 else 1.0
    weights = inf if offload_weights and stage >= 3 else world if stage >= 3 else 1.0
    return Shards(weights, gradients, optimizer)


def fsdp_shards(shards: int, *, offload: bool = False, shards_quantized: bool = True) -> Shards:
    """FSDP shards everything (Zhao et al., 2023, section 3.2), quantised weights only if they are stored in a float
    type: accelerate leaves others whole."""
    number = inf if offload else float(shards)
    return Shards(number, number, number, None if shards_quantized else 1.0)


# --- a model that is trained, and one that is not --------------------------------------------------------------------


def frozen_bytes(architecture: Architecture, width: float, quantization: Quantization | None, shards: Shards) -> float:
    """Bytes of a model that is only read."""
    if quantization is None:
        return weight_bytes(architecture.weights, width) / shards.weights
    packed = [weight for weight in architecture.weights if quantization.takes(weight)]
    plain = [weight for weight in architecture.weights if not quantization.takes(weight)]
    spread = shards.weights if shards.quantized is None else shards.quantized
    return weight_bytes(packed, width, quantization) / spread + weight_bytes(plain, width) / shards.weights


def trained_bytes(
    groups: Iterable[tuple[Iterable[Weight], float]], widths: Widths, optimizer: Optimizer, shards: Shards
) -> dict[str, float]:
    """Bytes of trained weights, given in groups of one width: themselves, gradients, master copies, optimizer."""
    totals = dict.fromkeys(("weights", "gradients", "master weights", "optimizer"), 0.0)
    for weights, width in groups:
        for weight in weights:
            totals["weights"] += width * weight.size / shards.weights
            totals["gradients"] += 0.0 if optimizer.frees_gradients else width * weight.size / shards.gradients
            totals["master weights"] += widths.master * weight.size / shards.optimizer
            totals["optimizer"] += optimizer.bytes_of(weight, max(width, widths.least_state)) / shards.optimizer
    return totals


def adapter_groups(adapter: Adapter, widths: Widths, *, quantized: bool) -> list[tuple[tuple[Weight, ...], float]]:
    """An adapter's weights with their width; whole copies and the model's own biases have that of the model, or of the
    adapter on a quantised one."""
    copies = widths.adapter if quantized else widths.trained
    return [(adapter.matrices, widths.adapter), ((*adapter.copies, *adapter.unfrozen), copies)]
