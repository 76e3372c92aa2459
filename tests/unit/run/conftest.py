"""Plans whose steps are small real programs, and the processes they leave."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from ptcli.plan.model import Plan, Server, Step
from ptcli.recipe.model import DataEntry, DataSpec, ModelSpec, Recipe
from ptcli.run.rundir import RunDirectory

BEAT = """
import json, os, sys, time
def beat(step, phase="training", total=100):
    path = sys.argv[1]
    with open(path + ".part", "w") as f:
        json.dump({"phase": phase, "step": step, "total": total, "time": time.time(),
                   "tokens": step * 10, "loss": 0.5, "reward": 0.25}, f)
    os.replace(path + ".part", path)
"""
"""Start of a fake trainer: `beat(step)` writes the heartbeat whose path is its first argument."""


def python(code: str, *arguments: object) -> tuple[str, ...]:
    """Command line of a small Python program."""
    return (sys.executable, "-S", "-c", code, *map(str, arguments))


def make_step(name: str, argv: Sequence[str], **env: str) -> Step:
    return Step(name, 0, tuple(argv), env, ())  # type: ignore[arg-type]


def make_plan(
    output_dir: Path, *steps: Step, server: Server | None = None, smoke: bool = False, limit: float | None = None
) -> Plan:
    recipe = Recipe(
        name="unit", method="grpo", output_dir=str(output_dir), model=ModelSpec(path="builtin:tiny"),
        data=DataSpec(train=[DataEntry(path="builtin:arithmetic")]),
    )  # fmt: skip
    files = {"recipe.resolved.yaml": "method: grpo\n", "launch.sh": "#!/bin/sh\n"}
    return Plan(
        "grpo", recipe, output_dir, steps, files, batch={}, memory={}, server=server, smoke=smoke,
        no_progress_seconds=limit,
    )  # fmt: skip


@pytest.fixture
def rundir(tmp_path: Path) -> RunDirectory:
    """A run directory as it is after `prepare`."""
    directory = RunDirectory(tmp_path / "run")
    directory.logs.mkdir(parents=True)
    directory.write_status("planned")
    return directory


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def read_pid(file: Path) -> int:
    """The pid that a child wrote to a file."""
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
