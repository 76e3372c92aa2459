"""Puts a recipe's guards into a trainer: `attach`.

Rank 0 decides. What stops a run raises WorkError there, before the optimizer's step or the next save; the launcher then
ends the other ranks. These only take part in what all must do together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ptcli.errors import WorkError
from ptcli.events import Event
from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe
from ptcli.train.completions import Recorder
from ptcli.train.guards import measures
from ptcli.train.guards.decisions import AdapterMoves, Facts, Finding, NonFinite, logged_decisions
from ptcli.train.guards.movement import are_finite, fingerprints, sample_trained
from ptcli.train.guards.resumed import ResumedLoss
from ptcli.train.progress import Heartbeat, Metrics, read_rows

_LIMIT_KEYS = ("max_completion_length", "max_new_tokens", "response_length")
_MOST_EVENTS = 10
"""Events of one guard that are told of; more would say nothing new."""


def attach(
    trainer: Any, recipe: Recipe, heartbeat: Heartbeat | None, metrics: Metrics | None, recorder: Recorder | None
) -> None:
    """Have the recipe's guards watch `trainer`; heartbeat and metrics are rank 0's, None on all others. `recorder`
    hears rewards where the trainer has some."""
    reporter = Reporter(recipe, heartbeat, metrics) if heartbeat and metrics else None
    watch = GuardCallback(trainer, recipe, reporter, recorder)
    trainer.add_callback(watch)
    accelerator = trainer.accelerator
    accelerator.backward = watch.watching_losses(accelerator.backward)
    accelerator.clip_grad_norm_ = watch.watching_gradients(accelerator.clip_grad_norm_)


class Reporter:
    """Turns findings into events: in the heartbeat, in the step's line of metrics.jsonl, and, to stop, as WorkError."""

    def __init__(self, recipe: Recipe, heartbeat: Heartbeat, metrics: Metrics):
        self._guards = recipe.guards
        self._heartbeat, self._metrics = heartbeat, metrics
        self._events: list[Event] = []

    def remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over what was told of earlier steps, from lines of metrics.jsonl."""
        self._events = [Event.from_dict(event) for row in rows for event in row.get("guards") or ()]
        if self._events:
            self._heartbeat.beat(events=[event.as_dict() for event in self._events])

    def report(self, guard: str, step: int, finding: Finding | None) -> None:
        """Raises WorkError when the guard stops the run."""
        if finding is None or sum(event.guard == guard for event in self._events) >= _MOST_EVENTS:
            return
        action: Literal["warn", "stop"] = "warn" if finding.only_warns else self._guards.guard(guard).action
        message = f"guard {guard} at step {step}: {finding.message}"
        self._events.append(Event(guard, step, action, message, finding.value))
        self._metrics.log(step, {"guards": [event.as_dict() for event in self._events if event.step == step]})
        self._heartbeat.beat(events=[event.as_dict() for event in self._events])
        if action == "stop":
            raise WorkError(message)


class GuardCallback(TrainerCallback):
    """Feeds the decisions with what a trainer does."""

    def __init__(self, trainer: Any, recipe: Recipe, reporter: Reporter | None, recorder: Recorder | None):
        self._trainer, self._recipe, self._reporter, self._recorder = trainer, recipe, reporter, recorder
        spec, facts = recipe.guards, read_facts(trainer)
        self._logged = dict(logged_decisions(spec, facts, watched(trainer, recipe)))
        losses, moves = spec.guard("non_finite"), spec.guard("adapter_moves")
        self._non_finite = NonFinite(losses, facts) if losses.action != "off" else None
        self._moves = AdapterMoves(moves) if moves.action != "off" else None
        self._resumed: ResumedLoss | None = None
        self._sample: dict[str, torch.Tensor] = {}
        self._before: dict[str, int] = {}
        self._norm: float | None = None
        """Norm of this step's gradient; None where nobody says it."""
        self._rate: float | None = None
        """Learning rate of this step."""

    def watching_losses(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        """`accelerator.backward`, through which the loss of every trainer goes, with a look at the loss before."""

        def watched_backward(loss: torch.Tensor, **arguments: Any) -> Any:
            if self._non_finite and self._reporter:
                finding = self._non_finite.judge_loss(float(loss.detach().sum()))
                self._report("non_finite", finding, self._trainer.state.global_step + 1)
            return backward(loss, **arguments)

        return watched_backward

    def watching_gradients(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """`accelerator.clip_grad_norm_`, which tells the norm whether it clips or not."""

        def watched_clip(*arguments: Any, **options: Any) -> Any:
            norm = clip(*arguments, **options)
            self._norm = _as_number(norm)
            return norm

        return watched_clip

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        adapter = self._recipe.trains_adapter
        self._sample = sample_trained(self._trainer.model.named_parameters(), adapter=adapter)
        if self._reporter and self._moves and self._sample:
            self._before = fingerprints(self._sample)
        if self._reporter and state.global_step:
            self._look_back(Path(args.output_dir), state.global_step)
            self._await_resumed(state)

    def _look_back(self, output_dir: Path, step: int) -> None:
        """Judge what the run logged before it went on, so that counts and what is compared with the start survive."""
        rows = read_rows(output_dir, step)
        for row in rows:
            for decision in self._logged.values():
                decision.judge(row)
        if self._reporter:
            self._reporter.remember(rows)

    def _await_resumed(self, state: TrainerState) -> None:
        guard, online = self._recipe.guards.guard("resumed_loss"), METHODS[self._recipe.method].online
        if guard.action != "off":
            self._resumed = ResumedLoss(guard, state.log_history, state.global_step, online=online)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any
    ) -> None:
        self._rate = max(group["lr"] for group in about["optimizer"].param_groups)
        if self._non_finite and self._norm is not None:
            finding = self._non_finite.judge_gradient(self._norm)
            self._report("non_finite", finding, state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        norm, self._norm = self._norm, None
        if not self._reporter:
            return
        if self._non_finite and norm is None:
            self._report("non_finite", self._non_finite.judge_weights(are_finite(self._sample)), state.global_step)
        if self._before and self._moves and self._is_real(norm):
            finding = self._moves.judge_step(self._before, fingerprints(self._sample))
            if self._moves.settled:
                self._before = {}
            self._report("adapter_moves", finding, state.global_step)

    def _is_real(self, norm: float | None) -> bool:
        """Whether the optimizer had reason to change something: warm-up begins with a learning rate of 0, a batch
        without reward variance has a gradient of 0, and fp16 skips steps."""
        moving = norm is None or (math.isfinite(norm) and norm > 0)
        return moving and bool(self._rate) and not self._trainer.accelerator.optimizer_step_was_skipped

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "lr" in logs:  # a trainer with a loop of its own, which calls before its step's end
            self._rate = measures.number(logs, "lr")
        if self._non_finite and self._reporter:
            self._report("non_finite", self._non_finite.judge(logs or {}), state.global_step)
        if self._resumed:
            self._report("resumed_loss", self._resumed.judge(logs or {}, state.global_step), state.global_step)
        complete = self._with_variance(logs or {})
        for name, decision in self._logged.items() if self._reporter else ():
            self._report(name, decision.judge(complete), state.global_step)

    def _with_variance(self, logs: dict[str, Any]) -> dict[str, Any]:
        """What was logged, and the share of groups without variance where the trainer never logs it itself."""
        if measures.NO_VARIANCE in logs:
            self._recorder = None
        if self._recorder is None or "loss" not in logs:  # an evaluation is logged too, or the end
            return logs
        return logs | {measures.NO_VARIANCE: measures.share_without_variance(self._recorder.last_rewards)}

    def _report(self, guard: str, finding: Finding | None, step: int) -> None:
        if self._reporter:
            self._reporter.report(guard, step, finding)


def read_facts(trainer: Any) -> Facts:
    """What the decisions need to know, from the trainer's arguments."""
    args = trainer.args
    key = next((name for name in _LIMIT_KEYS if isinstance(getattr(args, name, None), int)), None)
    batch, group = getattr(args, "generation_batch_size", None), getattr(args, "num_generations", None)
    half = trainer.accelerator.mixed_precision == "fp16"
    return Facts(
        limit_key=f"training.{key or _LIMIT_KEYS[0]}",
        longest=getattr(args, key) if key else None,
        groups=max(1, batch // group) if batch and group else 1,
        half=half,
    )


def watched(trainer: Any, recipe: Recipe) -> dict[str, bool]:
    """Which guards on logged metrics have something to watch in this run; those that are not named have."""
    row, args = METHODS[recipe.method], trainer.args
    penalty = getattr(args, "kl_coef", getattr(args, "beta", None))
    return {
        # Where rewards are a choice, there is another signal beside them.
        "reward_variance": bool({"rewards", "reward_model"} & set(row.needs))
        and getattr(args, "num_generations", 2) > 1,
        "clipped_completions": row.online,
        "entropy": row.online,
        "kl": row.online and any(_numbers(penalty)),
        "stale_weights": row.online,
    }


def _numbers(value: Any) -> Iterator[float]:
    yield from value if isinstance(value, list | tuple) else [value or 0.0]


def _as_number(norm: Any) -> float | None:
    """A norm as a float. Of a sharded tensor all ranks must ask, so all do."""
    if norm is None:
        return None
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
