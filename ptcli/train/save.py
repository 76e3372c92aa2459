"""What the trainer leaves behind when training is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ptcli.errors import WorkError
from ptcli.run.checkpoints import Expected
from ptcli.train.plain_lora import save_plain
from ptcli.train.saving import look_at_final, look_for_room


def save_final(trainer: Any, output_dir: str, expected: Expected) -> None:
    """Save the trained model or adapter, its tokenizer and generation config at the top of the run directory.

    Called on every rank: under ZeRO-3 and FSDP the weights are gathered by the trainer's own `save_model`. Raises
    WorkError on rank 0: where there is no room, before anything is written, or where the weights are not whole.
    """
    if trainer.accelerator.is_main_process:
        look_for_room(trainer, Path(output_dir))
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    _give_back_the_end(trainer)
    trainer.save_model(output_dir)
    if trainer.accelerator.is_main_process:
        save_plain(trainer, output_dir)
    if trainer.accelerator.is_main_process and not has_weights(Path(output_dir)):
        raise WorkError(
            f"{output_dir} has no weights after saving; with ZeRO-3 the accelerate config needs "
            "`zero3_save_16bit_model: true`. The last checkpoint has them, in DeepSpeed's own format"
        )
    if trainer.accelerator.is_main_process:
        look_at_final(trainer, Path(output_dir), expected)


def _give_back_the_end(trainer: Any) -> None:
    """PPOTrainer takes the end of sequence out of the policy's generation config, which is saved with the model: told
    of no stop token, it would leave a model that never stops."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    generation = getattr(getattr(model, "policy", model), "generation_config", None)
    if generation is not None and generation.eos_token_id is None:
        generation.eos_token_id = getattr(trainer.processing_class, "eos_token_id", None)


def has_weights(folder: Path) -> bool:
    """True when a model's or an adapter's weights lie at the folder's top."""
    return any(path.suffix in (".safetensors", ".bin") and "model" in path.name for path in folder.iterdir())


def leave_together(trainer: Any) -> None:
    """Wait for the other ranks and leave the process group.

    Without it a gloo worker aborts at exit ("terminate called without an active exception") although all is done.
    """
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
