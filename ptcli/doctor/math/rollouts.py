"""What GRPO and RLOO share: scripted rewards, and what a batch of completions is without its padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ptcli.doctor.math.identity import Unexercised
from ptcli.doctor.math.reference import Text, exact, log_probabilities
from ptcli.doctor.math.trainers import first_rows, make_trainer, move

GROUP = 4
"""Completions of a prompt."""
WEIGHTS = (1.0, 0.5)
_POLICIES = 20
"""How many random policies are tried before it is said that none of them shows anything."""
Scores = tuple[float | None, ...]

ANSWERS: Scores = (1.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0, None, -3.0, None)
STYLES: Scores = (0.0, 1.0, -1.0, 0.25, 2.0, 2.0, 2.0, 2.0, 0.5, None, 1.0, 3.0)
"""Two rewards of three groups: the second has no variance, and in the third one completion cannot be scored at all."""


@dataclass(frozen=True)
class Rollout:
    """A completion: its advantage and the log-probabilities of its tokens under three policies."""

    advantage: float
    now: list[float]
    old: list[float]
    reference: list[float]

    @property
    def log_ratios(self) -> list[float]:
        """log pi/pi_old of each token."""
        return [now - old for now, old in zip(self.now, self.old, strict=True)]


def make_online_trainer(method: str, **arguments: Any) -> Any:
    """The trainer with three prompts of four completions each, and the scripted rewards."""
    rows = first_rows("arithmetic", 3)
    ours = {"per_device_train_batch_size": len(ANSWERS), "num_generations": GROUP, "max_completion_length": 6}
    rewards = [scripted("answers", ANSWERS), scripted("styles", STYLES)]
    config = ours | {"reward_weights": list(WEIGHTS)} | arguments
    trainer = make_trainer(method, rows=rows, given={"reward_funcs": rewards}, **config)
    trainer.current_gradient_accumulation_steps = 1  # the training loop sets it before it asks for a loss
    return trainer


def scripted(name: str, scores: Scores) -> Callable[..., list[float | None]]:
    """A reward function that gives these scores whatever the completions are."""

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        assert len(completions) == len(scores)
        return list(scores)

    reward.__name__ = name
    return reward


def weighted_rewards() -> list[float | None]:
    """Weighted sum of what the rewards say of each completion; None where none of them says anything."""
    sums: list[float | None] = []
    for given in zip(ANSWERS, STYLES, strict=True):
        said = [weight * score for weight, score in zip(WEIGHTS, given, strict=True) if score is not None]
        sums.append(math.fsum(said) if said else None)
    return sums


def groups(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + GROUP] for start in range(0, len(values), GROUP)]


def generate(trainer: Any) -> dict[str, Any]:
    """The trainer's own batch: prompts of its loader, completions of its model, scored."""
    batch: dict[str, Any] = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    return batch


def micro_batches(trainer: Any) -> list[dict[str, Any]]:
    """The same in the trainer's own slices, one for each micro-batch of a step, after real `training_step`s on them.

    The gradients of the steps have been added up, as they are before the optimizer sees them.
    """
    steps = trainer.args.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = steps
    taken: list[dict[str, Any]] = []
    prepare = trainer._prepare_inputs

    def prepare_and_keep(rows: Any) -> dict[str, Any]:
        taken.append(prepare(rows))
        return taken[-1]

    trainer._prepare_inputs = prepare_and_keep
    rows = next(iter(trainer.get_train_dataloader()))
    for _ in range(steps):
        trainer.training_step(trainer.model, rows, None)
    return taken


def texts(batch: dict[str, Any]) -> list[Text]:
    """Each prompt with its completion, as they were before padding."""
    prompts, completions = (_unpadded(batch[f"{side}_ids"], batch[f"{side}_mask"]) for side in ("prompt", "completion"))
    return [Text((*head, *tail), len(head)) for head, tail in zip(prompts, completions, strict=True)]


def _unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


@dataclass(frozen=True)
class Step:
    """A loss of the real trainer and all that its formula needs."""

    found: torch.Tensor
    rollouts: list[Rollout]
    trainer: Any


def off_policy_step(
    make: Callable[[], Any], is_telling: Callable[[list[Rollout]], bool], *, temperature: float = 1.0
) -> Step:
    """A step whose reference, sampling policy and current policy are three different ones.

    Which tokens are sampled, and so which ratios are clipped, may differ between machines: the first step is taken that
    `is_telling` of what the identity is about. Raises Unexercised when none is.
    """
    for seed in range(1, 2 * _POLICIES, 2):
        step = _off_policy_step(make(), seed, temperature)
        if is_telling(step.rollouts):
            return step
    raise Unexercised("no policy was found that clips ratios, for completions of several lengths")


def _off_policy_step(trainer: Any, seed: int, temperature: float) -> Step:
    reference = exact(trainer.ref_model)
    move(trainer.model, seed=seed)
    old = exact(trainer.model)
    batch = generate(trainer)
    move(trainer.model, seed=seed + 1)
    found = trainer.compute_loss(trainer.model, batch)
    models = (exact(trainer.model), old, reference)
    return Step(found, list(_rollouts(batch, models, temperature)), trainer)


def _rollouts(batch: dict[str, Any], models: Sequence[PreTrainedModel], temperature: float) -> Iterable[Rollout]:
    for advantage, text in zip(batch["advantages"].tolist(), texts(batch), strict=True):
        yield Rollout(advantage, *(log_probabilities(model, text, temperature=temperature) for model in models))
