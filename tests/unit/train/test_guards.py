"""What the guards find in logged metrics. Without torch."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ptcli.events import Event
from ptcli.recipe.model import GuardsSpec
from ptcli.train.guards.decisions import AdapterMoves, Facts, Finding, NonFinite, Streak, logged_decisions
from ptcli.train.guards.measures import clipped_share, entropy, kl_of_a_token, share_without_variance
from ptcli.train.guards.resumed import ResumedLoss

FACTS = Facts(limit_key="training.max_completion_length", longest=64, groups=16)


def judge(guard: str, logs: list[dict[str, float]], facts: Facts = FACTS, **fields: Any) -> list[tuple[int, Finding]]:
    """What a guard on logged metrics finds, with the number of the step from 1."""
    spec = GuardsSpec.model_validate({guard: {"action": "warn", **fields}})
    decision = dict(logged_decisions(spec, facts, {}))[guard]
    found = ((step, decision.judge(each)) for step, each in enumerate(logs, 1))
    return [(step, finding) for step, finding in found if finding]


def series(name: str, *values: float) -> list[dict[str, float]]:
    return [{name: value} for value in values]


def test_a_streak_is_told_of_once_and_again_after_it_broke() -> None:
    streak = Streak(2)
    assert [streak.count(bad == "x") for bad in "xxxx.x.xx"] == [0, 1, 0, 0, 0, 0, 0, 0, 1]


def test_a_streak_from_the_very_start_needs_less() -> None:
    early, late = Streak(5, at_start=2), Streak(5, at_start=2)
    assert [early.count(True) for _ in range(7)] == [0, 1, 0, 0, 0, 0, 0]
    assert [late.count(bad) for bad in (False, *[True] * 6)] == [0, 0, 0, 0, 0, 1, 0]


def test_no_variance_in_the_first_five_steps() -> None:
    logs = [{"frac_reward_zero_std": 1.0, "reward": 0.0}] * 9
    ((step, finding),) = judge("reward_variance", logs)
    assert step == 5
    assert finding.value == 1.0
    assert "100% of the groups" in finding.message
    assert "no completion earns anything" in finding.message


def test_few_groups_at_the_start_are_waited_for() -> None:
    logs = series("frac_reward_zero_std", *[1.0] * 30)
    assert [step for step, _ in judge("reward_variance", logs, Facts(groups=2))] == [10]
    assert [step for step, _ in judge("reward_variance", logs, Facts(groups=1))] == [20]


@pytest.mark.parametrize(
    ("groups", "share"),
    [([[1.0, 1.0], [0.5, 0.6]], 0.5), ([[None, None], [0.0, None]], 1.0), ([(0.1, 0.1), (-1.0, 1.0)], 0.5), ([], None)],
)
def test_variance_of_the_rewards_themselves(groups: list[list[float | None]], share: float | None) -> None:
    assert share_without_variance(groups) == share


def test_no_variance_later_needs_twenty_steps() -> None:
    logs = series("frac_reward_zero_std", 0.5, *[0.95] * 19, 0.5, *[0.95] * 20)
    assert [step for step, _ in judge("reward_variance", logs)] == [41]


@pytest.mark.parametrize(("rewards", "only_warns"), [((0.4, 0.7, 0.7), True), ((0.4, 0.7, 0.6), False), ((), False)])
def test_a_solved_task_is_no_reason_to_lose_the_run(rewards: tuple[float, ...], only_warns: bool) -> None:
    """Rewards of two steps with variance, and of those without; where none is logged, nobody knows."""
    shares = (0.5, 0.5, 1.0)
    logs = [{"frac_reward_zero_std": share} for share in shares]
    for line, reward in zip(logs, rewards, strict=False):
        line["reward"] = reward
    ((_, finding),) = judge("reward_variance", logs, patience=1)
    assert finding.only_warns is only_warns


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"reward": 0.0, "completions/clipped_ratio": 0.9}, "raise training.max_completion_length"),
        ({"reward": 0.0, "completions/clipped_ratio": 0.1}, "take easier rows"),
        ({"reward": 1.0}, "the task is solved"),
    ],
)
def test_why_there_is_no_variance(more: dict[str, float], words: str) -> None:
    ((_, finding),) = judge("reward_variance", [{"frac_reward_zero_std": 1.0} | more], patience=1)
    assert words in finding.message


@pytest.mark.parametrize(
    ("logs", "share"),
    [
        ({"completions/clipped_ratio": 0.75}, 0.75),
        ({"val/contain_eos_token": 0.25}, 0.75),
        ({"val/model_contain_eos_token": 0.25, "val/ref_contain_eos_token": 1.0}, 0.75),
        ({"val/num_eos_tokens": 0}, 1.0),
        ({"val/num_eos_tokens": 3}, 0.0),
        ({"loss": 0.5}, None),
    ],
)
def test_the_share_that_is_cut_off_by_any_trainers_name(logs: dict[str, float], share: float | None) -> None:
    assert clipped_share(logs) == share


def test_clipped_completions() -> None:
    logs = series("completions/clipped_ratio", 0.9, 0.9, 0.9, 0.9, 0.8, *[0.9] * 6)
    ((step, finding),) = judge("clipped_completions", logs)
    assert step == 10
    assert "limit of 64 tokens" in finding.message
    assert "training.max_completion_length" in finding.message


@pytest.mark.parametrize(("value", "words"), [(3.1, "more than 3 times the 1"), (0.09, "less than 0.1 times the 1")])
def test_entropy_is_measured_by_its_own_start(value: float, words: str) -> None:
    logs = series("entropy", *[1.0] * 20, value, value, 1.0, value, value, value, value)
    ((step, finding),) = judge("entropy", logs)
    assert step == 26
    assert words in finding.message


def test_the_first_entropies_are_not_judged() -> None:
    assert judge("entropy", series("entropy", *[100.0, 0.001] * 10), patience=1) == []


def test_entropy_by_any_trainers_name() -> None:
    assert entropy({"policy/entropy_avg": 1.0, "objective/entropy": 9.0}) == 1.0
    assert entropy({"objective/entropy": 9.0}) == 9.0
    assert entropy({"entropy": math.nan}) is None


def test_kl_of_completions_is_that_of_their_tokens() -> None:
    assert kl_of_a_token({"kl": 0.5}, 64) == 0.5
    assert kl_of_a_token({"objective/kl": 32.0}, 64) == 0.5
    assert kl_of_a_token({"loss/kl": 32.0}, None) is None


def test_kl() -> None:
    ((step, finding),) = judge("kl", series("kl", 0.1, 1.5, 1.5, 0.9, 1.5, 2.0, 40.0, 50.0))
    assert step == 7
    assert finding.value == 40.0
    assert "training.beta" in finding.message


def test_stale_weights_are_measured_by_the_first_difference() -> None:
    name = "sampling/sampling_logp_difference/mean"
    assert [step for step, _ in judge("stale_weights", series(name, 0.018, 0.02, 0.201, 0.2, 0.3))] == [5]
    assert judge("stale_weights", series(name, 0.05, *[0.2] * 9)) == []


def test_weights_that_never_arrive_are_stale_from_the_first_step_on() -> None:
    logs = series("sampling/sampling_logp_difference/mean", *[13.0] * 4)
    assert [step for step, _ in judge("stale_weights", logs)] == [3]


@pytest.mark.parametrize("name", ["reward_variance", "clipped_completions", "entropy", "kl", "stale_weights"])
def test_what_is_not_logged_is_not_judged(name: str) -> None:
    fields = {"baseline": 1} if name == "entropy" else {}
    assert judge(name, [{"loss": 1.0, "epoch": 0.5}] * 50, patience=1, **fields) == []


def test_guards_that_are_off_or_have_nothing_to_watch_judge_nothing() -> None:
    spec = GuardsSpec(kl="off")
    assert "kl" not in dict(logged_decisions(spec, FACTS, {}))
    assert set(dict(logged_decisions(spec, FACTS, {"entropy": False}))) == {
        "reward_variance", "clipped_completions", "stale_weights",
    }  # fmt: skip


def test_a_gradient_that_overflows_is_normal_in_half_precision() -> None:
    guard = GuardsSpec().guard("non_finite")
    whole, half = NonFinite(guard, Facts()), NonFinite(guard, Facts(half=True))
    assert [bool(whole.judge_gradient(math.inf)) for _ in range(2)] == [True, False]
    assert [bool(half.judge_gradient(math.inf)) for _ in range(20)] == [False] * 19 + [True]
    finding = half.judge_loss(math.nan)
    assert finding is not None
    assert "the loss is nan" in finding.message


@pytest.mark.parametrize("name", ["reward", "objective/scores"])
def test_an_infinite_reward_shows_in_no_loss(name: str) -> None:
    guard = NonFinite(GuardsSpec().guard("non_finite"), Facts())
    assert guard.judge({"loss": 0.0, name: 1.0}) is None
    assert guard.judge({"loss": 0.0}) is None
    finding = guard.judge({"loss": 0.0, name: math.inf})
    assert finding is not None
    assert "the mean reward is inf" in finding.message


def test_nothing_moves() -> None:
    moves = AdapterMoves(GuardsSpec().guard("adapter_moves"))
    before = {"lora_A": 1, "lora_B": 0}
    assert [moves.judge_step(before, dict(before)) for _ in range(2)] == [None, None]
    assert not moves.settled
    finding = moves.judge_step(before, dict(before))
    assert finding is not None
    assert finding.value == 0.0
    assert "lora_A" in finding.message
    assert moves.settled


def test_something_moves_at_last() -> None:
    moves = AdapterMoves(GuardsSpec().guard("adapter_moves"))
    before = {"lora_A": 1, "lora_B": 0}
    assert moves.judge_step(before, dict(before)) is None
    assert moves.judge_step(before, before | {"lora_B": 7}) is None
    assert moves.settled


def test_most_must_move_where_the_recipe_says_so() -> None:
    guard = GuardsSpec.model_validate({"adapter_moves": {"action": "stop", "threshold": 0.5, "patience": 1}})
    moves = AdapterMoves(guard.guard("adapter_moves"))
    before = {"a": 1, "b": 2}
    finding = moves.judge_step(before, before | {"b": 7})
    assert finding is not None
    assert "1 of 2 trainable tensors" in finding.message


def go_on(
    before: list[float], *after: float, name: str = "loss", online: bool = False, each: int = 1, first: int = 0
) -> list[tuple[int, str]]:
    """What is found in a run that logged a figure every `each` steps, and goes on from the last of them; the first step
    that it logs then is `first` steps later."""
    history = [{"step": number * each, name: value, "epoch": 0.1} for number, value in enumerate(before, 1)]
    step = len(before) * each
    guard = GuardsSpec().guard("resumed_loss")
    resumed = ResumedLoss(guard, [*history, {"step": step, "eval_loss": 9.0}], step, online=online)
    steps = [step + (first or each) + number * each for number in range(len(after))]
    judged = ((at, resumed.judge({"epoch": 0.2, name: value}, at)) for at, value in zip(steps, after, strict=True))
    return [(at, finding.message) for at, finding in judged if finding]


FALLING = [3.0 - 0.1 * number for number in range(20)]
NOISY = [1.0, 1.3, 0.8, 1.2, 0.9, 1.4, 0.7, 1.1, 1.3, 0.8, 1.2, 1.0]


def test_a_loss_that_goes_on_is_no_news() -> None:
    assert go_on(FALLING, 1.0, 3.0) == []  # only the first one is judged
    assert go_on(FALLING, 1.25) == []
    assert go_on(FALLING, 0.1) == []  # an epoch begins, say


def test_a_loss_as_at_the_start_is_told_of() -> None:
    ((step, message),) = go_on(FALLING, 3.0, 3.0)
    assert step == 21
    assert message.startswith(
        "the first loss after going on from step 20 is 3, and the last one before was 1.1; from one logged step to the "
        "next it changed by 0.1 at most. Usual causes: weights that were not loaded"
    )
    assert "What helps: " in message


def test_the_last_losses_say_what_is_noise() -> None:
    assert go_on(NOISY, 2.3) == []
    assert go_on(NOISY, 2.5) != []
    assert go_on([10 * value for value in FALLING[:5]] + NOISY + NOISY, 2.5) != [], "what was long ago says nothing"


def test_the_mean_of_few_steps_varies_more() -> None:
    """Logged every tenth step, and the checkpoint lies so that the first line has one step alone."""
    assert go_on(NOISY, 2.5, each=10) != []
    assert go_on(NOISY, 2.5, each=10, first=1) == []
    assert go_on(NOISY, 9.0, each=10, first=1) != []


@pytest.mark.parametrize("before", [FALLING[-9:], [1.0] * 20, []], ids=["too few", "all the same", "none"])
def test_where_nobody_can_tell_nothing_is_said(before: list[float]) -> None:
    assert go_on(before, 50.0) == []


@pytest.mark.parametrize("name", ["reward", "objective/scores"])
def test_online_methods_are_judged_by_their_reward(name: str) -> None:
    rising = [0.1 * number for number in range(20)]
    assert go_on(rising, 1.8, name=name, online=True) == []
    assert go_on(rising, 2.9, name=name, online=True) == []
    ((_, message),) = go_on(rising, 0.1, name=name, online=True)
    assert message.startswith("the first reward after going on from step 20 is 0.1, and the last one before was 1.9;")
    assert go_on(rising, 0.1, name=name) == []  # not what DPO is judged by
    assert go_on(FALLING, 3.0, online=True) != []  # distillation has no reward, and a loss that tells


def test_a_loss_about_zero_is_judged_by_its_own_noise() -> None:
    around = [0.001 * (-1) ** number for number in range(20)]
    assert go_on(around, 0.002) == []
    assert go_on(around, 0.5) != []


def test_a_word_stands_for_a_guard_with_its_usual_fields() -> None:
    spec = GuardsSpec.model_validate({"entropy": "stop", "kl": {"threshold": 2.0}})
    assert spec.guard("entropy").model_dump() == {
        "action": "stop", "above": 3.0, "below": 0.1, "baseline": 20, "patience": 3,
    }  # fmt: skip
    assert spec.guard("kl").model_dump() == {"action": "warn", "threshold": 2.0, "patience": 3}


@pytest.mark.parametrize("name", [name for name in GuardsSpec.model_fields if name != "no_progress_seconds"])
def test_a_guard_without_a_word_does_what_its_section_says(name: str) -> None:
    """The default of the field and that of the section's `action` are written in two places."""
    spec = GuardsSpec.model_validate({name: {}})
    assert spec.guard(name).action == GuardsSpec().guard(name).action


def test_an_event_has_no_number_that_json_has_not() -> None:
    event = Event("kl", 3, "warn", "far", math.inf)
    assert event.as_dict() == {"guard": "kl", "step": 3, "action": "warn", "message": "far", "value": None}
    assert Event.from_dict(event.as_dict()) == Event("kl", 3, "warn", "far", None)
