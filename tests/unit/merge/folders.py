"""Folders of bases and adapters, made of headers and zeros, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptcli.merge.headers import build_header
from ptcli.merge.model import Output

Shapes = Mapping[str, tuple[int, ...]]
WIDTH, INNER, VOCAB, RANK = 8, 12, 16, 4
LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "num_hidden_layers": 2,
    "vocab_size": VOCAB,
}  # fmt: skip


def write_tensors(path: Path, shapes: Shapes, dtype: str = "BF16", fill: bytes = b"\0") -> Path:
    """A safetensors file whose tensors are one byte again and again."""
    outputs = [Output(name, dtype, shape, None) for name, shape in shapes.items()]
    size = sum(each.nbytes for each in outputs)
    path.write_bytes(build_header(outputs, {"format": "pt"}) + fill * size)
    return path


def layer(index: int) -> dict[str, tuple[int, ...]]:
    root = f"model.layers.{index}"
    return {
        f"{root}.self_attn.q_proj.weight": (WIDTH, WIDTH),
        f"{root}.mlp.up_proj.weight": (INNER, WIDTH),
        f"{root}.mlp.down_proj.weight": (WIDTH, INNER),
        f"{root}.input_layernorm.weight": (WIDTH,),
    }


def llama(layers: int = 2, *, tied: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of a tiny Llama."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for index in range(layers):
        shapes |= layer(index)
    return shapes | {"model.norm.weight": (WIDTH,)} | ({} if tied else {"lm_head.weight": (VOCAB, WIDTH)})


def make_base(folder: Path, shapes: Shapes | None = None, *, dtype: str = "BF16", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    write_tensors(folder / "model.safetensors", llama() if shapes is None else shapes, dtype)
    return folder


def shard(folder: Path, count: int = 2, *, index: bool = True) -> Path:
    """Cut a base's single file into several."""
    shapes = llama()
    names = list(shapes)
    (folder / "model.safetensors").unlink()
    places = {}
    for number in range(count):
        path = folder / f"model-{number + 1:05}-of-{count:05}.safetensors"
        write_tensors(path, {name: shapes[name] for name in names[number::count]})
        places |= dict.fromkeys(names[number::count], path.name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def lora(modules: Sequence[str], shapes: Shapes, rank: int = RANK) -> dict[str, tuple[int, ...]]:
    """Shapes of A and B for modules of a base."""
    pairs = {}
    for module in modules:
        rows, columns = shapes[f"{module}.weight"]
        pairs[f"base_model.model.{module}.lora_A.weight"] = (rank, columns)
        pairs[f"base_model.model.{module}.lora_B.weight"] = (rows, rank)
    return pairs


def linear(shapes: Shapes) -> list[str]:
    return [name.removesuffix(".weight") for name in shapes if "_proj" in name]


def make_adapter(
    folder: Path, base: Path | str, shapes: Shapes | None = None, *, dtype: str = "F32", **config: Any
) -> Path:
    """An adapter of all linear layers of the tiny Llama; `config` changes its config."""
    folder.mkdir(parents=True)
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
        "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "down_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    mine = lora(linear(llama()), llama()) if shapes is None else shapes
    write_tensors(folder / "adapter_model.safetensors", mine, dtype)
    return folder
