"""`completions.jsonl`: what the model wrote in each logged step, and what it got for it.

One object a completion: {"step", "prompt", "completion", "rewards": {name: number or null}, "reward", "advantage",
"extra"}. `reward` is the weighted sum, null where no reward applied; `advantage` and `extra` (what a reward logged with
`log_extra`) stand where the trainer has them. Written by rank 0 alone.

A step has the completions that were written since the last logged one: with `steps_per_generation` or `num_iterations`
several steps learn from one batch, which stands at the first of them. TRL's trainers keep these figures in three
places; each has a function here that listens there. PPO keeps them in local variables and has no table.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ptcli.errors import WorkError
from ptcli.train.progress import plain, step_of
from ptcli.train.reward_logs import align_logs

MOST_COMPLETIONS = 64
"""Completions of one step that are written, the first of them: whole groups, unless these are larger."""
MOST_BYTES = 256 * 1024
"""Bytes of one step; a table of 10,000 steps stays below 2.5 GiB, however long the completions are."""
FILE = "completions.jsonl"


@dataclass(frozen=True)
class Completion:
    """A completion and its rewards."""

    prompt: str
    completion: str
    rewards: Mapping[str, float | None]
    reward: float | None
    advantage: float | None = None
    extra: Mapping[str, Any] | None = None


class Recorder(TrainerCallback):
    """Collects completions as they are scored, and writes them when a step is logged."""

    def __init__(self, path: Path | None):
        """`path`: None on all ranks but the first."""
        self._path = path
        self._step = -1
        self._fresh: list[Completion] = []
        self.last_rewards: list[list[float | None]] = []
        """Weighted reward sums of the latest batch, a list for each group of completions of one prompt."""

    def note(self, step: int, completions: Sequence[Completion], groups: Sequence[Sequence[float | None]]) -> None:
        """Keep the completions of an optimizer step, which may come in several batches."""
        self._fresh = [*(self._fresh if step == self._step else []), *completions][:MOST_COMPLETIONS]
        self._step = step
        self.last_rewards = [list(group) for group in groups]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._path:
            _drop_after(self._path, state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._path and self._fresh:
            with self._path.open("ab") as file:
                file.write(b"".join(_lines(state.global_step, self._fresh)))
        self._fresh = []


def record(trainer: Any, output_dir: Path) -> Recorder | None:
    """Have the trainer's completions written to `output_dir`; None for a trainer that gives completions no rewards."""
    watch = next((watch for method, watch in _WATCHES.items() if hasattr(trainer, method)), None)
    if watch is None or not getattr(trainer, "reward_funcs", None):
        return None
    recorder = Recorder(output_dir / FILE if trainer.accelerator.is_main_process else None)
    watch(trainer, recorder)
    trainer.add_callback(recorder)
    return recorder


# --- the file --------------------------------------------------------------------------------------------------------


def _drop_after(path: Path, step: int) -> None:
    """Begin after `step`: the lines up to it stay, later ones are trained again."""
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8") as kept:
        if step and path.exists():
            with path.open(encoding="utf-8", errors="replace") as lines:
                kept.writelines(line for line in lines if line.endswith("\n") and step_of(line) <= step)
    os.replace(draft, path)


def _lines(step: int, completions: Sequence[Completion]) -> Iterator[bytes]:
    """At least one line; then as many as there is room for."""
    room = MOST_BYTES
    for number, completion in enumerate(completions):
        row = {name: value for name, value in asdict(completion).items() if name in _ALWAYS or value is not None}
        line = json.dumps({"step": step} | plain(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        room -= len(line)
        if number and room < 0:
            return
        yield line


_ALWAYS = frozenset({"prompt", "completion", "rewards", "reward"})


# --- where the trainers score completions ----------------------------------------------------------------------------


def _watch_groups(trainer: Any, recorder: Recorder) -> None:
    """GRPO and its heirs, RLOO: `_logs` has the latest batch of all ranks, in the order of the groups."""
    align_logs(trainer)
    generate = trainer._generate_and_score_completions

    @functools.wraps(generate)
    def generate_and_record(inputs: list[Any]) -> Any:
        result = generate(inputs)
        if trainer.model.training:
            count = len(inputs) * trainer.accelerator.num_processes
            batch = _latest(trainer, count)
            groups = _grouped([each.reward for each in batch], trainer.num_generations)
            recorder.note(trainer.state.global_step, batch, groups)
        return result

    trainer._generate_and_score_completions = generate_and_record


def _latest(trainer: Any, count: int) -> list[Completion]:
    logs, names = trainer._logs, trainer.reward_func_names
    weights = trainer.reward_weights.tolist()
    prompts, texts, advantages = (list(logs[name])[-count:] for name in ("prompt", "completion", "advantages"))
    scores = [list(logs["rewards"][name])[-count:] for name in names]
    extra = {name: list(values)[-count:] for name, values in logs["extra"].items() if len(values) >= len(texts)}
    found = []
    for index, (prompt, text, advantage) in enumerate(zip(prompts, texts, advantages, strict=True)):
        given = [_number(column[index]) for column in scores]
        more = {name: values[index] for name, values in extra.items()} or None
        rewards = dict(zip(names, given, strict=True))
        found.append(Completion(prompt, text, rewards, weighted_sum(given, weights), _number(advantage), more))
    return found


def _watch_pairs(trainer: Any, recorder: Recorder) -> None:
    """Online DPO: the scores of each reward are local to the method that adds them up, so the rewards are listened to.

    Of several processes, only the first one's completions are seen. TRL counts None as 0 there, and would learn from
    two completions without any reward as from a tie.
    """
    given: dict[int, list[float | None]] = {}
    trainer.reward_funcs = [
        _listened_to(each, index, given, trainer) for index, each in enumerate(trainer.reward_funcs)
    ]
    calculate, names, weights = (
        trainer._calculate_rewards_from_functions, trainer.reward_func_names, trainer.reward_weights.tolist(),
    )  # fmt: skip

    @functools.wraps(calculate)
    def calculate_and_record(prompts: list[Any], completions: list[Any], *rest: Any, **columns: Any) -> Any:
        total = calculate(prompts, completions, *rest, **columns)
        scores = [[given[index][row] for index in range(len(names))] for row in range(len(prompts))]
        sums = [weighted_sum(row, weights) for row in scores]
        step = trainer.state.global_step
        if all(each is None for each in sums):
            raise WorkError(f"no completion of step {step + 1} got a reward: {', '.join(names)} gave None for all")
        batch = [
            Completion(_text(prompt), _text(text), dict(zip(names, row, strict=True)), each)
            for prompt, text, row, each in zip(prompts, completions, scores, sums, strict=True)
        ]
        half = len(sums) // 2
        recorder.note(step, batch, list(zip(sums[:half], sums[half:], strict=True)))
        return total

    trainer._calculate_rewards_from_functions = calculate_and_record


def _listened_to(reward: Any, index: int, given: dict[int, list[float | None]], trainer: Any) -> Any:
    """The same reward, whose scores land in `given[index]`; and the timeouts of one that cannot log them itself."""
    if isinstance(reward, nn.Module):

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            given[index] = [_number(each) for each in output.logits[:, 0].tolist()]

        reward.register_forward_hook(note)
        return reward

    @functools.wraps(reward)
    def score(**columns: Any) -> list[Any]:
        scores = list(reward(**columns))
        given[index] = [None if each is None else _number(each) for each in scores]
        timed = getattr(reward, "timed", None)
        if timed is not None:
            trainer.stats.setdefault(f"rewards/{timed.name}/timeouts", []).append(float(timed.has_timed_out))
        return scores

    return score


def _watch_scored(trainer: Any, recorder: Recorder) -> None:
    """XPO and Nash-MD: one reward model, and tokens. The completions of the other model are not written."""
    compute, names = trainer._compute_rewards, trainer.reward_func_names

    @functools.wraps(compute)
    def compute_and_record(own: Mapping[str, Any], others: Mapping[str, Any], context_length: int) -> Any:
        scores, other_scores = compute(own, others, context_length)
        texts = trainer.processing_class.batch_decode(own["input_ids"][:, context_length:], skip_special_tokens=True)
        sums, other_sums = ([_number(each) for each in column.tolist()] for column in (scores, other_scores))
        batch = [
            Completion(_text(prompt), text, {names[0]: each}, each)
            for prompt, text, each in zip(own["raw"], texts, sums, strict=True)
        ]
        recorder.note(trainer.state.global_step, batch, list(zip(sums, other_sums, strict=True)))
        return scores, other_scores

    trainer._compute_rewards = compute_and_record


_WATCHES: Mapping[str, Callable[[Any, Recorder], None]] = {
    "_compute_rewards": _watch_scored,  # before the next: these trainers inherit it and do not call it
    "_calculate_rewards_from_functions": _watch_pairs,
    "_generate_and_score_completions": _watch_groups,
}
"""The trainer's method that scores completions -> what listens there."""


# --- figures ---------------------------------------------------------------------------------------------------------


def weighted_sum(scores: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The sum over the rewards that apply; None when none does."""
    parts = [weight * score for weight, score in zip(weights, scores, strict=True) if score is not None]
    return sum(parts) if parts else None


def _grouped(values: Sequence[float | None], size: int) -> list[Sequence[float | None]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _number(value: Any) -> float | None:
    """TRL's NaN, which stands for a reward that does not apply, as None."""
    number = float(value)
    return None if math.isnan(number) else number


def _text(chat: Any) -> str:
    """A prompt or completion for reading: text as it is, of a completion what was said, of a prompt who said what."""
    if isinstance(chat, str):
        return chat
    if len(chat) == 1 and chat[0].get("role") == "assistant":
        return str(chat[0].get("content"))
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in chat)
