"""A callback that both sides of a training comparison carry: CPU seconds a step, start-up excluded."""

import json
import os
import time
from typing import Any

from transformers import TrainerCallback

WARM_UP_STEPS = 5


class StepClock(TrainerCallback):
    """Writes the mean CPU seconds of the steps after the warm-up to the file that $BENCH_CLOCK names."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP_STEPS:
            self.start = time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        spent = time.process_time() - self.start
        with open(os.environ["BENCH_CLOCK"], "w") as file:
            json.dump(spent / (state.global_step - WARM_UP_STEPS), file)
