"""REINFORCE leave-one-out."""

from __future__ import annotations

import math
from typing import Any

import torch

from ptcli.doctor.math.identity import identity
from ptcli.doctor.math.reference import (
    apart,
    exact,
    gradients_apart,
    log_probability,
    log_probability_with_gradient,
    mean,
)
from ptcli.doctor.math.rollouts import (
    Rollout,
    generate,
    groups,
    make_online_trainer,
    micro_batches,
    off_policy_step,
    texts,
    weighted_rewards,
)
from ptcli.doctor.math.trainers import move

BETA, CLIP = 0.3, 0.2
_SOURCE = "Ahmadian et al. 2024, arXiv:2402.14740"


def _left_out(rewards: list[float | None]) -> list[float]:
    """r_i - mean of the others of its group; 0 for what could not be scored."""
    found = []
    for group in groups(rewards):
        for index, reward in enumerate(group):
            others = [other for place, other in enumerate(group) if place != index and other is not None]
            found.append(0.0 if reward is None else reward - mean(others))
    return found


def _furthest(found: Any, expected: list[float]) -> float:
    return max(apart(each, wanted) for each, wanted in zip(found.tolist(), expected, strict=True))


@identity(
    "rloo-advantages",
    "A_i = r_i - 1/(k-1) sum_(j != i) r_j, r without a penalty (beta 0)",
    source=f"{_SOURCE}; Kool et al. 2019",
    methods=("rloo",),
)
def advantages() -> float:
    return _furthest(generate(make_online_trainer("rloo", beta=0.0))["advantages"], _left_out(weighted_rewards()))


@identity(
    "rloo-penalty",
    "the reward is r - beta (log pi(y) - log ref(y)), summed over the completion, before the baseline is taken",
    source=_SOURCE,
    methods=("rloo",),
    tolerance=2e-5,
)
def penalised_advantages() -> float:
    trainer = make_online_trainer("rloo", beta=BETA)
    before = exact(trainer.ref_model)
    move(trainer.model, seed=1)
    batch, now = generate(trainer), exact(trainer.model)
    penalties = [BETA * (log_probability(now, text) - log_probability(before, text)) for text in texts(batch)]
    rewards = [
        None if reward is None else reward - penalty
        for reward, penalty in zip(weighted_rewards(), penalties, strict=True)
    ]
    return _furthest(batch["advantages"], _left_out(rewards))


@identity(
    "rloo-normalised",
    "normalize_advantages: (A - mean A)/(s + 1e-4) over the scored of the batch, s with ddof 1; off by default",
    source="TRL's own, not in the paper",
    methods=("rloo",),
)
def normalised_advantages() -> float:
    rewards = weighted_rewards()
    raw = _left_out(rewards)
    scored = [each for each, reward in zip(raw, rewards, strict=True) if reward is not None]
    middle = mean(scored)
    spread = math.sqrt(math.fsum((each - middle) ** 2 for each in scored) / (len(scored) - 1)) + 1e-4
    expected = [0.0 if reward is None else (each - middle) / spread for each, reward in zip(raw, rewards, strict=True)]
    trainer = make_online_trainer("rloo", beta=0.0, normalize_advantages=True)
    return _furthest(generate(trainer)["advantages"], expected)


@identity(
    "rloo-loss",
    "loss = -mean_i min(rho_i A_i, clip(rho_i, 1-eps, 1+eps) A_i), rho of whole completions; the paper does not clip",
    source=f"{_SOURCE}, with the clip of Schulman et al. 2017, arXiv:1707.06347, eq. 7",
    methods=("rloo",),
)
def loss() -> float:
    step = off_policy_step(lambda: make_online_trainer("rloo", beta=BETA, epsilon=CLIP), _is_clipped)
    return apart(step.found, mean(-min(_gains(rollout)) for rollout in step.rollouts))


def _gains(rollout: Rollout) -> tuple[float, float]:
    """ratio A and clip(ratio, 1 - eps, 1 + eps) A, the ratio that of the whole completion."""
    ratio = math.exp(math.fsum(rollout.log_ratios))
    return ratio * rollout.advantage, min(max(ratio, 1 - CLIP), 1 + CLIP) * rollout.advantage


def _is_clipped(rollouts: list[Rollout]) -> bool:
    """True when the clip binds for some completions, and for others not."""
    return {clipped < plain for plain, clipped in map(_gains, rollouts)} == {True, False}


@identity(
    "rloo-gradient",
    "on its own samples the gradient is -1/N sum_i A_i grad log pi(y_i), REINFORCE's",
    source=f"{_SOURCE}; Williams 1992",
    methods=("rloo",),
    tolerance=1e-4,
)
def gradient() -> float:
    trainer = make_online_trainer("rloo", beta=0.0)
    batch = generate(trainer)
    model = exact(trainer.model)
    trainer.compute_loss(trainer.model, batch).backward()
    return gradients_apart(trainer.model, model, _reinforce(model, [batch], _left_out(weighted_rewards())))


@identity(
    "rloo-accumulation",
    "two micro-batches of real training steps add up to the same gradient over all completions",
    source=f"{_SOURCE}; Williams 1992",
    methods=("rloo",),
    tolerance=1e-4,
)
def accumulated_gradient() -> float:
    trainer = make_online_trainer("rloo", beta=0.0, per_device_train_batch_size=6, gradient_accumulation_steps=2)
    batches = micro_batches(trainer)
    model = exact(trainer.model)
    advantages = [advantage for batch in batches for advantage in batch["advantages"].tolist()]
    return gradients_apart(trainer.model, model, _reinforce(model, batches, advantages))


def _reinforce(model: Any, batches: list[dict[str, Any]], advantages: list[float]) -> torch.Tensor:
    """-1/N sum_i A_i log pi(y_i), to be differentiated."""
    sampled = [text for batch in batches for text in texts(batch)]
    terms = [
        -advantage * log_probability_with_gradient(model, text)
        for advantage, text in zip(advantages, sampled, strict=True)
    ]
    return torch.stack(terms).mean()
