"""What the trainer leaves behind when training is over."""

from __future__ import annotations

from typing import Any

import torch


def save_final(trainer: Any, output_dir: str) -> None:
    """Save the trained model or adapter, its tokenizer and generation config at the top of the run directory.

    Called on every rank: under ZeRO-3 and FSDP the weights are gathered by the trainer's own `save_model`.
    """
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(output_dir)


def leave_together(trainer: Any) -> None:
    """Wait for the other ranks and leave the process group.

    Without it a gloo worker aborts at exit ("terminate called without an active exception") although all is done.
    """
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
