"""The run directory: who may use it, what is in it before the start, what never is."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from ptcli.errors import RequestError
from ptcli.plan.model import Plan
from ptcli.run.masking import mask
from ptcli.run.rundir import RunDirectory, Status
from ptcli.run.stack import read_stack

from .conftest import make_plan, make_step


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path / "run", make_step("trainer", ["sh"]))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_prepare_writes_what_a_run_has(plan: Plan) -> None:
    with RunDirectory(plan.output_dir).prepare(plan) as rundir:
        assert (rundir.path / "recipe.resolved.yaml").read_text() == "method: grpo\n"
        assert (rundir.path / "launch.sh").stat().st_mode & 0o100
        assert json.loads((rundir.path / "plan.json").read_text())["method"] == "grpo"
        assert json.loads((rundir.path / "stack.json").read_text())["packages"]["ptcli"]
        status = rundir.status()
    assert status
    assert (status.state, status.cause, status.step, status.exit_code) == ("planned", None, 0, None)
    assert datetime.fromisoformat(status.updated).utcoffset() is not None
    assert not list(plan.output_dir.rglob("*.part"))


def test_check_writes_nothing(plan: Plan) -> None:
    RunDirectory(plan.output_dir).check()
    assert not plan.output_dir.exists()


@pytest.mark.parametrize("name", ["recipe.resolved.yaml", "status.json", "checkpoint-5/x", "model-1.safetensors"])
def test_another_run_is_refused(plan: Plan, name: str) -> None:
    sign = plan.output_dir / name
    sign.parent.mkdir(parents=True)
    sign.write_text("theirs")
    before = snapshot(plan.output_dir)
    with pytest.raises(RequestError, match=r"holds another run; .*--overwrite"):
        RunDirectory(plan.output_dir).prepare(plan)
    assert snapshot(plan.output_dir) == before


def test_overwrite_removes_what_a_run_left_and_nothing_else(plan: Plan, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    started = ("start/model.safetensors", ".start.node.7/config.json")
    ours = (*started, "checkpoint-5/model.safetensors", "metrics.jsonl", "logs/trainer.log")
    for name in ("notes.txt", "mine/data.json", *ours):
        (plan.output_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (plan.output_dir / name).write_text("old")
    (plan.output_dir / "checkpoint-6").symlink_to(elsewhere)
    RunDirectory(plan.output_dir).prepare(plan, overwrite=True).close()
    left = snapshot(plan.output_dir)
    assert left["notes.txt"] == left["mine/data.json"] == b"old"
    assert not set(ours) & set(left)
    assert not list(plan.output_dir.glob("checkpoint-*"))
    assert (elsewhere / "precious").exists()


def test_overwrite_keeps_what_only_looks_like_a_run(plan: Plan) -> None:
    strangers = ("logs/mine.log", "checkpoint-notes.txt", "backup.safetensors", "README.md")
    for name in (*strangers, "status.json", "logs/stacks-trainer.txt"):
        (plan.output_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (plan.output_dir / name).write_text("old")
    RunDirectory(plan.output_dir).prepare(plan, overwrite=True).close()
    left = snapshot(plan.output_dir)
    assert [left[name] for name in strangers] == [b"old"] * len(strangers)
    assert "logs/stacks-trainer.txt" not in left


@pytest.mark.parametrize("name", ["config.json", "logs/trainer.log", "vocab.json", "completions/x", "README.md"])
def test_files_of_others_are_neither_removed_nor_replaced_unasked(plan: Plan, name: str) -> None:
    """`output_dir=.` in somebody's project: none of these files say that a run lives here."""
    file = plan.output_dir / name
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    before = snapshot(plan.output_dir)
    with pytest.raises(RequestError, match=rf"would replace \({name.removesuffix('/x')}\); .*--overwrite"):
        RunDirectory(plan.output_dir).prepare(plan)
    assert snapshot(plan.output_dir) == before


def test_a_folder_with_other_files_will_do(plan: Plan) -> None:
    (plan.output_dir / "logs").mkdir(parents=True)
    for name in ("notes.txt", "logs/mine.log"):
        (plan.output_dir / name).write_text("theirs")
    RunDirectory(plan.output_dir).prepare(plan).close()
    left = snapshot(plan.output_dir)
    assert left["notes.txt"] == left["logs/mine.log"] == b"theirs"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_home_is_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    plan.output_dir.mkdir()
    monkeypatch.setenv("HOME", str(plan.output_dir))
    for place in (plan.output_dir, Path("/")):
        with pytest.raises(RequestError, match="no place for a run"):
            RunDirectory(place).check(overwrite=overwrite)


def test_resume_keeps_all_but_the_heartbeat(plan: Plan) -> None:
    with RunDirectory(plan.output_dir).prepare(plan) as rundir:
        for file in (rundir.heartbeat, rundir.log("trainer"), rundir.metrics):
            file.write_text("old")
    with RunDirectory(plan.output_dir).prepare(plan, resume=True) as rundir:
        assert not rundir.heartbeat.exists()
        assert rundir.log("trainer").read_text() == rundir.metrics.read_text() == "old"


@pytest.mark.parametrize(
    ("first", "second", "refused"), [(True, True, False), (False, True, True), (True, False, True)]
)
def test_a_smoke_replaces_only_a_smoke(tmp_path: Path, first: bool, second: bool, refused: bool) -> None:
    plans = [make_plan(tmp_path / "run", make_step("trainer", ["sh"]), smoke=smoke) for smoke in (first, second)]
    RunDirectory(plans[0].output_dir).prepare(plans[0]).close()
    if refused:
        with pytest.raises(RequestError, match="holds another run"):
            RunDirectory(plans[1].output_dir).prepare(plans[1])
    else:
        RunDirectory(plans[1].output_dir).prepare(plans[1]).close()


def test_one_ptcli_at_a_time(plan: Plan) -> None:
    with RunDirectory(plan.output_dir).prepare(plan):
        before = snapshot(plan.output_dir)
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(RequestError, match=r"in use by another ptcli \(pid \d+\)"):
                RunDirectory(plan.output_dir).prepare(plan, **options)
        assert snapshot(plan.output_dir) == before
    RunDirectory(plan.output_dir).prepare(plan, overwrite=True).close()


def test_a_child_that_inherits_the_lock_holds_it(plan: Plan) -> None:
    """What keeps the next ptcli out while the reaper tidies up after a killed one."""
    with RunDirectory(plan.output_dir).prepare(plan) as rundir:
        holder = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=-1, pass_fds=rundir.lock)
    with pytest.raises(RequestError, match="in use"):
        RunDirectory(plan.output_dir).check(resume=True)
    holder.communicate(b"\n")
    RunDirectory(plan.output_dir).check(resume=True)


def test_bad_places(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RequestError, match="is a file, not a directory"):
            RunDirectory(path).check()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path, message in {
        tmp_path / "nowhere": "is a link to .*gone, which is not there",
        tmp_path / "circle": "cannot write to .*circle",
        tmp_path / ("x" * 300): "cannot write to .*too long",
    }.items():
        with pytest.raises(RequestError, match=message):
            RunDirectory(path).check()


def test_a_missing_program_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "run", make_step("rollouts", ["vllm-of-nowhere"]))
    with pytest.raises(RequestError, match="vllm-of-nowhere"):
        RunDirectory(plan.output_dir).prepare(plan)
    assert not plan.output_dir.exists()


def test_a_torn_status_is_none(rundir: RunDirectory) -> None:
    for text in ("", "{", "[]", '{"state": "planned"}'):
        rundir.status_file.write_text(text)
        assert rundir.status() is None


def test_status_round_trip(rundir: RunDirectory) -> None:
    written = rundir.write_status("failed", cause="it broke", step=7, exit_code=1)
    assert rundir.status() == written == Status(**written.as_dict())


def test_a_full_disk_does_not_keep_the_end_out_of_the_status(
    rundir: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    rundir.write_status("training", step=1)
    write_text = Path.write_text

    def refuse(path: Path, text: str, **options: str) -> int:
        write_text(path, "", **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    written = rundir.write_status("failed", cause="No space left on device", step=2, exit_code=1)
    assert rundir.status() == written
    assert not list(rundir.path.rglob("*.part"))


def test_no_secret_is_written(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SECRET_FILE", "/etc/hostname")
    object.__setattr__(plan, "files", {"recipe.resolved.yaml": "a: 0123456789abcdef\nb: /etc/hostname\n"})
    with RunDirectory(plan.output_dir).prepare(plan) as rundir:
        rundir.write_status("failed", cause="401 for 0123456789abcdef")
    assert all(b"0123456789abcdef" not in text for text in snapshot(plan.output_dir).values())
    resolved = (plan.output_dir / "recipe.resolved.yaml").read_text()
    assert resolved == "a: ${oc.env:WANDB_API_KEY}\nb: /etc/hostname\n"


def test_short_values_and_other_names_are_not_secrets() -> None:
    environ = {"API_KEY": "none", "MONKEY": "training-data", "HF_TOKEN": "hf_12345678"}
    assert mask("none training-data hf_12345678", environ) == "none training-data ${oc.env:HF_TOKEN}"


def test_stack(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stack = read_stack(plan)
    assert stack["git"] is None
    assert stack["smoke"] is False
    (data,) = stack["data"]
    (file,) = data["files"].values()
    assert data["path"] == "builtin:arithmetic"
    assert len(file["sha256"]) == 64
    assert file["bytes"] > 0
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m x"):
        subprocess.run(["git", *command.split()], check=True)
    assert len(read_stack(plan)["git"]["commit"]) == 40
    json.dumps(stack)
