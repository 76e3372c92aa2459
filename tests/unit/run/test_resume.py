"""Which checkpoint a run goes on from, what must be the same, and what a person is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.plan.build import build_plan
from ptcli.plan.model import Machine, Plan
from ptcli.run.resume import Resumption, resume, resume_command, way_back
from ptcli.run.rundir import EARLIER, RunDirectory
from ptcli.run.sameness import changed_keys
from tests.unit.plan.conftest import make_recipe

from .test_checkpoints import deepspeed, plain, write_torch

TRAINING = {"max_steps": 10, "learning_rate": 1e-3}


def make_plan(folder: Path, method: str = "sft", **sections: Any) -> Plan:
    sections = {"training": TRAINING, "launch": {"device": "cpu"}} | sections
    planned = build_plan(make_recipe(method, **sections), Machine((), 4), output_dir=folder / "run")
    assert planned.plan is not None, planned.problems
    return planned.plan


def begun(folder: Path, plan: Plan | None = None, *steps: int, **options: Any) -> Path:
    """A run directory as a run leaves it that has written checkpoints."""
    plan = plan or make_plan(folder)
    with RunDirectory(folder / "run").prepare(plan) as run:
        run.write_status("stopped", step=max(steps, default=0), exit_code=143)
    written = json.loads((folder / "run/plan.json").read_text())
    for step in steps:
        plain(folder / "run", step, **options)
    (folder / "run/plan.json").write_text(json.dumps(written))
    return folder / "run"


def texts(resumption: Resumption) -> str:
    return "\n".join(map(str, resumption.problems))


def argv(plan: Plan) -> tuple[str, ...]:
    return next(step.argv for step in plan.steps if step.name == "trainer")


# --- which checkpoint ------------------------------------------------------------------------------------------------


def test_the_latest_whole_one(tmp_path: Path) -> None:
    run = begun(tmp_path, None, 2, 4, 10)
    (run / "checkpoint-10/optimizer.pt").write_bytes(b"PK")
    found = resume(make_plan(tmp_path), None)
    assert found.problems == ()
    assert (found.step, found.aside) == (4, (run / "checkpoint-10",))
    assert argv(found.plan)[-2:] == ("--resume-from", str(run / "checkpoint-4"))
    assert f"--resume-from {run}/checkpoint-4" in found.plan.files["launch.sh"]
    assert found.plan.notes[-3:] == (
        "checkpoint-10 optimizer.pt is cut off: it is not whole, and passed over",
        "checkpoint-10 goes to earlier/: it is no part of what this run does now",
        f"going on from {run}/checkpoint-4: 4 of 100 steps are done",
    )


def test_one_by_name(tmp_path: Path) -> None:
    run = begun(tmp_path, None, 2, 4, 6)
    found = resume(make_plan(tmp_path), str(run / "checkpoint-2"))
    assert (found.step, found.aside) == (2, (run / "checkpoint-4", run / "checkpoint-6"))
    (run / "checkpoint-4/scheduler.pt").unlink()
    assert "checkpoint-4 has no scheduler.pt; name a whole" in texts(
        resume(make_plan(tmp_path), str(run / "checkpoint-4"))
    )
    assert "is not there" in texts(resume(make_plan(tmp_path), str(run / "checkpoint-5")))


def test_none_begins_anew(tmp_path: Path) -> None:
    """A job that was stopped before its first save is queued again with --resume."""
    found = resume(make_plan(tmp_path), None)
    assert (found.problems, found.step, argv(found.plan)) == ((), 0, argv(make_plan(tmp_path)))
    assert "has no whole checkpoint: the run starts at its beginning" in found.plan.notes[-1]


def test_weights_alone_are_none(tmp_path: Path) -> None:
    run = begun(tmp_path, None, 4)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (run / "checkpoint-4" / name).unlink()
    for named in (None, str(run / "checkpoint-4")):
        assert "holds weights only (training.save_only_model)" in texts(resume(make_plan(tmp_path), named))
        assert f"model.path={run}@4" in texts(resume(make_plan(tmp_path), named))


def test_a_finished_run(tmp_path: Path) -> None:
    run = begun(tmp_path, None, 10)
    RunDirectory(run).write_status("finished", step=10, exit_code=0)
    found = resume(make_plan(tmp_path), None)
    assert texts(found).startswith(f"the run in {run} is finished: 10 steps; ask for more: training.max_steps")
    longer = resume(make_plan(tmp_path, training=TRAINING | {"max_steps": 20}), None)
    assert (longer.problems, longer.step) == ((), 10)
    assert any("learning rate that decays follows the new" in note for note in longer.plan.notes)


def test_steps_that_are_past(tmp_path: Path) -> None:
    begun(tmp_path, None, 10)
    found = resume(make_plan(tmp_path, training=TRAINING | {"max_steps": 5}), None)
    assert "is at step 10, past training.max_steps, which is 5" in texts(found)


def test_a_trainer_that_cannot(tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path), method="ppo")
    assert texts(resume(plan, None)).startswith("ppo: TRL's trainer cannot go on from a checkpoint")


def test_completions_that_no_checkpoint_has(tmp_path: Path) -> None:
    rewards = [{"use": "ptcli.builtin.rewards:length_reward"}]
    training = TRAINING | {"num_generations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 4}
    plan = make_plan(tmp_path, "grpo", training=training, rewards=rewards)
    begun(tmp_path, plan, 4, 6)
    assert any("step 6 lies within a generation batch" in note for note in resume(plan, None).plan.notes)
    again = resume(plan, str(tmp_path / "run/checkpoint-4"))
    assert not any("generation batch" in note for note in again.plan.notes)


# --- what must be the same -------------------------------------------------------------------------------------------


def test_all_differences_at_once(tmp_path: Path) -> None:
    begun(tmp_path, None, 4)
    training = TRAINING | {"learning_rate": 2e-3, "per_device_train_batch_size": 4}
    found = resume(make_plan(tmp_path, training=training, seed=7), None)
    keys = [problem.key for problem in found.problems]
    assert keys == [("seed",), ("training", "learning_rate"), ("training", "per_device_train_batch_size")]
    assert "training.learning_rate was 0.001 in run and is 0.002; put it back, or begin a run of its own" in texts(
        found
    )


def test_what_may_change(tmp_path: Path) -> None:
    begun(tmp_path, None, 4)
    training = TRAINING | {"save_steps": 7, "logging_steps": 3, "save_total_limit": 2, "num_train_epochs": 3.0}
    found = resume(make_plan(tmp_path, training=training, guards={"kl": "off"}), None)
    assert (found.problems, found.step) == ((), 4)


def test_a_default_that_is_spelt_out_is_no_change(tmp_path: Path) -> None:
    begun(tmp_path, None, 4)
    assert resume(make_plan(tmp_path, training=TRAINING | {"per_device_train_batch_size": 8}), None).problems == ()


def test_what_is_told(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "dpo")
    begun(tmp_path, plan, 4)
    found = resume(make_plan(tmp_path, "dpo", training=TRAINING | {"beta": 0.2}), None)
    assert found.problems == ()
    assert "training.beta was 0.1 in run and is 0.2 from step 5 on" in found.plan.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"launch": {"device": "cpu", "processes": 2}}, "written by 1 process, and this run has 2: rows would come in"),
        ({"peft": {"r": 4}}, "holds all weights, and this recipe trains an adapter"),
        ({"model": {"path": "builtin:tiny", "dtype": "bfloat16"}}, "model.dtype was"),
        ({"data": {"train": [{"path": "builtin:arithmetic-messages", "take": 20}]}}, "data.train.0.take was not said"),
        ({"data": {"train": [{"path": "builtin:arithmetic-messages"}], "eval": 0.1}}, "data.eval was not said in run"),
    ],
    ids=["world", "adapter", "model", "data", "held out"],
)
def test_what_may_not(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    base = {"data": {"train": [{"path": "builtin:arithmetic-messages"}]}}
    begun(tmp_path, make_plan(tmp_path, **base), 4)
    assert said in texts(resume(make_plan(tmp_path, **base | change), None))


def test_the_shape_of_an_adapter(tmp_path: Path) -> None:
    run = begun(tmp_path, make_plan(tmp_path, peft={"r": 4}), 4)
    (run / "checkpoint-4/adapter_config.json").write_text("{}")
    assert resume(make_plan(tmp_path, peft={"r": 4}), None).problems == ()
    other = {"r": 8, "target_modules": ["q_proj"]}
    assert [p.key for p in resume(make_plan(tmp_path, peft=other), None).problems] == [
        ("peft", "r"), ("peft", "target_modules", 0),
    ]  # fmt: skip


def test_how_it_is_split(tmp_path: Path) -> None:
    def launch(accelerate: str) -> Plan:
        return make_plan(tmp_path, launch={"device": "cpu", "processes": 2, "accelerate": accelerate})

    begun(tmp_path, launch("zero2"))
    written = (tmp_path / "run/plan.json").read_text()
    deepspeed(tmp_path / "run", 2)
    (tmp_path / "run/plan.json").write_text(written)
    assert resume(launch("zero2"), None).problems == ()
    assert "launch.accelerate: deepspeed_config.zero_stage was 2 and is 3" in texts(resume(launch("zero3"), None))
    assert "was written by DeepSpeed, and this run trains without DeepSpeed" in texts(resume(launch("ddp"), None))
    single = make_plan(tmp_path, launch={"device": "cpu", "accelerate": "zero2"})
    assert "written by 2 processes, and this run has 1: DeepSpeed cannot split" in texts(resume(single, None))


def test_rows_that_changed(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "1+1=2"}\n' * 100)
    data = {"train": [{"path": str(rows)}]}
    begun(tmp_path, make_plan(tmp_path, data=data), 4)
    assert resume(make_plan(tmp_path, data=data), None).problems == ()
    rows.write_text('{"text": "1+1=3"}\n' * 100)
    assert f"the files of {rows} have changed" in texts(resume(make_plan(tmp_path, data=data), None))


def test_other_versions_are_told(tmp_path: Path) -> None:
    run = begun(tmp_path, None, 4)
    stack = json.loads((run / "stack.json").read_text())
    stack["packages"]["torch"] = "1.0"
    (run / "stack.json").write_text(json.dumps(stack))
    assert any("torch 1.0 -> " in note for note in resume(make_plan(tmp_path), None).plan.notes)


def test_a_checkpoint_from_elsewhere(tmp_path: Path) -> None:
    """Without the recipe that it was trained by, what is in it is compared."""
    kept = plain(tmp_path / "kept", 4, processes=2)
    assert "was written by 2 processes" in texts(resume(make_plan(tmp_path), str(kept)))
    write_torch(kept / "rng_state.pth")
    for rank in range(2):
        (kept / f"rng_state_{rank}.pth").unlink()
    assert resume(make_plan(tmp_path), str(kept)).step == 4


def test_keys_of_lists_and_of_nothing() -> None:
    old = {"method": "sft", "data": {"train": [{"path": "a"}]}, "launch": {"gpus": ["0"]}, "peft": None}
    new = {"method": "sft", "data": {"train": [{"path": "a"}, {"path": "b"}]}, "launch": {"gpus": ["1"]}}
    assert list(changed_keys(old, new)) == [(("data", "train", 1, "path"), None, "b")]


# --- what becomes of the directory, and what is said -----------------------------------------------------------------


def test_what_is_in_the_way_is_moved(tmp_path: Path) -> None:
    run = begun(tmp_path, None, 2, 4)
    for turn in ("checkpoint-4", "checkpoint-4.1"):
        if not (run / "checkpoint-4").exists():
            plain(run, 4)
        found = resume(make_plan(tmp_path), str(run / "checkpoint-2"))
        with RunDirectory(run).prepare(found.plan, resume=True, step=found.step, aside=found.aside) as prepared:
            status = prepared.status()
        assert (run / EARLIER / turn / "optimizer.pt").exists()
        assert not (run / "checkpoint-4").exists()
        assert status is not None
        assert (status.state, status.step) == ("planned", 2)
    assert yaml.safe_load((run / "recipe.resolved.yaml").read_text())["method"] == "sft"


def test_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["train", "my recipe.yaml", "seed=1", "--overwrite", "--resume-from", "run/checkpoint-1", "--json"]
    assert resume_command(arguments) == "ptcli train 'my recipe.yaml' seed=1 --resume"
    assert resume_command(["train", "a.yaml", "--resume-from=x", "--smoke"]) == "ptcli train a.yaml --smoke --resume"
    plan = make_plan(tmp_path)
    run = RunDirectory(begun(tmp_path, None))
    stopped = run.write_status("stopped", step=3, exit_code=143)
    assert way_back(plan, stopped, ["train", "a.yaml"]) == []
    plain(run.path, 3)
    assert way_back(plan, stopped, ["train", "a.yaml"]) == ["to go on from step 3: ptcli train a.yaml --resume"]
    assert way_back(plan, run.write_status("finished", step=10), ["train", "a.yaml"]) == []
