"""The reward for length that ptcli ships, as a trainer calls it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ptcli.builtin.rewards import length_reward
from ptcli.doctor.math.identity import identity
from ptcli.doctor.math.reference import falls
from ptcli.doctor.math.trainers import first_rows, make_trainer

TARGET = 12


def _rewards(lengths: Sequence[int]) -> list[float]:
    """What the real trainer's own reward call gives completions of these lengths, in characters."""

    def near_the_target(completions: list[str], **columns: object) -> list[float]:
        return length_reward(completions, target=TARGET, **columns)

    rows = [row | {"prompt": "say"} for row in first_rows("arithmetic", 2)]
    trainer = make_trainer("grpo", rows=rows, given={"reward_funcs": [near_the_target]}, num_generations=2)
    prompts, texts = ["say"] * len(lengths), ["x" * length for length in lengths]
    table = trainer._calculate_rewards([{"prompt": "say"}] * len(lengths), prompts, texts, [[1]] * len(lengths))
    return [float(row[0]) for row in table]


@identity(
    "length-peak",
    "the length reward is 0 at its target and strictly less anywhere else",
    source="ptcli.builtin.rewards:length_reward",
    methods=("grpo",),
    tolerance=0.0,
)
def peak() -> float:
    lengths = list(range(3 * TARGET))
    rewards = _rewards(lengths)
    elsewhere = max(reward for length, reward in zip(lengths, rewards, strict=True) if length != TARGET)
    return abs(rewards[TARGET]) if elsewhere < rewards[TARGET] else math.inf


@identity(
    "length-symmetry",
    "the length reward is the same as far above its target as below, and falls with the distance",
    source="ptcli.builtin.rewards:length_reward",
    methods=("grpo",),
    tolerance=0.0,
)
def symmetry() -> float:
    rewards = _rewards(range(2 * TARGET + 1))
    below, above = rewards[TARGET::-1], rewards[TARGET:]
    lopsided = max(abs(left - right) for left, right in zip(below, above, strict=True))
    return max(lopsided, falls(below), falls(above))
