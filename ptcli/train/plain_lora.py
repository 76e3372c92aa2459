"""Adapters that start with a part of the base (PiSSA, OLoRA), saved as plain LoRA on the base as it is.

Their tensors mean something only beside a base from which that part was taken, which PEFT takes out again at every
reload: by the same decomposition where it can be repeated, and not at all in the same way where it is a random one
(`pissa_niter_16`). W_res + s B A = W + s (B A - B0 A0), which is a LoRA of twice the rank; PEFT's own conversion
drops all but A and B.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ptcli.plan.reference import changes_base
from ptcli.recipe.local_models import ADAPTER_CONFIG

WEIGHTS = "adapter_model.safetensors"
_ADAPTER = "default"
_CONVERTED = ("pissa", "olora")


def remember_start(trainer: Any) -> None:
    """Keep the adapter as it is before training, where `save_plain` will need it."""
    model = trainer.model
    if not isinstance(model, PeftModel) or not _converts(model):
        return
    trainer.adapter_at_start = {
        name.replace(f".{_ADAPTER}.", "."): parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def save_plain(trainer: Any, output_dir: str) -> None:
    """Turn the adapter that was saved in `output_dir` into a plain one. Called by the process that saved it."""
    start = getattr(trainer, "adapter_at_start", None)
    weights, config = Path(output_dir) / WEIGHTS, Path(output_dir) / ADAPTER_CONFIG
    if start is None or not weights.exists():
        return
    tensors = {name: _subtract(name, tensor, start) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    described = _doubled(json.loads(config.read_text(encoding="utf-8")))
    config.write_text(json.dumps(described, indent=2, sort_keys=True), encoding="utf-8")


def _converts(model: PeftModel) -> bool:
    config = model.peft_config[_ADAPTER].to_dict()
    return changes_base(config) and str(config["init_lora_weights"]).lower().startswith(_CONVERTED)


def _subtract(name: str, tensor: torch.Tensor, start: dict[str, torch.Tensor]) -> torch.Tensor:
    """[A; A0] and [B, -B0], whose product is B A - B0 A0."""
    before = start.get(name)
    if before is None:
        return tensor
    if ".lora_A." in name:
        return torch.cat([tensor, before.to(tensor)], dim=0)
    return torch.cat([tensor, -before.to(tensor)], dim=1)


def _doubled(config: dict[str, Any]) -> dict[str, Any]:
    """Twice the rank at the same scale, which is alpha / r, or alpha / sqrt(r) for rsLoRA."""
    factor = 2**0.5 if config.get("use_rslora") else 2
    return config | {
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in (config.get("alpha_pattern") or {}).items()},
    }
