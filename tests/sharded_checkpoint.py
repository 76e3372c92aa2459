"""Run by torchrun, two processes on a CPU: train a step and leave a sharded checkpoint, and the whole weights beside.

sharded_checkpoint.py KIND MODEL FOLDER [float32|bfloat16]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM

IDS = torch.arange(16).view(2, 8)


def fsdp(model: Any, folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """FSDP2, saved as accelerate's `save_fsdp_model` does for SHARDED_STATE_DICT (which has no FSDP on a CPU)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    place = folder / "pytorch_model_fsdp_0"
    place.mkdir(parents=True, exist_ok=True)
    dcp.save({"model": get_model_state_dict(model)}, storage_writer=dcp.FileSystemWriter(str(place)))
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def zero(model: Any, folder: Path, dtype: str, stage: int) -> dict[str, torch.Tensor]:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config, model_parameters=model.parameters())
    engine.backward(engine(input_ids=IDS, labels=IDS).loss)
    engine.step()
    engine.save_checkpoint(str(folder))
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return {name: each.detach().clone() for name, each in model.state_dict().items()}


KINDS: dict[str, Any] = {
    "fsdp": fsdp,
    "zero2": lambda *arguments: zero(*arguments, stage=2),
    "zero3": lambda *arguments: zero(*arguments, stage=3),
}


def main(kind: str, model: str, folder: str, dtype: str = "float32") -> None:
    dist.init_process_group("gloo")
    whole = KINDS[kind](AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), Path(folder), dtype)
    if dist.get_rank() == 0:
        torch.save(whole, Path(folder).with_suffix(".pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
