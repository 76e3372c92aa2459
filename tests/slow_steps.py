"""A callback for recipes whose runs are stopped in the middle."""

from __future__ import annotations

import time
from typing import Any

from transformers import Trainer, TrainerCallback


class Slowly(TrainerCallback):
    """Makes steps long enough for a signal to come within one."""

    def __init__(self, seconds: float = 0.4):
        self._seconds = seconds

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(self._seconds)


class SlowSaves(TrainerCallback):
    """Makes saves long enough for a signal to come within one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        save = Trainer._save_rng_state

        def save_slowly(trainer: Any, output_dir: str) -> None:
            time.sleep(3)
            save(trainer, output_dir)

        Trainer._save_rng_state = save_slowly
