"""Adapters: what LoRA adds to a weight, measured on PEFT's own layers."""

from __future__ import annotations

import math
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer

from ptcli.doctor.math.identity import Unexercised, identity
from ptcli.doctor.math.trainers import first_rows, load, make_trainer, tokenizer

RANK, ALPHA = 4, 12
_HU = "Hu et al. 2021, arXiv:2106.09685"


def _adapted(**arguments: Any) -> Any:
    """The shipped model under a fresh adapter on every linear layer."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", **arguments)
    return peft.get_peft_model(load(), config).eval()


def _filled(**arguments: Any) -> Any:
    """The same with an adapter that has moved: no entry of A or B is zero."""
    model = _adapted(**arguments)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def _layers(model: Any) -> dict[str, Any]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not found:
        raise Unexercised("no layer was adapted")
    return found


def _logits(model: Any) -> torch.Tensor:
    ids = tokenizer()(first_rows("arithmetic-text", 1)[0]["text"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits


def _product(layer: Any, scale: float) -> list[list[float]]:
    """scale B A, entry by entry."""
    down = layer.lora_A["default"].weight.double().tolist()
    up = layer.lora_B["default"].weight.double().tolist()
    columns = list(zip(*down, strict=True))
    return [[scale * math.fsum(b * a for b, a in zip(row, column, strict=True)) for column in columns] for row in up]


def _update(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return after.detach().double() - before.detach().double()


def _merged_apart(scale: float, **arguments: Any) -> float:
    """How far the merged weights are from W + scale B A, and the merged model's logits from the adapted one's."""
    model = _filled(**arguments)
    before = {name: layer.base_layer.weight.detach().clone() for name, layer in _layers(model).items()}
    expected = {
        name: torch.tensor(_product(layer, scale), dtype=torch.float64) for name, layer in _layers(model).items()
    }
    adapted = _logits(model)
    merged = model.merge_and_unload()
    weights = {name: merged.get_submodule(name.removeprefix("base_model.model.")).weight for name in before}
    off = max(float((_update(before[name], weights[name]) - expected[name]).abs().max()) for name in before)
    size = max(float(adapted.abs().max()), 1.0)
    return max(off, float((_logits(merged) - adapted).abs().max()) / size)


@identity(
    "lora-merge",
    "merging gives W + (alpha/r) B A in every adapted layer, and the merged model computes what the adapter did",
    source=f"{_HU}, eq. 3",
)
def merged() -> float:
    return _merged_apart(ALPHA / RANK)


@identity(
    "lora-merge-rslora",
    "with use_rslora merging gives W + (alpha/sqrt r) B A",
    source="Kalajdzievski 2023, arXiv:2312.03732",
)
def merged_stabilised() -> float:
    return _merged_apart(ALPHA / math.sqrt(RANK), use_rslora=True)


@identity(
    "lora-start",
    "a fresh adapter (B = 0) leaves the base bit-identical: the logits are equal, not close",
    source=f"{_HU}, section 4.1",
    tolerance=0.0,
)
def start() -> float:
    base, model = _logits(load().eval()), _adapted()
    if not all(bool(layer.lora_A["default"].weight.any()) for layer in _layers(model).values()):
        raise Unexercised("A is zero as well, so that the adapter could never learn")
    return float((_logits(model) - base).abs().max())


@identity(
    "lora-rank",
    "after steps of the real trainer the update of every adapted weight has rank at most r: sigma_(r+1) / sigma_1",
    source=f"{_HU}, section 4.1",
    methods=("sft",),
    tolerance=1e-5,
)
def rank() -> float:
    trainer = _trained()
    model = trainer.model
    before = {name: layer.base_layer.weight.detach().clone() for name, layer in _layers(model).items()}
    merged = model.merge_and_unload()
    worst = 0.0
    for name, weight in before.items():
        update = _update(weight, merged.get_submodule(name.removeprefix("base_model.model.")).weight)
        sigma = torch.linalg.svdvals(update).tolist()
        if sigma[0] == 0.0:
            raise Unexercised(f"{name} did not move")
        worst = max(worst, sigma[RANK] / sigma[0])
    return worst


@identity(
    "lora-frozen",
    "steps of the real trainer move A and B and leave every base weight as it was",
    source=f"{_HU}, section 4.1",
    methods=("sft",),
    tolerance=0.0,
)
def frozen() -> float:
    trainer, base = _trained(), load()
    layers = _layers(trainer.model)
    if not all(bool(layer.lora_B["default"].weight.any()) for layer in layers.values()):
        raise Unexercised("B did not move")
    state = base.state_dict()
    now = {name.removeprefix("base_model.model."): layer.base_layer.weight for name, layer in layers.items()}
    return max(float((weight - state[f"{name}.weight"]).abs().max()) for name, weight in now.items())


def _trained() -> Any:
    """SFT of an adapter: two steps, without dropout."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    trainer = make_trainer("sft", given={"peft_config": config}, max_steps=2, learning_rate=1e-2, save_strategy="no")
    trainer.train()
    return trainer
