"""Where TRL's trainers (1.12) log what the guards judge. Trainers differ in the names of metrics; here they are one.

    figure                      grpo, rloo, minillm,      online_dpo             xpo, nash_md                  ppo
                                distillation
    share without variance      frac_reward_zero_std      (the rewards)          (the rewards)                 -
    share that is cut off       completions/clipped_ratio val/contain_eos_token  val/model_contain_eos_token   val/num_eos_tokens
    entropy                     entropy                   objective/entropy      objective/entropy             policy/entropy_avg
    KL divergence               kl (a token)              objective/kl           objective/kl, loss/kl         objective/kl

(the rewards): nothing is logged, and the scores that `ptcli.train.completions` hears are looked at instead. GRPO's `kl`
is absent where `beta` is 0. PPO counts end-of-sequence tokens, which tells no share but whether there was any.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Logs = Mapping[str, Any]
_Reading = Callable[[float], float]

NO_VARIANCE = "frac_reward_zero_std"
STALENESS = "sampling/sampling_logp_difference/mean"

_CLIPPED: tuple[tuple[str, _Reading], ...] = (
    ("completions/clipped_ratio", lambda share: share),
    ("val/contain_eos_token", lambda share: 1.0 - share),
    ("val/model_contain_eos_token", lambda share: 1.0 - share),
    ("val/num_eos_tokens", lambda count: 0.0 if count else 1.0),
)
_ENTROPY = ("policy/entropy_avg", "entropy", "objective/entropy")
REWARD = ("reward", "objective/scores")
"""Mean reward of a completion."""
_KL_OF_TOKENS = ("kl",)
_KL_OF_COMPLETIONS = ("objective/kl", "loss/kl")


def number(logs: Logs, name: str) -> float | None:
    """A metric, if it is there and finite."""
    try:
        value = float(logs[name])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def mean_reward(logs: Logs) -> float | None:
    """Mean reward of a completion, also one that is not finite; None where there is none."""
    return next((float(logs[name]) for name in REWARD if isinstance(logs.get(name), int | float)), None)


def share_without_variance(groups: Sequence[Sequence[float | None]]) -> float | None:
    """Share of the groups whose rewards, None for no reward, are all the same; None where there are no groups."""
    still = [sum(abs(score - rewarded[0]) for score in rewarded) < 1e-8 for rewarded in map(_rewarded, groups)]
    return sum(still) / len(still) if still else None


def _rewarded(group: Sequence[float | None]) -> list[float]:
    return [score for score in group if score is not None]


def clipped_share(logs: Logs) -> float | None:
    """Share of the completions that did not end by themselves, 0 to 1."""
    return next((read(value) for name, read in _CLIPPED if (value := number(logs, name)) is not None), None)


def entropy(logs: Logs) -> float | None:
    """Entropy in nats, of a token or of a completion: comparable only within a run."""
    return _first(logs, _ENTROPY)


def kl_of_a_token(logs: Logs, longest: int | None) -> float | None:
    """KL divergence from the reference in nats a token; `longest`: tokens that a completion may have."""
    of_tokens = _first(logs, _KL_OF_TOKENS)
    if of_tokens is not None:
        return of_tokens
    of_completions = _first(logs, _KL_OF_COMPLETIONS)
    return of_completions / longest if of_completions is not None and longest else None


def _first(logs: Logs, names: tuple[str, ...]) -> float | None:
    return next((value for name in names if (value := number(logs, name)) is not None), None)
