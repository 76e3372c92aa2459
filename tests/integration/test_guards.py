"""Each guard sees what it is there for, within three steps of a real trainer, and no other guard does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import WorkError
from ptcli.recipe.model import GuardsSpec, Recipe
from ptcli.train import worker

from .test_train import describe, read_heartbeat, read_metrics

REWARDS = """
def constant(completions, **columns):
    return [1.0] * len(completions)

def alternating(completions, **columns):
    return [float(number % 2) for number in range(len(completions))]

def infinite(completions, trainer_state, **columns):
    return [float("inf") if trainer_state.global_step else float(number % 2) for number in range(len(completions))]

def solved(completions, trainer_state, **columns):
    return [float(trainer_state.global_step > 0 or number % 2) for number in range(len(completions))]
"""

CALLBACKS = """
from pathlib import Path

import torch
from transformers import TrainerCallback

class Poison(TrainerCallback):
    "A weight becomes NaN before the second step."
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            with torch.no_grad():
                next(model.parameters()).view(-1)[:] = torch.nan

class Overflow(TrainerCallback):
    "From the second step on, the gradient of a weight is infinite while the loss is not."
    def __init__(self, steps):
        self.steps = Path(steps)
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            next(model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps.write_text(str(state.global_step + 1))

class Forget(TrainerCallback):
    "What a run that goes on has loaded is lost again."
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step:
            with torch.no_grad():
                for each in model.parameters():
                    each.normal_()

class Estrange(TrainerCallback):
    "The optimizer has other weights than the model, as when a model is wrapped or moved after it was made."
    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(each.detach().clone()) for each in group["params"]]
"""


_TINY = {"path": "builtin:tiny"}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with rewards and callbacks to go wrong with; the run directory is `run` in it."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "callbacks.py").write_text(CALLBACKS)
    return tmp_path


def train(lab: Path, method: str, *, resume_from: Path | None = None, **sections: Any) -> Any:
    recipe = Recipe.model_validate(describe(method, lab / "run", **sections))
    return worker.train(recipe, resume_from=str(resume_from) if resume_from else None)


def reward(lab: Path, name: str) -> list[dict[str, str]]:
    return [{"use": f"{lab}/rewards.py:{name}"}]


def callback(lab: Path, name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"use": f"{lab}/callbacks.py:{name}", "args": arguments}]


def only_event(lab: Path, guard: str, action: str, within: int = 3) -> dict[str, Any]:
    """The one event of a run, as it stands in heartbeat and metrics; `within`: steps."""
    (event,) = read_heartbeat(lab / "run")["events"]
    assert (event["guard"], event["action"]) == (guard, action)
    assert event["step"] <= within
    assert "Usual causes: " in event["message"]
    assert "What helps: " in event["message"]
    (line,) = [row for row in read_metrics(lab / "run") if "guards" in row]
    assert (line["step"], line["guards"]) == (event["step"], [event])
    return event


def test_an_infinite_reward_stops(lab: Path) -> None:
    """TRL turns it into advantages of 0: loss and gradient are finite, and nothing would be learned for the rest."""
    with pytest.raises(WorkError, match="guard non_finite at step 2: the mean reward is inf"):
        train(lab, "grpo", rewards=reward(lab, "infinite"))
    only_event(lab, "non_finite", "stop")


def test_nan_stops_before_the_next_save(lab: Path) -> None:
    with pytest.raises(WorkError, match=r"guard non_finite at step 2: the loss is nan.*training\.learning_rate"):
        train(lab, "sft", callbacks=callback(lab, "Poison"), training={"save_steps": 1})
    assert only_event(lab, "non_finite", "stop")["value"] is None
    assert [path.name for path in (lab / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (lab / "run" / "model.safetensors").exists()


def test_an_infinite_gradient_stops_before_the_optimizer_takes_it(lab: Path) -> None:
    with pytest.raises(WorkError, match="guard non_finite at step 2: the norm of the gradient is nan"):
        train(lab, "dpo", callbacks=callback(lab, "Overflow", steps=str(lab / "steps")))
    assert (lab / "steps").read_text() == "1"
    only_event(lab, "non_finite", "stop")


def test_weights_are_looked_at_where_a_trainer_shows_no_gradient(lab: Path) -> None:
    ppo = {
        "per_device_train_batch_size": 2, "total_episodes": 6, "num_mini_batches": 1, "num_ppo_epochs": 1,
        "response_length": 4, "num_sample_generations": 0, "learning_rate": 1e38, "max_steps": -1,
    }  # fmt: skip
    with pytest.raises(WorkError, match="guard non_finite at step 1: trained weights"):
        train(lab, "ppo", reward_model=_TINY, value_model=_TINY, training=ppo)
    only_event(lab, "non_finite", "stop")


def test_a_warning_goes_on_and_is_given_once(lab: Path) -> None:
    trainer = train(lab, "sft", callbacks=callback(lab, "Poison"), guards={"non_finite": "warn"})
    assert trainer.state.global_step == 3
    only_event(lab, "non_finite", "warn")


def test_a_guard_that_is_off_sees_nothing(lab: Path) -> None:
    trainer = train(lab, "sft", callbacks=callback(lab, "Poison"), guards={"non_finite": "off"})
    assert trainer.state.global_step == 3
    assert "events" not in read_heartbeat(lab / "run")


@pytest.mark.parametrize("method", ["rloo", "online_dpo"])
def test_no_reward_variance(lab: Path, method: str) -> None:
    """As TRL logs it, and where it does not."""
    guards = {"reward_variance": {"action": "stop", "patience": 2}}
    with pytest.raises(WorkError, match="100% of the groups have no variance"):
        train(lab, method, rewards=reward(lab, "constant"), guards=guards)
    assert only_event(lab, "reward_variance", "stop")["value"] == 1.0


def test_a_run_that_solves_its_task_is_finished_and_saved(lab: Path) -> None:
    guards = {"reward_variance": {"action": "stop", "patience": 2}}
    trainer = train(lab, "grpo", rewards=reward(lab, "solved"), guards=guards)
    assert trainer.state.global_step == 3
    assert "the task is solved" in only_event(lab, "reward_variance", "warn")["message"]
    assert (lab / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("method", ["grpo", "online_dpo"])
def test_all_completions_clipped(lab: Path, method: str) -> None:
    limit = "max_completion_length" if method == "grpo" else "max_new_tokens"
    guards = {"clipped_completions": {"patience": 3}, "reward_variance": "off"}
    train(lab, method, rewards=reward(lab, "alternating"), training={limit: 1}, guards=guards)
    event = only_event(lab, "clipped_completions", "warn")
    assert event["value"] == 1.0
    assert f"raise training.{limit}" in event["message"]


def test_entropy_collapses(lab: Path) -> None:
    training = {"learning_rate": 3.0, "lr_scheduler_type": "constant"}
    guards = {"entropy": {"baseline": 1, "patience": 1}}
    train(lab, "grpo", rewards=reward(lab, "alternating"), training=training, guards=guards)
    event = only_event(lab, "entropy", "warn")
    first = read_metrics(lab / "run")[0]["entropy"]
    assert event["value"] < 0.1 * first


def test_entropy_blows_up(lab: Path) -> None:
    training = {"learning_rate": 0.1, "lr_scheduler_type": "constant"}
    guards = {"entropy": {"action": "stop", "baseline": 1, "patience": 1, "above": 1.5}}
    with pytest.raises(WorkError, match=r"more than 1\.5 times.*lower training\.learning_rate"):
        train(lab, "grpo", rewards=reward(lab, "alternating"), training=training, guards=guards)
    only_event(lab, "entropy", "stop")


@pytest.mark.parametrize("method", ["grpo", "online_dpo"])
def test_kl_blows_up(lab: Path, method: str) -> None:
    """In nats a token and, with online DPO, a completion."""
    training = {"learning_rate": 0.1, "lr_scheduler_type": "constant", "beta": 0.1}
    guards = {"kl": {"action": "stop", "patience": 1}, "clipped_completions": "off"}
    with pytest.raises(WorkError, match=r"nats a token, more than 1\..*raise the penalty"):
        train(lab, method, rewards=reward(lab, "alternating"), training=training, guards=guards)
    assert only_event(lab, "kl", "stop")["value"] > 1


@pytest.mark.parametrize("peft", [{"r": 4, "target_modules": "all-linear"}, None], ids=["adapter", "model"])
def test_what_is_trained_does_not_move(lab: Path, peft: dict[str, Any] | None) -> None:
    with pytest.raises(WorkError, match="did not change in 3 steps"):
        train(lab, "sft", peft=peft, callbacks=callback(lab, "Estrange"))
    assert only_event(lab, "adapter_moves", "stop")["value"] == 0.0


def test_an_adapter_that_waits_for_its_learning_rate_is_no_event(lab: Path) -> None:
    """The first step of a warm-up has a learning rate of 0; LoRA's A has no gradient as long as B is 0."""
    guards = {"adapter_moves": {"action": "stop", "patience": 1}}
    training = {"warmup_steps": 2, "max_steps": 3}
    train(lab, "sft", peft={"r": 4, "target_modules": "all-linear"}, guards=guards, training=training)
    assert "events" not in read_heartbeat(lab / "run")
    rates = [row["learning_rate"] for row in read_metrics(lab / "run")]
    assert rates[0] == 0.0
    assert rates[1] > 0


def test_a_run_that_goes_on_elsewhere_than_it_was(lab: Path) -> None:
    """The checkpoint says what the loss was, also to a run in another directory."""
    training = {"max_steps": 11, "save_steps": 10, "learning_rate": 1e-4}
    train(lab, "sft", training=training)
    before = read_metrics(lab / "run")
    assert "events" not in read_heartbeat(lab / "run")
    (lab / "run").rename(lab / "earlier")
    checkpoint, forget = lab / "earlier" / "checkpoint-10", callback(lab, "Forget")
    train(lab, "sft", training=training, resume_from=checkpoint)
    assert "events" not in read_heartbeat(lab / "run"), "a run that goes on where it was"
    train(lab, "sft", training=training, resume_from=checkpoint, callbacks=forget)
    event = only_event(lab, "resumed_loss", "warn", within=11)
    (row,) = read_metrics(lab / "run")
    assert event["value"] == row["loss"] > 1.2 * before[9]["loss"]
    assert (
        f"from step 10 is {row['loss']:.4g}, and the last one before was {before[9]['loss']:.4g};" in event["message"]
    )


def test_a_stop_through_the_command_line(lab: Path, root: Path, ptcli_process: Callable) -> None:
    run = lab / "run"
    result = ptcli_process(
        "train", root / "recipes/sft.yaml", "--smoke", f"output_dir={run}", "training.learning_rate=1e30"
    )
    assert result.code == 1, result.err
    status = json.loads((run / "status.json").read_text())
    event = only_event(lab, "non_finite", "stop")
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert status["events"] == [event]
    assert status["cause"] == event["message"]
    assert result.err.count(event["message"]) == 1
    assert not (run / "model.safetensors").exists()


def test_a_warning_through_the_command_line(lab: Path, root: Path, ptcli_process: Callable) -> None:
    run = lab / "run"
    result = ptcli_process(
        "train", root / "recipes/grpo.yaml", "--smoke", f"output_dir={run}", "rollouts={backend: transformers}",
        "launch={device: cpu}", f"rewards.0.use={lab}/rewards.py:constant",
        "guards.reward_variance={action: warn, patience: 3}",
    )  # fmt: skip
    assert result.code == 0, result.err
    status = json.loads((run / "status.json").read_text())
    event = only_event(lab, "reward_variance", "warn")
    assert (status["state"], status["cause"], status["events"]) == ("finished", None, [event])
    assert result.err.count(f"warning: {event['message']}") == 1
    assert "warnings: reward_variance (step 3)" in result.out


def test_there_is_a_test_for_each_guard() -> None:
    names = set(GuardsSpec.model_fields) - {"no_progress_seconds", "stale_weights"}
    text = Path(__file__).read_text()
    assert not [name for name in names if f'only_event(lab, "{name}"' not in text]
