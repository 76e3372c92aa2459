"""What vLLM gets of a policy with an adapter, beside merged weights: names that no model has.

TRL 1.12 leaves out the adapter's own tensors by LoRA's prefix. Trained tokens and the `ref` copy of `modules_to_save`
do not have it, and would be sent under names of which vLLM knows nothing. Quantised policies:
`ptcli.rollouts.quantized`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftModel

from ptcli.train.reference import REFERENCE

Named = Iterator[tuple[str, torch.Tensor]]
_OWN = ("trainable_tokens_delta", "trainable_tokens_original", f"modules_to_save.{REFERENCE}.")


def send_plain_names(trainer: Any) -> None:
    """Put the base's own names on what the trainer sends to vLLM, and leave out what the base has not."""
    generation = getattr(trainer, "vllm_generation", None)
    if generation is not None and isinstance(generation.model, PeftModel):
        generation._iter_named_params = _renamed(generation._iter_named_params)


def _renamed(iterate: Callable[[], Named]) -> Callable[[], Named]:
    def renamed() -> Named:
        for name, tensor in iterate():
            if not any(part in name for part in _OWN):
                yield name.replace(".token_adapter", ""), tensor

    return renamed
