"""When a figure is bad, for how long it must be, and what to say of it. Pure: logged metrics in, findings out.

Thresholds are proposals drawn from users' reports, named where they are used; the recipe's `guards` may say others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from ptcli.recipe.model import (
    AdapterMovesGuard,
    ClippedCompletionsGuard,
    EntropyGuard,
    GuardsSpec,
    KLGuard,
    NonFiniteGuard,
    RewardVarianceGuard,
    StaleWeightsGuard,
)
from ptcli.train.guards import measures
from ptcli.train.guards.measures import Logs

SKIPPED_BY_LOSS_SCALING = 20
"""Steps with an infinite gradient that are normal in fp16: the scale is halved at each until nothing overflows."""
GROUPS_AT_START = 20
"""Groups without variance that say something at the start of a run. Fewer may be chance: with one group a step and a
task that is solved once in ten groups, more than half of the runs begin with five such steps."""
STALENESS_FACTOR = 5.0
"""Times the first difference of log-probabilities that is no longer noise (user report: trl#5312, 0.018 -> 0.201)."""


@dataclass(frozen=True)
class Finding:
    """A guard has seen enough."""

    value: float | None
    """The figure that was judged."""
    message: str
    only_warns: bool = False
    """Stopping would throw away what was learned, and going on loses nothing but time."""


@dataclass(frozen=True)
class Facts:
    """What the decisions need to know of a trainer's arguments."""

    limit_key: str = "training.max_completion_length"
    """Recipe key of the longest completion."""
    longest: int | None = None
    """Tokens that a completion may have."""
    groups: int = 1
    """Groups of completions in a logged step."""
    half: bool = False
    """fp16 with loss scaling."""


class Decision(Protocol):
    """Judges what is logged."""

    def judge(self, logs: Logs) -> Finding | None:
        """What was found at this logged step; None for nothing, or nothing new."""


class Streak:
    """Counts in a row; says once in each row that it is long enough."""

    def __init__(self, patience: int, at_start: int | None = None):
        self.patience = patience
        self.at_start = at_start
        """Enough also when everything that was counted, and so much, was bad."""
        self.length = self.counted = 0
        self._told = False

    def count(self, bad: bool) -> bool:
        self.counted += 1
        self.length = self.length + 1 if bad else 0
        all_bad = self.at_start is not None and self.length == self.counted >= self.at_start
        enough = self.length >= self.patience or all_bad
        new = enough and not self._told
        self._told = enough
        return new


class NonFinite:
    """Loss and gradient of each step, before the optimizer changes the weights (user reports: trl#6702, trl#6668)."""

    def __init__(self, guard: NonFiniteGuard, facts: Facts):
        self._loss = Streak(guard.patience)
        self._gradient = Streak(max(guard.patience, SKIPPED_BY_LOSS_SCALING) if facts.half else guard.patience)
        self._weights = Streak(guard.patience)
        self._reward = Streak(guard.patience)
        self._told = False
        """This step's loss was bad."""

    def judge_loss(self, loss: float) -> Finding | None:
        bad = not math.isfinite(loss)
        self._told = self._told or bad
        return _lost(f"the loss is {loss}") if self._loss.count(bad) else None

    def judge_gradient(self, norm: float) -> Finding | None:
        """The gradient of a loss that was bad already is no news."""
        told, self._told = self._told, False
        bad = self._gradient.count(not math.isfinite(norm) and not told)
        return _lost(f"the norm of the gradient is {norm}") if bad else None

    def judge_weights(self, finite: bool) -> Finding | None:
        """For trainers whose gradients nobody sees."""
        return _lost("trained weights are not finite numbers") if self._weights.count(not finite) else None

    def judge(self, logs: Logs) -> Finding | None:
        """An infinite reward makes TRL's advantages NaN and then 0: all looks well, and nothing is learned."""
        reward = measures.mean_reward(logs)
        if not self._reward.count(reward is not None and not math.isfinite(reward)):
            return None
        causes = "a reward that divides by zero or takes the logarithm of zero, or a reward model that overflows"
        return Finding(None, explain(f"the mean reward is {reward}", causes, "return None where there is no reward"))


def _lost(seen: str) -> Finding:
    causes = (
        "a learning rate that is too high, an infinite or missing reward, rows without a token to train on, or fp16"
    )
    change = (
        "lower training.learning_rate or training.max_grad_norm, look at the rewards and rows of this step, use "
        "training.bf16 or float32 instead of fp16; earlier checkpoints are not affected"
    )
    return Finding(None, explain(seen, causes, change))


class RewardVariance:
    """S1 of the field's reports (trl#3857, swift#4570, trl#3452): groups that teach nothing."""

    def __init__(self, guard: RewardVarianceGuard, facts: Facts):
        self._guard = guard
        self._facts = facts
        at_start = max(guard.patience_at_start, -(-GROUPS_AT_START // max(1, facts.groups)))
        self._streak = Streak(guard.patience, at_start)
        self._best = math.inf
        """The highest reward of a step that was not bad."""

    def judge(self, logs: Logs) -> Finding | None:
        share, reward = measures.number(logs, measures.NO_VARIANCE), measures.number(logs, "reward")
        if share is None:
            return None
        bad = share > self._guard.threshold
        if not bad and reward is not None:
            self._best = reward if math.isinf(self._best) else max(self._best, reward)
        if not self._streak.count(bad):
            return None
        solved = reward is not None and reward >= self._best
        seen = (
            f"{share:.0%} of the groups have no variance in their rewards (more than {self._guard.threshold:.0%} in "
            f"{self._streak.length} logged steps in a row): nothing is learned from them"
        )
        return Finding(share, explain(seen, *self._explain(logs)), only_warns=solved)

    def _explain(self, logs: Logs) -> tuple[str, str]:
        clipped, reward = measures.clipped_share(logs), measures.number(logs, "reward")
        if clipped is not None and clipped > 0.5:
            return "completions are cut off before they reach what is rewarded", f"raise {self._facts.limit_key}"
        if reward == 0:
            causes = "no completion earns anything: the reward does not find the answer, or the task is too hard"
            return causes, "look at the completions in completions.jsonl and at the reward; take easier rows"
        causes = "the task is solved, the reward is the same for everything, or the completions are all alike"
        return causes, "take harder rows or a finer reward, raise training.temperature, compare larger groups"


class ClippedCompletions:
    """S2 (trl#5697, trl#6263, swift#4950): the limit is too low, or nothing ends a turn."""

    def __init__(self, guard: ClippedCompletionsGuard, facts: Facts):
        self._guard, self._facts = guard, facts
        self._streak = Streak(guard.patience)

    def judge(self, logs: Logs) -> Finding | None:
        share = measures.clipped_share(logs)
        if share is None or not self._streak.count(share > self._guard.threshold):
            return None
        limit = f" of {self._facts.longest} tokens" if self._facts.longest else ""
        seen = (
            f"{share:.0%} of the completions are cut off at the limit{limit} (more than {self._guard.threshold:.0%} in "
            f"{self._streak.length} logged steps in a row)"
        )
        causes = "the limit is too low for the task, or the model never writes the token that should end its turn"
        change = f"raise {self._facts.limit_key}; if completions go on after their end, set model.eos_token"
        return Finding(share, explain(seen, causes, change))


class Entropy:
    """S5 (trl#6407, trl#2980): measured by the median of the first logged steps."""

    def __init__(self, guard: EntropyGuard, facts: Facts):
        self._guard = guard
        self._first: list[float] = []
        self._streak = Streak(guard.patience)

    def judge(self, logs: Logs) -> Finding | None:
        value = measures.entropy(logs)
        if value is None:
            return None
        if len(self._first) < self._guard.baseline:
            self._first.append(value)
            return None
        first = median(self._first)
        high, low = value > self._guard.above * first, value < self._guard.below * first
        if first <= 0 or not self._streak.count(high or low):
            return None
        limit = f"{self._guard.above:g} times" if high else f"{self._guard.below:g} times"
        seen = (
            f"the entropy is {value:.3g}, {'more' if high else 'less'} than {limit} the {first:.3g} of the first "
            f"{len(self._first)} logged steps"
        )
        return Finding(value, explain(seen, *(_BLOW_UP if high else _COLLAPSE)))


_BLOW_UP = (
    "updates that are too large, so that the policy falls apart",
    "lower training.learning_rate or training.max_grad_norm, raise training.beta, go back to an earlier checkpoint",
)
_COLLAPSE = (
    "the policy writes always the same: it has found what the reward pays for, or the updates are too large",
    "lower training.learning_rate, raise training.temperature or training.beta, look at completions.jsonl",
)


class KL:
    """S5 (OpenRLHF#931, trl#5584). One nat a token: on its own tokens the policy is e times as sure as its reference,
    at every token; what it writes is hardly the reference's language any more."""

    def __init__(self, guard: KLGuard, facts: Facts):
        self._guard, self._facts = guard, facts
        self._streak = Streak(guard.patience)

    def judge(self, logs: Logs) -> Finding | None:
        value = measures.kl_of_a_token(logs, self._facts.longest)
        if value is None or not self._streak.count(value > self._guard.threshold):
            return None
        seen = f"the KL divergence from the reference is {value:.3g} nats a token, more than {self._guard.threshold:g}"
        causes = "a learning rate that is too high for the penalty, or a reward that pays for nonsense"
        change = (
            "lower training.learning_rate, raise the penalty (training.beta, for ppo training.kl_coef), look at "
            "completions.jsonl; without a penalty by intention, guards.kl: off"
        )
        return Finding(value, explain(seen, causes, change))


class StaleWeights:
    """O7 (trl#5312, trl#3670): the trainer and vLLM disagree on what was sampled, and more than at the start."""

    def __init__(self, guard: StaleWeightsGuard, facts: Facts):
        self._guard = guard
        self._first: float | None = None
        self._streak = Streak(guard.patience)

    def judge(self, logs: Logs) -> Finding | None:
        value = measures.number(logs, measures.STALENESS)
        if value is None:
            return None
        if self._first is None:
            self._first = min(value, self._guard.threshold)  # weights that never arrive differ from the first step on
        limit = max(self._guard.threshold, STALENESS_FACTOR * self._first)
        if not self._streak.count(value > limit):
            return None
        seen = f"trainer and vLLM differ by {value:.3g} in the log-probabilities of tokens, more than {limit:.3g}"
        causes = "vLLM generates with older weights (sleep mode, FSDP), or computes in another type than the trainer"
        change = "turn off training.vllm_enable_sleep_mode, give rollouts.dtype the trainer's type, compare with zero2"
        return Finding(value, explain(seen, causes, change))


class AdapterMoves:
    """L12 (trl#3089, trl#2671, transformers#42489): steps are taken and nothing changes."""

    def __init__(self, guard: AdapterMovesGuard):
        self._guard = guard
        self._steps = 0
        self.settled = False
        """Nothing is left to be found."""

    def judge_step(self, before: Mapping[str, int], after: Mapping[str, int]) -> Finding | None:
        """Compare fingerprints of trainable tensors after a step with a learning rate and a gradient above 0."""
        self._steps += 1
        still = [name for name in before if after.get(name) == before[name]]
        moved = 1 - len(still) / len(before)
        self.settled = moved > self._guard.threshold or self._steps >= self._guard.patience
        if moved > self._guard.threshold or not self.settled:
            return None
        seen = (
            f"{len(still)} of {len(before)} trainable tensors that were looked at did not change in {self._steps} "
            f"steps with a learning rate and a gradient above 0, {still[0]} among them"
        )
        causes = (
            "gradient checkpointing cuts the adapter off from the loss, the weights are not the optimizer's, or the "
            "updates are too small for weights in bfloat16"
        )
        change = (
            "set training.gradient_checkpointing_kwargs: {use_reentrant: false}, model.dtype: float32, or a higher "
            "training.learning_rate"
        )
        return Finding(moved, explain(seen, causes, change))


def logged_decisions(spec: GuardsSpec, facts: Facts, names: Mapping[str, bool]) -> Iterator[tuple[str, Decision]]:
    """The decisions on logged metrics that are not off. `names`: which guards have something to watch here."""
    for name, decision in _LOGGED.items():
        guard = spec.guard(name)
        if guard.action != "off" and names.get(name, True):
            yield name, decision(guard, facts)


_LOGGED = {
    "reward_variance": RewardVariance,
    "clipped_completions": ClippedCompletions,
    "entropy": Entropy,
    "kl": KL,
    "stale_weights": StaleWeights,
}


def explain(seen: str, causes: str, change: str) -> str:
    """The message of a finding."""
    return f"{seen}. Usual causes: {causes}. What helps: {change}"
