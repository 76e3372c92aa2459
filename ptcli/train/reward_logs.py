"""What rewards log, made the same on every rank and in every batch.

TRL gathers each name of `log_metric` and each column of `log_extra` in a collective of its own, in the order of the
names. A rank on which a reward ran out of time, and so logged nothing, would meet the others in the wrong collective:
they would wait for each other for good.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from accelerate.utils import gather_object


def align_logs(trainer: Any) -> None:
    """After each calculation of rewards, give what only some ranks or earlier batches logged a value here too.

    A metric becomes NaN, which TRL leaves out of the step's mean; a column gets a None for each completion.
    """
    calculate = trainer._calculate_rewards

    @functools.wraps(calculate)
    def calculate_and_align(inputs: Any, prompts: list[Any], *rest: Any, **more: Any) -> Any:
        rewards = calculate(inputs, prompts, *rest, **more)
        metrics, columns = trainer._pending_metrics, trainer._pending_extra_logs
        names = [(tuple(metrics), (*columns, *trainer._logs["extra"]))]
        if trainer.accelerator.num_processes > 1:
            names = gather_object(names)
        for name in {name for of_rank, _ in names for name in of_rank} - metrics.keys():
            metrics[name] = [math.nan]
        for name in {name for _, of_rank in names for name in of_rank} - columns.keys():
            columns[name] = [None] * len(prompts)
        return rewards

    trainer._calculate_rewards = calculate_and_align
