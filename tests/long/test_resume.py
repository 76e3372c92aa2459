"""Runs of every kind that stop in one way or another, and go on: through the real command line."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest

from ptcli.run.checkpoints import open_checkpoint, read_weights
from ptcli.run.disk import estimate, measure
from tests.resume_runs import (
    INT,
    ROOT,
    STEPS,
    TERM,
    USR1,
    Stage,
    assert_goes_on,
    assert_identical,
    at_step,
    figures,
    heartbeat,
    saving,
    stage,
    status,
)
from tests.strategies import STRATEGIES, assert_same_weights

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LORA = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.1}
SAVED = 3
GENERATES = {
    "training": {
        "save_steps": SAVED, "num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 12,
        "gradient_accumulation_steps": 1, "max_length": None, "logging_steps": 1,
    },
    "rewards": [{"use": "ptcli.builtin.rewards:length_reward"}],
}  # fmt: skip
TWICE = GENERATES | {"training": GENERATES["training"] | {"num_iterations": 3}}  # type: ignore[operator]


def go_on(made: Stage) -> tuple[Path, Path]:
    """The whole run, and the part of it that goes on from its checkpoint in another directory."""
    made.train("whole")
    made.train("run", "--resume-from", str(made.folder / "whole" / f"checkpoint-{SAVED}"))
    return made.folder / "run", made.folder / "whole"


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("sft", {}),
        ("sft", {"training": {"logging_steps": 2, "num_train_epochs": 3, "max_steps": -1}, "data": {"train": [
            {"path": "builtin:arithmetic-messages", "take": 8}]}}),
        ("sft", {"peft": LORA | {"use_dora": True, "modules_to_save": ["lm_head"]}}),
        ("sft", {"peft": {"r": 4, "init_lora_weights": "pissa"}}),
        ("dpo", {}),
        ("dpo", {"peft": LORA}),
        ("reward", {"peft": LORA}),
        ("grpo", GENERATES),
        ("grpo", GENERATES | {"peft": LORA}),
        ("grpo", TWICE),
    ],
    ids=[
        "sft", "sft at an epoch's end", "sft dora", "sft pissa", "dpo", "dpo lora", "reward lora", "grpo", "grpo lora",
        "grpo at a batch's end",
    ],
)  # fmt: skip
def test_one_process_goes_on_exactly(method: str, sections: dict[str, Any], tmp_path: Path) -> None:
    """The same figures at every step and the same weights, to the bit."""
    training = {"save_steps": SAVED} | sections.get("training", {})
    if training.get("max_steps") == -1:
        training["save_steps"] = 2  # an epoch has two steps
    made = stage(tmp_path, method, **sections | {"training": training})
    made.train("whole")
    saved = training["save_steps"]
    made.train("run", "--resume-from", str(tmp_path / "whole" / f"checkpoint-{saved}"))
    assert_goes_on(tmp_path / "run", tmp_path / "whole", saved)


def test_an_adapter_with_its_reference_goes_on_exactly(tmp_path: Path) -> None:
    """DPO that trains an SFT's adapter on has two adapters in its checkpoints; transformers would load only the
    reference, and train from the adapter's start again."""
    first = stage(tmp_path / "sft", peft=LORA)
    first.train("run")
    model = {"path": str(tmp_path / "sft/run"), "adapter": "continue"}
    made = stage(tmp_path / "dpo", "dpo", model=model, training={"save_steps": SAVED})
    run, whole = go_on(made)
    assert_goes_on(run, whole, SAVED)


def test_guards_remember_what_they_saw(tmp_path: Path) -> None:
    """Completions that are cut off in every step are told of once, and not once more after the run goes on."""
    guard = {"clipped_completions": {"action": "warn", "threshold": 0.01, "patience": 2}}
    training = GENERATES["training"] | {"max_completion_length": 2}  # type: ignore[operator]
    made = stage(tmp_path, "grpo", **GENERATES | {"training": training, "guards": guard})
    made.train("run")
    seen = status(tmp_path / "run")["events"]
    assert [(event["guard"], event["step"]) for event in seen] == [("clipped_completions", 2)]
    made.train("run", "training.max_steps=9", "--resume")
    assert status(tmp_path / "run")["step"] == 9
    assert status(tmp_path / "run")["events"] == seen


@pytest.mark.parametrize("adapter", [{}, {"peft": LORA}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_several_processes_go_on(name: str, adapter: dict[str, Any], tmp_path: Path) -> None:
    """Step, learning rate and rows continue; the losses are those of the run that was not interrupted."""
    strategy = STRATEGIES[name]
    callbacks = [{"use": "tests.cpu_fsdp.shim:FsdpOnCpu"}] if strategy.sharded_by_fsdp else []
    made = stage(
        tmp_path,
        module="tests.cpu_fsdp" if strategy.sharded_by_fsdp else "ptcli",
        launch={"device": "cpu", "processes": 2, "accelerate": name},
        training={"save_steps": SAVED},
        callbacks=callbacks,
        **adapter,
    )
    run, whole = go_on(made)
    found, wanted = figures(run), figures(whole)[SAVED:]
    assert [row["step"] for row in found] == [row["step"] for row in wanted] == list(range(SAVED + 1, STEPS + 1))
    assert [row["learning_rate"] for row in found] == [row["learning_rate"] for row in wanted]
    assert [row["num_tokens"] for row in found] == [row["num_tokens"] for row in wanted]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], abs=1e-5)
    assert_same_weights(run, whole)


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_several_processes_stop_together(name: str, tmp_path: Path) -> None:
    """All ranks save at the same step, and what they saved is whole."""
    launch = {"device": "cpu", "processes": 2, "accelerate": name}
    made, run = stage(tmp_path, launch=launch), tmp_path / "run"
    made.train("whole")
    assert made.stop("run", at_step(2), TERM).code == 143
    assert 2 <= status(run)["step"] < STEPS
    made.train("run", "--resume")
    assert [row["loss"] for row in figures(run)] == pytest.approx(
        [row["loss"] for row in figures(tmp_path / "whole")], abs=1e-5
    )


def test_killed_within_a_save(tmp_path: Path) -> None:
    """What was half written is passed over by name, set aside, and does not mix with what is written in its place."""
    callbacks = [{"use": "tests.save_faults:KilledWithinSave", "args": {"step": 4}}]
    made, run = stage(tmp_path, training={"save_steps": 2}, callbacks=callbacks), tmp_path / "run"
    done = made.train("run", code=1)
    assert status(run)["state"] == "failed"
    assert "to go on from step 2: ptcli train" in done.stderr
    made.train("whole", environment={"PTCLI_SURVIVES": "1"})
    resumed = made.train("run", "--resume", environment={"PTCLI_SURVIVES": "1"})
    assert "checkpoint-4 has no trainer_state.json, which is written last: it is not whole" in resumed.stderr
    assert (run / "earlier/checkpoint-4/model.safetensors").exists()
    assert_identical(run, tmp_path / "whole")


def test_ctrl_c_once_and_twice(tmp_path: Path) -> None:
    made = stage(tmp_path, callbacks=[{"use": "tests.slow_steps:Slowly", "args": {"seconds": 3}}])
    once = made.stop("once", at_step(1), INT)
    assert once.code == 130
    step = status(tmp_path / "once")["step"]
    assert status(tmp_path / "once")["cause"] == f"stopped by SIGINT; checkpoint-{step} is saved"
    assert "SIGINT: a checkpoint is saved after this step; Ctrl-C once more ends at once" in once.err
    twice = made.stop("twice", at_step(1), INT, INT)
    assert twice.code == 130
    assert status(tmp_path / "twice")["cause"].startswith("stopped by SIGINT; it came twice")
    assert list((tmp_path / "twice").glob("checkpoint-*")) == []


def test_a_signal_within_a_save_lets_it_finish(tmp_path: Path) -> None:
    """The checkpoint that is being written is the one that is asked for: no further step is trained."""
    callbacks = [{"use": "tests.slow_steps:SlowSaves"}]
    made, run = stage(tmp_path, training={"save_steps": 2}, callbacks=callbacks), tmp_path / "run"
    assert made.stop("run", saving, USR1).code == 143
    assert status(run)["cause"] == "stopped by SIGUSR1; checkpoint-2 is saved"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_signal_while_loading_ends_at_once(tmp_path: Path) -> None:
    made, run = stage(tmp_path), tmp_path / "run"
    assert made.stop("run", lambda run: heartbeat(run).get("phase") == "loading", USR1).code == 143
    assert status(run)["cause"] == "stopped by SIGUSR1"
    made.train("run", "--resume")
    assert status(run)["step"] == STEPS


def test_weights_only_are_saved_whole_when_it_must_go_on(tmp_path: Path) -> None:
    made, run = stage(tmp_path, training={"save_only_model": True, "save_steps": 100}), tmp_path / "run"
    assert made.stop("run", at_step(2), TERM).code == 143
    made.train("run", "--resume")
    made.train("whole")
    assert_identical(run, tmp_path / "whole")


def test_only_the_final_save_is_missing(tmp_path: Path) -> None:
    """A run that died between its last checkpoint and its end trains no step more."""
    made, run = stage(tmp_path, training={"save_steps": SAVED}), tmp_path / "run"
    made.train("whole")
    shutil.copytree(tmp_path / "whole", run)
    (run / "model.safetensors").unlink()
    values = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(values | {"state": "failed", "exit_code": 1}))
    made.train("run", "--resume")
    assert (status(run)["state"], status(run)["step"]) == ("finished", STEPS)
    assert_identical(run, tmp_path / "whole")


@pytest.mark.parametrize("name", ["single", "zero2", "zero3", "fsdp2"])
def test_a_checkpoint_takes_what_was_computed(name: str, tmp_path: Path) -> None:
    strategy = STRATEGIES[name]
    callbacks = [{"use": "tests.cpu_fsdp.shim:FsdpOnCpu"}] if strategy.sharded_by_fsdp else []
    launch = {"device": "cpu", "processes": strategy.processes, "accelerate": name}
    module = "tests.cpu_fsdp" if strategy.sharded_by_fsdp else "ptcli"
    made = stage(
        tmp_path, module=module, launch=launch, callbacks=callbacks, training={"max_steps": 1, "save_steps": 1}
    )
    made.train("run")
    checkpoint = open_checkpoint(tmp_path / "run/checkpoint-1")
    values = sum(prod(tensor.shape) for tensor in read_weights(checkpoint.path).values())
    kind, stage_of = checkpoint.kind, {"zero2": 2, "zero3": 3}
    computed = estimate(values, values, adapter=False, width=4, kind=kind, stage=stage_of.get(name, 0)).checkpoint
    assert computed - (32 << 20) <= measure(checkpoint.path) <= computed


def test_a_longer_run_goes_on_from_its_end(tmp_path: Path) -> None:
    made = stage(tmp_path, training={"save_steps": SAVED, "lr_scheduler_type": "constant"})
    made.train("run")
    assert "is finished: 6 steps; ask for more" in made.train("run", "--resume", code=2).stderr
    made.train("run", "training.max_steps=8", "--resume")
    assert [row["step"] for row in figures(tmp_path / "run")] == list(range(1, 9))
    made.train("whole", "training.max_steps=8")
    assert_identical(tmp_path / "run", tmp_path / "whole", steps=8)


def test_no_room_for_the_next_checkpoint(tmp_path: Path) -> None:
    callbacks = [{"use": "tests.save_faults:NoRoom", "args": {"step": 3}}]
    made, run = stage(tmp_path, training={"save_steps": 2}, callbacks=callbacks), tmp_path / "run"
    done = made.train("run", code=1)
    assert "no room for checkpoint-4: it takes" in status(run)["cause"]
    assert "to go on from step 2" in done.stderr
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_save_of_zeros_ends_the_run(tmp_path: Path) -> None:
    """After the first save, and before an older checkpoint goes for it."""
    callbacks = [{"use": "tests.save_faults:EmptyAdapter"}]
    training = {"save_steps": 2, "save_total_limit": 1}
    made = stage(tmp_path, peft=LORA, training=training, callbacks=callbacks)
    made.train("run", code=1)
    cause = status(tmp_path / "run")["cause"]
    assert "checkpoint-2 was saved, and is no good: it holds an adapter whose lora_B are all 0" in cause
    assert status(tmp_path / "run")["step"] == 2


def test_another_recipe_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    made, run = stage(tmp_path, training={"save_steps": SAVED}), tmp_path / "run"
    made.train("run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = made.train("run", "seed=1", "training.learning_rate=1", "training.max_steps=9", "--resume", code=2)
    assert [line.split(" was ")[0] for line in done.stderr.splitlines()] == [
        "error: seed=1: seed", "error: training.learning_rate=1: training.learning_rate",
    ]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_method_that_cannot_go_on_says_so_before_it_starts(tmp_path: Path) -> None:
    made = Stage(tmp_path, recipe=ROOT / "recipes/ppo.yaml")
    assert "ppo: TRL's trainer cannot go on" in made.train("run", "--smoke", "--resume", code=2).stderr
    assert not (tmp_path / "run").exists()


def test_every_method_says_whether_it_can_go_on() -> None:
    import inspect

    from ptcli.methods import METHODS
    from ptcli.train.objects import import_class

    trainers = {name: import_class(row.trainer) for name, row in METHODS.items()}
    can = {
        name for name, each in trainers.items() if "resume_from_checkpoint" in inspect.signature(each.train).parameters
    }
    assert can == {name for name, row in METHODS.items() if row.resumes}
