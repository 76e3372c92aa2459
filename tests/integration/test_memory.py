"""The closed form against the real thing: models, adapters, and what torch and bitsandbytes allocate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from ptcli.methods import Head
from ptcli.plan.memory.adapters import describe_adapter
from ptcli.plan.memory.architecture import FAMILIES, Architecture, describe_config
from ptcli.plan.memory.training import (
    OPTIMIZERS,
    Shards,
    adapter_groups,
    decide_widths,
    frozen_bytes,
    read_quantization,
    trained_bytes,
)
from ptcli.recipe.adapter_folders import TASKS
from tests.memory_callback import storages, weigh

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "ptcli/plan/memory/published.json").read_text())
CLASSES: Mapping[Head, Any] = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
}
LABELS: Mapping[Head, int] = {"sequence_classification": 1, "token_classification": 2}
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE: Mapping[str, list[dict[str, Any]]] = {
    "llama": [{"attention_bias": True, "mlp_bias": True, "head_dim": 16}, {"num_key_value_heads": None}],
    "qwen3_moe": [
        {"num_experts": 4, "moe_intermediate_size": 24, "decoder_sparse_step": 2},
        {"num_experts": 4, "moe_intermediate_size": 24, "mlp_only_layers": [0]},
    ],
    "qwen2_moe": [{"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}],
    "mixtral": [{"num_local_experts": 4}],
    "gpt_oss": [{"num_local_experts": 4}, {"num_local_experts": 4, "attention_bias": False}],
    "gemma2": [{"tie_word_embeddings": False}],
    "phi3": [{"num_key_value_heads": 4}],
}
"""Besides the family's defaults: what else its config can say."""
MIXTURES = {kind: MORE[kind][0] for kind in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")}


def real(config: Mapping[str, Any], head: Head = "causal_lm", device: str = "meta") -> PreTrainedModel:
    arguments = {name: value for name, value in config.items() if name != "model_type"}
    labels = {"num_labels": LABELS[head]} if head in LABELS else {}
    made = AutoConfig.for_model(config["model_type"], **arguments, **labels)
    with torch.device(device):
        return CLASSES[head].from_config(made)


def described(config: Mapping[str, Any], head: Head = "causal_lm") -> Architecture:
    found = describe_config(config, head)
    assert found is not None
    return found


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def small_of(model_type: str, **changes: Any) -> dict[str, Any]:
    """A small config as a file may say it: what the family leaves at its default is not in it."""
    return {"model_type": model_type} | SMALL | changes


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("row", PUBLISHED, ids=[row["models"][0] for row in PUBLISHED])
def test_every_model_of_the_recipes_is_counted_exactly(row: dict[str, Any]) -> None:
    """Every parameter by name and shape, and the number that the hub's page shows."""
    architecture, model = described(row["config"]), real(row["config"])
    assert {weight.name: weight.shape for weight in architecture.weights} == shapes(model)
    assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters()) == row["parameters"]


@pytest.mark.parametrize(
    "config",
    [
        small_of(kind, **changes)
        for kind in FAMILIES
        for changes in (*([] if kind in MIXTURES else [{}]), *MORE.get(kind, []))
    ],
    ids=lambda config: config["model_type"],
)
def test_every_family_is_counted_exactly(config: dict[str, Any]) -> None:
    for head, made_by in CLASSES.items():
        if AutoConfig.for_model(config["model_type"]).__class__ not in made_by._model_mapping:
            continue
        model = real(config, head)
        architecture = described(config, head)
        assert {weight.name: weight.shape for weight in architecture.weights} == shapes(model)
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert {weight.module for weight in architecture.weights if weight.linear} == linear - (
            {"lm_head"} if architecture.tied else set()
        )


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_a_config_leaves_out(kind: str) -> None:
    """The defaults that the table has are those of transformers' classes."""
    defaults = AutoConfig.for_model(kind).to_dict()
    said = {name: value for name, value in FAMILIES[kind].defaults.items() if name != "sliding_window"}
    assert {name: defaults[name] for name in said} == said


@pytest.mark.parametrize("kind", FAMILIES)
def test_which_layers_look_back_a_window(kind: str) -> None:
    for changes in ({}, {"use_sliding_window": True, "max_window_layers": 3}):
        config = small_of(kind, num_hidden_layers=8, sliding_window=16, **changes, **MIXTURES.get(kind, {}))
        made = AutoConfig.for_model(kind, **{name: value for name, value in config.items() if name != "model_type"})
        types = getattr(made, "layer_types", None)
        windowed = [cache.window is not None for cache in described(config).caches]
        if types is not None and FAMILIES[kind].window != "if wanted":
            assert windowed == [each == "sliding_attention" for each in types]
        elif types is not None:  # a lower bound: none that does not look back is taken for one that does
            assert all(mine or each != "sliding_attention" for mine, each in zip(windowed, types, strict=True))
        assert {cache.heads for cache in described(config).caches} == {made.num_key_value_heads}


# ---------------------------------------------------------------- adapters

ADAPTERS: list[dict[str, Any]] = [
    {"r": 4, "target_modules": "all-linear"},
    {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    {"target_modules": r".*\.1\.mlp\.(up|down)_proj", "rank_pattern": {"down_proj": 2}},
    {"r": 4, "target_modules": ["o_proj", "embed_tokens"], "layers_to_transform": None},
    {"r": 4, "target_modules": ["o_proj"], "layers_to_transform": [0, 2], "lora_bias": True},
    {"r": 4, "target_modules": ["v_proj", "lm_head"], "exclude_modules": ["layers.0.self_attn.v_proj"]},
    {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "norm"]},
    {"r": 4, "target_modules": ["q_proj", "v_proj"], "bias": "all"},
    {"r": 4, "target_modules": ["q_proj", "o_proj"], "bias": "lora_only"},
    {"r": 4, "target_modules": ["v_proj"], "trainable_token_indices": [3, 5, 7]},
    {},
]


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("section", ADAPTERS, ids=str)
def test_what_lora_trains(section: dict[str, Any]) -> None:
    for kind, head in (("qwen2", "causal_lm"), ("llama", "sequence_classification"), ("gemma2", "causal_lm")):
        config = small_of(kind, tie_word_embeddings=kind == "gemma2")
        if head != "causal_lm" and "lm_head" in section.get("target_modules", ()):
            continue
        made = peft.LoraConfig(task_type=TASKS[head], **section)
        adapted = peft.get_peft_model(real(config, head), made)
        found = describe_adapter(described(config, head), section, head)
        assert found is not None
        assert found.parameters == trainable(adapted)


def test_what_lora_trains_of_experts() -> None:
    config = small_of("qwen3_moe", **MIXTURES["qwen3_moe"])
    section = {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "experts.down_proj"]}  # noqa: E501  # fmt: skip
    adapted = peft.get_peft_model(real(config, device="cpu"), peft.LoraConfig(**section))
    found = describe_adapter(described(config), section, "causal_lm")
    assert found is not None
    assert found.parameters == trainable(adapted)


# ---------------------------------------------------------------- bytes

ONE_GPU = Shards()
BIG = small_of(
    "llama",
    vocab_size=512,
    hidden_size=256,
    intermediate_size=704,
    num_key_value_heads=4,
    num_hidden_layers=2,
    tie_word_embeddings=False,
)


def step(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Train a step; bytes of weights, gradients and optimizer states before the gradients are thrown away."""
    tokens = torch.arange(2, 34).reshape(2, 16)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return weigh(model, optimizer) | {"gradients": storages(gradients)}


def close(expected: Mapping[str, float], found: Mapping[str, float]) -> None:
    for name, size in found.items():
        assert expected[name] == pytest.approx(size, rel=0.02, abs=0), name


@pytest.mark.parametrize(
    ("dtype", "optim"),
    [
        ("float32", "adamw_torch"), ("bfloat16", "adamw_torch"), ("bfloat16", "sgd"), ("bfloat16", "adafactor"),
        ("float32", "rmsprop"), ("bfloat16", "adagrad"),
    ],
)  # fmt: skip
def test_a_step_of_full_training(dtype: str, optim: str) -> None:
    classes = {
        "adamw_torch": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
    }  # fmt: skip
    model = real(BIG, device="cpu").to(getattr(torch, dtype))
    if optim == "adafactor":
        optimizer = transformers.Adafactor(model.parameters(), scale_parameter=False, relative_step=False, lr=1e-4)
    else:
        optimizer = classes[optim](model.parameters(), lr=1e-4)
    found = step(model, optimizer)
    widths = decide_widths(dtype, "no", "NO", 0, quantized=False)
    expected = trained_bytes([(described(BIG).weights, widths.trained)], widths, OPTIMIZERS[optim], ONE_GPU)
    if optim == "sgd":
        assert found.pop("optimizer") == 0 == expected["optimizer"]
    close(expected, found)


@pytest.mark.parametrize(
    ("dtype", "section"),
    [
        ("float32", {"r": 32, "target_modules": "all-linear"}),
        ("bfloat16", {"r": 32, "target_modules": "all-linear"}),
        ("bfloat16", {"r": 8, "target_modules": ["q_proj"], "use_dora": True, "modules_to_save": ["lm_head"]}),
    ],
    ids=str,
)
def test_a_step_of_lora(dtype: str, section: dict[str, Any]) -> None:
    model = peft.get_peft_model(
        real(BIG, device="cpu").to(getattr(torch, dtype)), peft.LoraConfig(task_type="CAUSAL_LM", **section)
    )
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    with torch.autocast("cpu", torch.bfloat16):
        found = step(model, optimizer)
    widths = decide_widths(dtype, "bf16", "NO", 0, quantized=False)
    adapter = describe_adapter(described(BIG), section, "causal_lm")
    assert adapter is not None
    expected = trained_bytes(
        adapter_groups(adapter, widths, quantized=False), widths, OPTIMIZERS["adamw_torch"], ONE_GPU
    )
    expected["weights"] += frozen_bytes(described(BIG), widths.frozen, None, ONE_GPU)
    close(expected, found)


@pytest.mark.parametrize("double", [False, True])
def test_a_step_of_qlora(tmp_path: Path, double: bool) -> None:
    """TRL holds an adapter on quantised weights in bf16, under mixed precision."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    real(BIG, device="cpu").save_pretrained(tmp_path)
    section = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**section), device_map={"": "cpu"}
    )
    model = peft.get_peft_model(quantized, peft.LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[0]))
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    with torch.autocast("cpu", torch.bfloat16):
        found = step(model, optimizer)
    widths, quantization = decide_widths("bfloat16", "bf16", "NO", 0, quantized=True), read_quantization(section)
    adapter = describe_adapter(described(BIG), ADAPTERS[0], "causal_lm")
    assert adapter is not None
    groups = adapter_groups(adapter, widths, quantized=True)
    expected = trained_bytes(groups, widths, OPTIMIZERS["adamw_torch"], ONE_GPU)
    expected["weights"] += frozen_bytes(described(BIG), widths.frozen, quantization, ONE_GPU)
    close(expected, found)


def test_what_is_not_quantised() -> None:
    """Embeddings, norms and the output layer, as transformers skips them."""
    for config in (BIG, small_of("gemma2"), small_of("qwen3")):
        skipped = set(get_keys_to_not_convert(real(config)))
        quantization = read_quantization({"load_in_4bit": True})
        assert quantization is not None
        taken = {weight.module for weight in described(config).weights if quantization.takes(weight)}
        linear = {name for name, module in real(config).named_modules() if isinstance(module, nn.Linear)}
        assert taken == linear - skipped
