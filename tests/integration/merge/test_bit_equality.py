"""What is streamed is what PEFT computes, bit for bit, for every kind that is streamed and PEFT is right about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ptcli.merge.libtorch import LibTorch, find_library
from tests.integration.merge.families import (
    VOCAB,
    differing,
    make_adapter,
    make_base,
    merged_by_peft,
    merged_by_us,
    read,
)

ALL = {"target_modules": "all-linear"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{kind}, all linear": (kind, ALL) for kind in
       ("llama", "qwen2", "qwen3", "gemma", "mistral", "phi3", "gpt2", "mixtral", "qwen3_moe")},
    "gpt_neox, all linear": ("gpt_neox", ALL),
    "gpt_neox head": ("gpt_neox", {"target_modules": ["embed_out", "lm_head"]}),
    "reward model": ("llama", {"target_modules": ["q_proj", "up_proj"], "task_type": "SEQ_CLS"}),
    "reward model, tied": ("gemma", {"target_modules": ["q_proj", "up_proj"], "task_type": "SEQ_CLS"}),
    "gemma3 with its vision part": ("gemma3", {"target_modules": ["q_proj", "up_proj"]}),
    "llava with its vision part": ("llava", {"target_modules": ["q_proj", "lm_head"]}),
    "qwen2_5_vl with its vision part": ("qwen2_5_vl", {"target_modules": ["q_proj", "up_proj", "qkv"]}),
    "qwen2_vl text": ("qwen2_vl", {"target_modules": r".*language_model.*(q_proj|v_proj|up_proj|down_proj)"}),
    "rank 16, scale no power of two": ("llama", ALL | {"r": 16, "lora_alpha": 24}),
    "rsLoRA and patterns": ("qwen2", ALL | {
        "use_rslora": True, "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"v_proj": 5}}),
    "some layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "excluded modules": ("llama", ALL | {"exclude_modules": ["k_proj"]}),
    "biases": ("qwen2", ALL | {"bias": "all"}),
    "biases of lora": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "lora_bias": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "modules_to_save, untied": ("llama", ALL | {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "modules_to_save, norms": ("llama", ALL | {"modules_to_save": ["input_layernorm"]}),
    "modules_to_save, tied head": ("llama-tied", ALL | {"modules_to_save": ["lm_head"]}),
    "modules_to_save, tied embeddings": ("llama-tied", ALL | {"modules_to_save": ["embed_tokens"]}),
    "modules_to_save, both of a tied pair": ("llama-tied", ALL | {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "modules_to_save, tied as one": ("llama-tied", ALL | {
        "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "embeddings, untied": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "head, untied": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "trained tokens": ("llama", ALL | {"trainable_token_indices": [3, 1, 60]}),
    "trained tokens, tied": ("llama-tied", ALL | {"trainable_token_indices": [3, 1, 60]}),
    "trained tokens of both": ("llama", ALL | {"trainable_token_indices": {"embed_tokens": [3, 9], "lm_head": [5]}}),
    "tokens and embeddings of gpt2": ("gpt2", {"target_modules": ["wpe", "c_attn"], "fan_in_fan_out": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_equal(name: str, tmp_path: Path) -> None:
    kind, options = KINDS[name]
    base = make_base(kind, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    ours = merged_by_us(adapter, tmp_path / "ours")
    assert differing(ours, theirs) == []
    assert differing(ours, read(base)) != []
    assert differing(merged_by_us(adapter, tmp_path / "lean", numbers=LibTorch(find_library())), theirs) == []


@pytest.mark.parametrize("adapter_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype, adapter_dtype: torch.dtype, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", dtype=dtype)
    adapter = make_adapter(base, tmp_path / "adapter", adapter_dtype=adapter_dtype, **ALL)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    assert differing(merged_by_us(adapter, tmp_path / "ours"), theirs) == []
    assert differing(merged_by_us(adapter, tmp_path / "lean", numbers=LibTorch(find_library())), theirs) == []


GROWN: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}, {kind}": (kind, {"target_modules": ["q_proj"]} | options)
    for kind in ("llama", "llama-tied")
    for name, options in {
        "trained tokens": {"trainable_token_indices": [VOCAB, VOCAB + 6]},
        "trained whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
        "nothing of it trained": {},
    }.items()
}
"""Adapters of a model with more tokens than its base."""


@pytest.mark.parametrize("name", GROWN)
def test_a_vocabulary_that_has_grown(name: str, tmp_path: Path) -> None:
    kind, options = GROWN[name]
    base = make_base(kind, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", rows=VOCAB + 8, **options)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs", rows=VOCAB + 8)
    assert differing(merged_by_us(adapter, tmp_path / "ours"), theirs) == []
