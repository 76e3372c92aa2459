"""Tiny models of many families, adapters that PEFT makes for them, and what PEFT's own merge gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ptcli.merge.libtorch import LibTorch
from ptcli.merge.plan import plan_merge
from ptcli.merge.run import write_index
from ptcli.merge.stream import stream

WIDTH, VOCAB = 32, 64
_COMMON: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {"depth": 1, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "in_chans": 3, "patch_size": 4}

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON),
    "llama-tied": lambda: transformers.LlamaConfig(**_COMMON | {"tie_word_embeddings": True}),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**_COMMON | {"tie_word_embeddings": True}, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**_COMMON),
    "phi3": lambda: transformers.Phi3Config(**_COMMON),
    "gpt2": lambda: transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=64),
    "mixtral": lambda: transformers.MixtralConfig(**_COMMON, num_local_experts=3, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_COMMON, head_dim=8, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1
    ),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config={**_COMMON, "tie_word_embeddings": True, "head_dim": 8, "model_type": "gemma3_text"},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 8, "patch_size": 4}, mm_tokens_per_image=4),
    "llava": lambda: transformers.LlavaConfig(
        text_config={**_COMMON, "model_type": "llama"},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 8, "patch_size": 4, "model_type": "clip_vision_model", "projection_dim": 16}),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=VOCAB),
    "qwen2_5_vl": lambda: transformers.Qwen2_5_VLConfig(
        text_config=_COMMON | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2],
                                                   "rope_theta": 10000.0}},
        vision_config={"depth": 1, "hidden_size": 16, "out_hidden_size": WIDTH, "num_heads": 2, "in_chans": 3,
                       "patch_size": 4, "intermediate_size": 16, "fullatt_block_indexes": [0]},
        tie_word_embeddings=False),
    "qwen2_vl": lambda: transformers.Qwen2VLConfig(
        text_config=_COMMON | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2],
                                                   "rope_theta": 10000.0}},
        vision_config=_VISION, tie_word_embeddings=False),
}  # fmt: skip


SEEING = ("qwen2_vl", "qwen2_5_vl", "gemma3", "llava")
"""Families with a vision part."""


def make_base(kind: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16, shards: str = "60KB") -> Path:
    """A tiny model of random weights, in several files."""
    torch.manual_seed(1)
    config = FAMILIES[kind]()
    auto = transformers.AutoModelForImageTextToText if kind in SEEING else transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size=shards)
    return folder


def load_base(folder: Path, task: str = "CAUSAL_LM", rows: int | None = None) -> Any:
    """The model, with so many rows of embeddings where that is said."""
    model = _load(folder, task)
    if rows:
        model.resize_token_embeddings(rows)
    return model


def _load(folder: Path, task: str) -> Any:
    if task == "SEQ_CLS":
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto", num_labels=1)
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder, dtype="auto")


def make_adapter(
    base: Path, folder: Path, *, adapter_dtype: torch.dtype | None = None, rows: int | None = None, **options: Any
) -> Path:
    """An adapter of random weights, saved by PEFT."""
    torch.manual_seed(2)
    options = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(load_base(base, options["task_type"], rows), LoraConfig(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    if adapter_dtype is not None:
        rewrite(folder, lambda tensors: {name: each.to(adapter_dtype) for name, each in tensors.items()})
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the tensors of an adapter."""
    path = folder / "adapter_model.safetensors"
    save_file({name: each.contiguous() for name, each in change(load_file(path)).items()}, path, {"format": "pt"})


def reconfigure(folder: Path, **values: Any) -> None:
    """Change an adapter's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def merged_by_peft(base: Path, adapter: Path, folder: Path, rows: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors of PEFT's merged model, by their names in its files."""
    task = json.loads((adapter / "adapter_config.json").read_text())["task_type"]
    PeftModel.from_pretrained(load_base(base, task, rows), str(adapter)).merge_and_unload().save_pretrained(folder)
    return read(folder)


def merged_by_us(
    adapter: Path, folder: Path, *, numbers: LibTorch | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """The tensors of our streamed merge: by torch as it is imported here, or by its library alone."""
    plan = plan_merge(str(adapter), **options)
    assert plan.mode == "stream", plan.reason
    folder.mkdir()
    stream(plan, folder, lambda *_: None, numbers)
    write_index(plan.shards, folder)
    return read(folder)


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def differing(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same, bit for bit."""
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours
        or name not in theirs
        or ours[name].dtype != theirs[name].dtype
        or ours[name].shape != theirs[name].shape
        or not torch.equal(ours[name].contiguous().view(torch.uint8), theirs[name].contiguous().view(torch.uint8))
    )
