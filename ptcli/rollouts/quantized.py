"""What vLLM gets of a quantised model: its weights dequantised, with the change that the adapter makes.

TRL merges the adapter into the quantised weights and pushes what it then finds there, which is packed bytes that vLLM
cannot take (trl#4973); and since merging and unmerging round, the base would drift from step to step (trl#3466).
`install` replaces that: nothing of the trainer's model is changed, and vLLM computes with the very sum that the
trainer's own forward computes with.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import wraps
from typing import Any

import torch
from bitsandbytes.functional import (
    QuantState,
    _convert_weight_packed_for_cpu_inverse,
    dequantize_4bit,
    int8_vectorwise_dequant,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from trl.generation.vllm_generation import VLLMGeneration

from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe
from ptcli.train.objects import import_class

_iter_named_params = VLLMGeneration._iter_named_params
_OTHERS_OWN = ("modules_to_save.default.", "_checkpoint_wrapped_module.")
"""Parts of a parameter's name that vLLM's model does not have."""


def install(recipe: Recipe) -> None:
    """Teach TRL to push dequantised weights."""

    @wraps(_iter_named_params)
    def iterate(self: VLLMGeneration) -> Iterator[tuple[str, torch.Tensor]]:
        if not is_quantized(self.model):
            yield from _iter_named_params(self)
            return
        with self._dist.gather_params(list(self.model.parameters())):
            yield from merged_weights(self.model)

    VLLMGeneration._iter_named_params = iterate
    trainer_class = import_class(METHODS[recipe.method].trainer)
    if hasattr(trainer_class, "_move_model_to_vllm_inner"):  # OnlineDPO pushes by itself
        trainer_class._move_model_to_vllm_inner = _move_model_to_vllm_inner


def is_quantized(model: torch.nn.Module) -> bool:
    """True when bitsandbytes holds weights of the model."""
    return any(_quantized(parameter) for parameter in model.parameters())


def merged_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the base, by the name that its checkpoint has, with all active adapters in it."""
    done: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            done |= {id(parameter) for parameter in module.parameters()}
            for name, weight in _merged_layer(module, path).items():
                yield _plain_name(f"{path}.{name}"), weight
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if id(parameter) not in done and "original_module" not in name:
                done.add(id(parameter))
                yield _plain_name(name), _dequantized(parameter, module)


def _merged_layer(module: BaseTunerLayer, path: str) -> dict[str, torch.Tensor]:
    """`weight` and perhaps `bias` of a layer that an adapter is on."""
    if not isinstance(module, LoraLayer):
        kind = type(module).__name__
        raise WorkError(f"{path}: {kind} on quantised weights cannot be merged for vLLM; use peft.type: lora")
    base = module.get_base_layer()
    weight, bias = _dequantized(base.weight, base), getattr(base, "bias", None)
    for adapter in module.active_adapters:
        if adapter not in module.lora_A and adapter not in module.lora_embedding_A:
            continue
        weight = weight + module.get_delta_weight(adapter)
        if adapter in module.lora_magnitude_vector:  # DoRA, equation 5 of its paper
            length = torch.linalg.norm(weight, dim=1)
            weight = (module.lora_magnitude_vector[adapter].weight / length)[:, None] * weight
        if module.lora_bias.get(adapter):
            bias = bias + module.lora_B[adapter].bias
    found = {"weight": weight, "bias": bias}
    return {name: tensor.data for name, tensor in found.items() if tensor is not None}


def _dequantized(parameter: Any, module: Any) -> torch.Tensor:
    """The weight of `module` in floating point, as its forward uses it."""
    kind = type(parameter).__name__
    if kind == "Params4bit":
        return dequantize_4bit(*_unpacked(parameter.data, parameter.quant_state))
    if kind == "Int8Params":
        scales = parameter.SCB if getattr(parameter, "SCB", None) is not None else module.state.SCB
        return int8_vectorwise_dequant(parameter.data, scales.to(parameter.device))
    return parameter.data


def _unpacked(data: torch.Tensor, state: QuantState) -> tuple[torch.Tensor, QuantState]:
    """4-bit weights in the usual order. On CPUs with AVX512-BF16 an evaluation packs them anew, and bitsandbytes' own
    way back leaves the scales as they were packed."""
    if not getattr(state, "packing_format_for_cpu", False):
        return data, state
    scales, state = state.absmax.T.reshape(-1).float(), copy(state)
    setattr(state, "original_nested", False)  # noqa: B010 - not declared
    data, state = _convert_weight_packed_for_cpu_inverse(data, state)
    state.absmax = scales
    return data, state


def _quantized(parameter: torch.Tensor) -> bool:
    return type(parameter).__name__ in ("Params4bit", "Int8Params")


def _plain_name(name: str) -> str:
    name = name.removeprefix("base_model.model.").replace(".base_layer", "")
    for part in _OTHERS_OWN:
        name = name.replace(part, "")
    return name


def _move_model_to_vllm_inner(self: Any) -> None:
    """OnlineDPO's push, of dequantised weights."""
    server = self.vllm_mode == "server"
    model = None if server else self.llm.llm_engine.model_executor.driver_worker.model_runner.model
    for name, weight in merged_weights(self.model):
        if model is not None:
            model.load_weights([(name, weight)])
        elif self.accelerator.is_main_process:
            self.vllm_client.update_named_param(name, weight)
