"""Whether trained weights change: fingerprints of a sample of them, of whatever part this process holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

SAMPLE = 64
"""Tensors that are looked at, evenly among all."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def sample_trained(parameters: Iterable[tuple[str, torch.Tensor]], *, adapter: bool) -> dict[str, torch.Tensor]:
    """Up to SAMPLE trainable tensors by name; of a run that trains an adapter, the adapter's own."""
    trained = [(name, tensor) for name, tensor in parameters if tensor.requires_grad]
    own = [(name, tensor) for name, tensor in trained if adapter and any(prefix in name for prefix in _PREFIXES)]
    chosen = [(name, tensor) for name, tensor in own or trained if local_part(tensor).numel()]
    count = min(SAMPLE, len(chosen))
    return dict(chosen[index * len(chosen) // count] for index in range(count))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor. Under ZeRO-3 the tensor itself is empty between its uses, and under FSDP2 it
    stands for the shards of all; another process's shard would need it to take part."""
    part = tensor.detach()
    if not part.numel() and hasattr(tensor, "ds_tensor"):
        part = tensor.ds_tensor.detach()
    return part.to_local() if hasattr(part, "to_local") else part


def fingerprints(sample: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """A number for each tensor that differs, all but certainly, as soon as a bit of it does."""
    return {name: _fingerprint(local_part(tensor)) for name, tensor in sample.items()}


def are_finite(sample: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(local_part(tensor)).all()) for tensor in sample.values())


def _fingerprint(tensor: torch.Tensor) -> int:
    bits = tensor.contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))


_PREFIXES = tuple({prefix for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values() if prefix} | {"prompt_encoder"})
