"""Group relative policy optimisation: advantages, clipped ratios, divergence, and the ways to average."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ptcli.doctor.math.identity import Unexercised, identity
from ptcli.doctor.math.reference import apart, exact, gradients_apart, log_probability_with_gradient, mean
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

BETA, LOW, HIGH, TEMPERATURE = 0.2, 0.05, 0.1, 0.9
_SHAO = "Shao et al. 2024, arXiv:2402.03300"
_YU = "Yu et al. 2025, arXiv:2503.14476, section 3.3"
_DEEPSEEK = "DeepSeek-AI 2025, arXiv:2512.02556"
_EPSILON = 1e-4


def _spread(values: list[float], *, sample: bool) -> float:
    """Standard deviation: of a sample (n - 1), as the library has it, or of a population (n), as the paper has it."""
    middle = mean(values)
    squares = math.fsum((value - middle) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - sample))


def _advantages(scale: str) -> list[float]:
    """(r - mean of the group) / (spread + 1e-4); 0 for a completion that no reward could score."""
    rewards = weighted_rewards()
    everywhere = _spread([reward for reward in rewards if reward is not None], sample=True)
    found = []
    for group in groups(rewards):
        scored = [reward for reward in group if reward is not None]
        spreads = {"group": _spread(scored, sample=True) + _EPSILON, "batch": everywhere + _EPSILON, "none": 1.0}
        middle = mean(scored)
        found += [0.0 if reward is None else (reward - middle) / spreads[scale] for reward in group]
    return found


def _library_advantages(**arguments: Any) -> list[float]:
    advantages: list[float] = generate(make_online_trainer("grpo", **arguments))["advantages"].tolist()
    return advantages


def _furthest(found: list[float], expected: list[float]) -> float:
    return max(apart(each, wanted) for each, wanted in zip(found, expected, strict=True))


@identity(
    "grpo-advantages",
    "A = (r - mean r)/(s + 1e-4), s the sample deviation (ddof 1) of the group; the paper has the plain std r",
    source=f"{_SHAO}, section 4.1.2",
    methods=("grpo",),
)
def advantages() -> float:
    return _furthest(_library_advantages(), _advantages("group"))


@identity(
    "grpo-advantages-paper",
    "each group's A is the paper's (r - mean r)/sigma, sigma of the population, times sigma/(s + 1e-4)",
    source=f"{_SHAO}, section 4.1.2",
    methods=("grpo",),
)
def advantages_beside_the_paper() -> float:
    expected: list[float] = []
    for group in groups(weighted_rewards()):
        scored = [reward for reward in group if reward is not None]
        sigma, middle = _spread(scored, sample=False), mean(scored)
        factor = sigma / (_spread(scored, sample=True) + _EPSILON)
        paper = [(reward - middle) / sigma if sigma and reward is not None else 0.0 for reward in group]
        expected += [each * factor for each in paper]
    return _furthest(_library_advantages(), expected)


@identity(
    "grpo-zero-mean",
    "advantages of a group add up to 0; they are finite, and 0 where the group has no variance or no score",
    source=f"{_SHAO}, section 4.1.2",
    methods=("grpo",),
)
def zero_mean() -> float:
    found = _library_advantages()
    if not all(math.isfinite(each) for each in found):
        return math.inf
    flat: list[float] = []
    unscored: list[float] = []
    for rewards, ours in zip(groups(weighted_rewards()), groups(found), strict=True):
        flat += ours if len(set(rewards)) == 1 else []
        unscored += [each for reward, each in zip(rewards, ours, strict=True) if reward is None]
    if not flat or not unscored or not any(found):
        raise Unexercised("a group without variance, a completion without a score or any advantage is missing")
    return max(*(abs(math.fsum(group)) for group in groups(found)), *map(abs, flat), *map(abs, unscored))


@identity(
    "grpo-scale-batch",
    "scale_rewards batch: A = (r - mean of the group)/(s + 1e-4), s over the whole batch (ddof 1)",
    source="Liu et al. 2025, arXiv:2508.08221",
    methods=("grpo",),
)
def scaled_by_the_batch() -> float:
    return _furthest(_library_advantages(scale_rewards="batch"), _advantages("batch"))


@identity(
    "grpo-scale-none",
    "scale_rewards none: A = r - mean of the group",
    source="Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO)",
    methods=("grpo",),
)
def not_scaled() -> float:
    return _furthest(_library_advantages(scale_rewards="none"), _advantages("none"))


Ratios = Callable[[Rollout], list[float]]
"""From a completion to the ratio pi/pi_old that each of its tokens is weighted with."""


def _of_tokens(rollout: Rollout) -> list[float]:
    return [math.exp(each) for each in rollout.log_ratios]


def _of_sequences(rollout: Rollout) -> list[float]:
    return [math.exp(mean(rollout.log_ratios))] * len(rollout.now)


def _token_losses(rollout: Rollout, ratios: list[float], *, corrected: bool) -> list[float]:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) + beta w (e^d - d - 1), d = log pi_ref - log pi.

    w is 1 in GRPO's paper and the ratio in DeepSeek-V3.2's, where the library has it by default (`corrected`).
    """
    losses = []
    for ratio, now, reference in zip(ratios, rollout.now, rollout.reference, strict=True):
        clipped = min(max(ratio, 1 - LOW), 1 + HIGH)
        gain = min(ratio * rollout.advantage, clipped * rollout.advantage)
        behind = reference - now
        losses.append(-gain + BETA * (ratio if corrected else 1.0) * (math.exp(behind) - behind - 1))
    return losses


def _over_tokens(losses: list[list[float]], longest: int) -> float:
    return mean(each for tokens in losses for each in tokens)


def _over_sequences(losses: list[list[float]], longest: int) -> float:
    return mean(mean(tokens) for tokens in losses)


def _over_a_constant(losses: list[list[float]], longest: int) -> float:
    return math.fsum(each for tokens in losses for each in tokens) / (len(losses) * longest)


_AVERAGES: Mapping[str, Callable[[list[list[float]], int], float]] = {
    "dapo": _over_tokens,
    "bnpo": _over_tokens,
    "grpo": _over_sequences,
    "dr_grpo": _over_a_constant,
}


def _loss_apart(loss_type: str, ratios: Ratios = _of_tokens, *, corrected: bool = True, **arguments: Any) -> float:
    ours = {"beta": BETA, "epsilon": LOW, "epsilon_high": HIGH, "temperature": TEMPERATURE, "num_iterations": 2}
    config = {"loss_type": loss_type, "use_bias_correction_kl": corrected} | ours | arguments

    def is_telling(rollouts: list[Rollout]) -> bool:
        return _is_clipped(rollouts, ratios)

    step = off_policy_step(lambda: make_online_trainer("grpo", **config), is_telling, temperature=TEMPERATURE)
    losses = [_token_losses(rollout, ratios(rollout), corrected=corrected) for rollout in step.rollouts]
    return apart(step.found, _AVERAGES[loss_type](losses, step.trainer.max_completion_length))


def _is_clipped(rollouts: list[Rollout], ratios: Ratios) -> bool:
    """True when both clips bind somewhere and completions differ in length: agreement would show little otherwise."""
    moved = [(rollout.advantage, ratio) for rollout in rollouts for ratio in ratios(rollout)]
    low = any(advantage < 0 and ratio < 1 - LOW for advantage, ratio in moved)
    high = any(advantage > 0 and ratio > 1 + HIGH for advantage, ratio in moved)
    return low and high and len({len(rollout.now) for rollout in rollouts}) > 1


@identity(
    "grpo-loss",
    "loss (dapo, the default): mean over all tokens of -min(rho A, clip(rho, 1-eps, 1+eps') A) + beta rho (e^d - "
    "d - 1), d = log ref/pi; the first rho of the divergence is not in GRPO's paper",
    source=f"{_SHAO}, eq. 3 and 4; {_YU}; {_DEEPSEEK}",
    methods=("grpo",),
)
def default_loss() -> float:
    return _loss_apart("dapo")


@identity(
    "grpo-loss-grpo",
    "the paper's loss (loss_type grpo, use_bias_correction_kl false): mean over completions of means over tokens "
    "of -min(..) + beta (e^d - d - 1)",
    source=f"{_SHAO}, eq. 3 and 4",
    methods=("grpo",),
)
def paper_loss() -> float:
    return _loss_apart("grpo", corrected=False)


@identity(
    "grpo-loss-bnpo",
    "loss_type bnpo: a mean over the tokens of the local batch",
    source=f"{_SHAO}, eq. 3 and 4, averaged as by TRL",
    methods=("grpo",),
)
def local_loss() -> float:
    return _loss_apart("bnpo")


@identity(
    "grpo-loss-dr",
    "loss_type dr_grpo: the sum over tokens, over completions times max_completion_length",
    source="Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO)",
    methods=("grpo",),
)
def constant_loss() -> float:
    return _loss_apart("dr_grpo")


@identity(
    "grpo-loss-gspo",
    "importance_sampling_level sequence: rho = exp(mean over tokens of log pi/pi_old)",
    source="Zheng et al. 2025, arXiv:2507.18071 (GSPO)",
    methods=("grpo",),
)
def sequence_loss() -> float:
    return _loss_apart("grpo", _of_sequences, importance_sampling_level="sequence")


@identity(
    "grpo-gradient",
    "on its own samples the gradient of the default loss is -sum_i A_i grad log pi(y_i) / number of tokens",
    source=f"{_SHAO}, eq. 3 at pi = pi_old",
    methods=("grpo",),
    tolerance=1e-4,
)
def gradient() -> float:
    trainer = make_online_trainer("grpo")
    batch = generate(trainer)
    model = exact(trainer.model)
    trainer.compute_loss(trainer.model, batch).backward()
    return gradients_apart(trainer.model, model, _policy_gradient(model, [batch], _advantages("group")))


@identity(
    "grpo-accumulation",
    "two unequal micro-batches of real training steps add up to the same gradient over all tokens",
    source=f"{_YU}",
    methods=("grpo",),
    tolerance=1e-4,
)
def accumulated_gradient() -> float:
    trainer = make_online_trainer("grpo", per_device_train_batch_size=6, gradient_accumulation_steps=2)
    batches = micro_batches(trainer)
    model = exact(trainer.model)
    if len({int(batch["completion_mask"].sum()) for batch in batches}) == 1:
        raise Unexercised("both micro-batches have the same number of tokens")
    advantages = [advantage for batch in batches for advantage in batch["advantages"].tolist()]
    return gradients_apart(trainer.model, model, _policy_gradient(model, batches, advantages))


def _policy_gradient(model: Any, batches: list[dict[str, Any]], advantages: list[float]) -> torch.Tensor:
    """-sum_i A_i log pi(y_i) / number of tokens, to be differentiated."""
    sampled = [text for batch in batches for text in texts(batch)]
    terms = [
        advantage * log_probability_with_gradient(model, text)
        for advantage, text in zip(advantages, sampled, strict=True)
    ]
    return -torch.stack(terms).sum() / sum(text.length for text in sampled)
