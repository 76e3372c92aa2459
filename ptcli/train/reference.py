"""The reference, where the trainer's own would be another model than the policy before the run."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ptcli.methods import METHODS
from ptcli.plan.reference import needs_own_reference
from ptcli.recipe.model import Recipe
from ptcli.train.models import load_policy

REFERENCE = "ref"
"""TRL's name of the frozen copy of an adapter that is trained on."""


def own_reference(recipe: Recipe) -> dict[str, Any]:
    """The trainer's argument `ref_model`, where ptcli provides it; see `ptcli.plan.reference`."""
    if not needs_own_reference(recipe, zero3=is_deepspeed_zero3_enabled()):
        return {}
    model = load_policy(recipe.model, METHODS[recipe.method].head)
    return {"ref_model": model.requires_grad_(False).eval()}


def complete_reference(trainer: Any) -> None:
    """Make TRL's copy of the adapter whole.

    TRL 1.12 copies the tensors that have `.default.` in their name. Those that end in `.default` (LoRA on embeddings,
    trained tokens, IA3, VeRA, LoHa and others) keep the values that a fresh adapter starts with: the reference would
    be neither the adapter nor the base.
    """
    model = getattr(trainer, "model", None)
    if not isinstance(model, PeftModel) or REFERENCE not in model.peft_config:
        return
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            copy = tensors.get(f"{name.removesuffix('default')}{REFERENCE}")
            if name.endswith(".default") and copy is not None:
                copy.copy_(tensor)
