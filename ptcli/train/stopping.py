"""Ending a run with a checkpoint when the supervisor asks for it, and going on from one.

The supervisor writes a file; rank 0 looks for it after each step and each save, and tells the others, so that all ranks
save at the same step. Signals would not do: torchrun ends its workers when it gets one.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ptcli.run.rundir import REQUEST
from ptcli.train.saving import ADAPTER

LOOK_SECONDS = 1.0
"""Between two looks of several ranks: telling each other is a message and a stop of the GPUs, too much for a step of
milliseconds."""
_MOST_STEPS = 1000


class Stopped(Exception):
    """The checkpoint that was asked for is saved. Raised on all ranks."""


class NothingLeft(Exception):
    """The checkpoint is that of the last step. transformers would train one more. Raised on all ranks."""


class StopAtRequest(TrainerCallback):
    """Saves and ends when asked. A trainer's last callback: it decides after all others."""

    def __init__(self, trainer: Any, output_dir: Path):
        self._trainer, self._request = trainer, output_dir / REQUEST
        self._asked = False
        self._look_at = 0
        """Step after which several ranks look again."""
        self._looked: tuple[int, float] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if 0 < state.max_steps <= state.global_step:
            raise NothingLeft
        self._look_at, self._looked = state.global_step, (state.global_step, time.monotonic())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps > 0 or not self._look(state.global_step):
            return
        # What was summed up of the loss since the last logged step is in no checkpoint.
        control.should_log = control.should_save = control.should_training_stop = True
        control.should_evaluate = False
        args.save_only_model = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        finished = state.global_step >= state.max_steps > 0
        full = not args.save_only_model
        if not finished and full and (self._asked or self._look(state.global_step, now=True)):
            raise Stopped

    def _look(self, step: int, *, now: bool = False) -> bool:
        """Whether a checkpoint was asked for: the same on all ranks, which must come here at the same steps."""
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            self._asked = self._request.exists()
        elif now or step >= self._look_at:
            told = torch.tensor([self._request.exists(), self._pause(step)], device=accelerator.device)
            torch.distributed.broadcast(told, 0)
            self._asked, self._look_at = bool(told[0]), step + int(told[1])
        return self._asked

    def _pause(self, step: int) -> int:
        """Steps until the next look."""
        before, self._looked = self._looked, (step, time.monotonic())
        if before is None or before[0] >= step:
            return 1
        seconds = (time.monotonic() - before[1]) / (step - before[0])
        return max(1, min(_MOST_STEPS, int(LOOK_SECONDS / max(seconds, 1e-6))))


def go_on(trainer: Any, checkpoint: str) -> None:
    """Let a trainer continue where the run was that wrote the checkpoint. Raises NothingLeft, or what training raises.

    Trainers that generate count their micro-steps, to know when completions are due, and all count tokens; TRL starts
    counting anew.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if hasattr(trainer, "_total_train_tokens"):
        tokens = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
        trainer._total_train_tokens = int(tokens[-1]) if tokens else 0
    _load_trained_adapter(trainer)
    if hasattr(trainer, "_buffered_inputs"):
        trainer._step = state.global_step * trainer.args.gradient_accumulation_steps
    _know_numbered_cpus()
    trainer.train(resume_from_checkpoint=checkpoint)


@functools.cache
def _know_numbered_cpus() -> None:
    """Where several processes train on a CPU, transformers (5.17) loads the optimizer onto `cpu:0`, which torch.load
    does not know for what it is. Once a process: torch cannot sort two that come at the same place."""

    def restore(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    torch.serialization.register_package(0, lambda _: None, restore)


def _load_trained_adapter(trainer: Any) -> None:
    """Of a checkpoint with several adapters, transformers 5.17 loads those in folders of their own, as the reference,
    and not the trained one, which lies at its top: it would start anew without a word."""
    load = trainer._load_from_checkpoint

    @functools.wraps(load)
    def load_all(checkpoint: str, model: Any = None) -> None:
        load(checkpoint, model)
        adapted = trainer.model if model is None else model
        if isinstance(adapted, PeftModel) and len(adapted.peft_config) > 1 and not trainer.is_fsdp_enabled:
            adapted.load_adapter(checkpoint, ADAPTER, is_trainable=True)
            adapted.set_adapter(ADAPTER)

    trainer._load_from_checkpoint = load_all
