"""The TrainerCallback behind `ptcli.train.progress`, and the recipe's own callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ptcli.errors import WorkError
from ptcli.recipe.model import CallbackSpec
from ptcli.recipe.secrets import reveal
from ptcli.train.objects import load_object
from ptcli.train.progress import Heartbeat, Metrics


class ProgressCallback(TrainerCallback):
    """A heartbeat for finished steps, a line in `metrics.jsonl` at every logged one. For rank 0 only."""

    def __init__(self, heartbeat: Heartbeat, metrics: Metrics):
        self.heartbeat = heartbeat
        self.metrics = metrics

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.metrics.open(state.global_step)
        self.heartbeat.beat(phase="training", step=state.global_step, total=state.max_steps or None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not control.should_log:  # else on_log follows at once, with the figures of this step
            self.heartbeat.tick(state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.heartbeat.tick(state.global_step)  # a long evaluation is progress too

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.metrics.log(state.global_step, logs or {})
        self.heartbeat.note(logs or {})
        self.heartbeat.tick(state.global_step)


def load_callbacks(specs: Sequence[CallbackSpec]) -> list[TrainerCallback]:
    """The recipe's own callbacks. Raises WorkError for one that cannot be made or is no TrainerCallback."""
    return [_load_callback(spec) for spec in specs]


def _load_callback(spec: CallbackSpec) -> TrainerCallback:
    made = load_object(spec.use)
    try:
        callback = made(**reveal(spec.args))
    except TypeError as error:
        raise WorkError(f"callback `{spec.use}` cannot be made: {error}") from error
    if not isinstance(callback, TrainerCallback):
        raise WorkError(f"callback `{spec.use}` is a {type(callback).__name__}, not a transformers TrainerCallback")
    return callback
