"""`ptcli merge` as a command: its result, its exit codes, and what is left when it is stopped or the disk refuses."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import Interrupted, WorkError
from ptcli.merge import stream, verifier
from ptcli.merge.plan import plan_merge
from ptcli.merge.run import run_merge
from ptcli.run.signals import signals_raised
from tests.integration.merge.families import differing, make_adapter, make_base, merged_by_peft, read

RESULT = {"out", "base", "tensors_merged", "tensors_copied", "verified", "max_abs_diff", "seconds"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("merge") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return make_adapter(base, base.parent / "adapter", target_modules="all-linear")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_result_as_json(base: Path, adapter: Path, tmp_path: Path, ptcli: Callable) -> None:
    done = ptcli("merge", adapter, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result.keys() == RESULT
    assert (result["tensors_merged"], result["tensors_copied"], result["verified"]) == (14, 7, True)
    assert 0 < result["max_abs_diff"] < 0.1
    assert result["base"] == str(base)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    assert differing(read(tmp_path / "out"), theirs) == []


def test_lines_for_people(adapter: Path, tmp_path: Path, ptcli: Callable) -> None:
    out = tmp_path / "out"
    done = ptcli("merge", adapter, "--out", out, "--no-verify")
    assert done.code == 0
    assert "merged: 14 tensors merged, 7 copied" in done.out
    assert "not verified" in done.out
    again = ptcli("merge", adapter, "--out", out, "--no-verify")
    assert (again.code, again.out) == (2, "")
    assert f"error: {out} exists; choose another --out, or have it replaced with --force" in again.err
    assert ptcli("merge", adapter, "--out", out, "--no-verify", "--force").code == 0
    assert left(tmp_path) == ["out"]


def test_a_dry_run_writes_nothing(base: Path, adapter: Path, tmp_path: Path, ptcli: Callable) -> None:
    done = ptcli("merge", adapter, "--out", tmp_path / "out", "--dry-run")
    assert done.code == 0
    for said in (
        f"base      {base}",
        "way       streamed",
        "14 tensors changed (14 with B A), 7 copied",
        "memory    about",
    ):
        assert said in done.out
    as_json = json.loads(ptcli("merge", adapter, "--dry-run", "--json").out)
    assert (as_json["mode"], as_json["tensors_merged"], as_json["out"]) == ("stream", 14, None)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--dtype", "int4"], "--dtype int4 is none to merge into"),
        (["--dry-run", "--base", "org/none"], "the base org/none is not on this machine"),
        ([], "add --out DIR, or --dry-run"),
        (["--out", "/proc/out"], "error:"),
    ],
)
def test_wrong_requests(arguments: list[str], said: str, adapter: Path, ptcli: Callable) -> None:
    done = ptcli("merge", adapter, *arguments)
    assert (done.code, done.out) == (2 if "/proc/out" not in arguments else done.code, "")
    assert done.code in (1, 2)
    assert said in done.err
    assert "Traceback" not in done.err


def test_an_adapter_that_is_not_there(tmp_path: Path, ptcli: Callable) -> None:
    done = ptcli("merge", tmp_path / "none", "--out", tmp_path / "out")
    assert done.code == 2
    assert "there is no adapter" in done.err


def test_a_full_disk(adapter: Path, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "ptcli", "merge", str(adapter), "--out", str(tmp_path / "out"), "--no-verify"]
    done = subprocess.run(command, preexec_fn=small, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "error: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert left(tmp_path) == []


def test_ctrl_c_in_the_middle(adapter: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ptcli", "merge", str(adapter), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert left(tmp_path) == []


def test_a_signal_while_blocks_are_written(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 256)

    sent: list[int] = []

    def progress(activity: str, done: int, total: int) -> None:
        if done > total // 2 and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(Interrupted) as caught, signals_raised():
        run_merge(plan_merge(str(adapter)), tmp_path / "out", verify=False, progress=progress)
    assert caught.value.exit_code == 143
    assert left(tmp_path) == []


def test_a_base_that_becomes_shorter_meanwhile(tmp_path: Path, ptcli: Callable) -> None:
    base = make_base("llama", tmp_path / "base")
    plan = plan_merge(str(make_adapter(base, tmp_path / "adapter", target_modules="all-linear")))
    path = next(base.glob("*.safetensors"))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(WorkError, match="the base changed while it was read: a file is cut off"):
        run_merge(plan, tmp_path / "out", verify=False)
    assert left(tmp_path) == ["adapter", "base"]
    (tmp_path / "out").mkdir()
    with pytest.raises(WorkError, match="became shorter while it was read"):
        stream.stream(plan, tmp_path / "out", lambda *_: None)


def started_processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """The processes that verify, as they are started."""
    started: list[subprocess.Popen] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen:
        started.append(subprocess.Popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(verifier, "start", start)
    return started


def test_a_verification_that_is_killed(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where memory is short."""
    started = started_processes(monkeypatch)
    with pytest.raises(WorkError, match="verification ended without a result: exit code -9"):
        run_merge(plan_merge(str(adapter)), tmp_path / "out", progress=lambda *_: started[0].kill())
    assert left(tmp_path) == []


def test_no_process_outlives_a_merge(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = started_processes(monkeypatch)

    def progress(activity: str, done: int, total: int) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        run_merge(plan_merge(str(adapter)), tmp_path / "out", progress=progress)
    assert [each.returncode for each in started] == [-9]
    assert left(tmp_path) == []
