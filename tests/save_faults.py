"""Callbacks for recipes whose saves go wrong in one way or another."""

from __future__ import annotations

import os
import shutil
import signal
import struct
from collections import namedtuple
from pathlib import Path
from typing import Any

import transformers.trainer
from transformers import TrainerCallback


class NoRoom(TrainerCallback):
    """From a step on, or without one from the end of the training, the disk says that it is full."""

    def __init__(self, step: int | None = None):
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self._fill()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._step is None:
            self._fill()

    def _fill(self) -> None:
        shutil.disk_usage = lambda path: namedtuple("Usage", "total used free")(10**9, 10**9 - 1000, 1000)


class EmptyAdapter(TrainerCallback):
    """What is saved has all its names, and zeros."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        save = transformers.trainer.Trainer._save

        def save_zeros(trainer: Any, output_dir: Any = None, state_dict: Any = None) -> None:
            save(trainer, output_dir, state_dict)
            file = Path(output_dir) / "adapter_model.safetensors"
            data = bytearray(file.read_bytes())
            start = 8 + struct.unpack("<Q", data[:8])[0]
            data[start:] = bytes(len(data) - start)
            file.write_bytes(data)

        transformers.trainer.Trainer._save = save_zeros


class KilledWithinSave(TrainerCallback):
    """The process dies when the weights of a step are written and the optimizer is not."""

    def __init__(self, step: int):
        self._step = step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        save = transformers.trainer.Trainer._save_optimizer_and_scheduler

        def die(trainer: Any, output_dir: str) -> None:
            if trainer.state.global_step == self._step and "PTCLI_SURVIVES" not in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            save(trainer, output_dir)

        transformers.trainer.Trainer._save_optimizer_and_scheduler = die
