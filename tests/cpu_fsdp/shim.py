"""In the trainer's processes: accelerate takes a CPU run whose config says FSDP for one."""

from __future__ import annotations

import os
from typing import Any

import accelerate.state
from accelerate.utils import DistributedType
from transformers import TrainerCallback


def enable_fsdp_on_cpu() -> None:
    """Have AcceleratorState choose FSDP for gloo processes as it does for NCCL's. Before the first is made."""
    plain = accelerate.state.AcceleratorState.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        new = not self._shared_state
        plain(self, *arguments, **named)
        wanted = os.environ.get("ACCELERATE_USE_FSDP") == "true"
        if new and wanted and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = named.get("fsdp_plugin")
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = init


class FsdpOnCpu(TrainerCallback):
    """A callback of a recipe: ptcli makes those before it makes the trainer, in every process."""

    def __init__(self) -> None:
        enable_fsdp_on_cpu()
