"""A callback that weighs what a trainer holds: bytes of weights, gradients, master weights and optimizer states."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class Scales(TrainerCallback):
    """Writes `weighed-RANK.json` in the run directory: bytes of this process after the first step. DeepSpeed steps
    inside of its backward, so that its gradients are gone by then, and are left out."""

    def __init__(self) -> None:
        self.gradients: float | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        found = [each.grad for each in given["model"].parameters() if each.grad is not None]
        self.gradients = self.gradients or storages(found)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 1:
            weighed = weigh(given["model"], given["optimizer"]) | {"gradients": self.gradients}
            Path(args.output_dir, f"weighed-{args.process_index}.json").write_text(json.dumps(weighed))


def weigh(model: Any, optimizer: Any) -> dict[str, float]:
    """Bytes of a model's weights, and of what its optimizer keeps."""
    held = in_memory(model)
    inner = getattr(optimizer, "optimizer", optimizer)
    masters = getattr(inner, "single_partition_of_fp32_groups", None) or getattr(
        inner, "fp32_partitioned_groups_flat", ()
    )
    states = getattr(inner, "optimizer", inner).state.values()
    return {
        "weights": storages(held),
        "master weights": storages([*held, *masters]) - storages(held),
        "optimizer": storages(tensor for state in states for tensor in tensors_in(state)),
    }


def in_memory(model: Any) -> list[torch.Tensor]:
    """What is here of the model's parameters, and what quantised ones carry besides."""
    found: list[torch.Tensor] = []
    for parameter in model.parameters():
        found.append(getattr(parameter, "ds_tensor", parameter.data))
        state = getattr(parameter, "quant_state", None)
        for each in filter(None, (state, getattr(state, "state2", None))):
            found += [
                tensor for tensor in (each.absmax, each.code, getattr(each, "offset", None)) if tensor is not None
            ]
    return found


def storages(tensors: Iterable[Any]) -> int:
    """Bytes of the storages behind these tensors, each once; of those that are spread, of what is here."""
    here = [each.to_local() if hasattr(each, "to_local") else each for each in tensors]
    found = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in here}
    return sum(found.values())


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor of a nested state."""
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for each in inside for tensor in tensors_in(each)]
