"""`--resume` and `--resume-from`: which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptcli.errors import Problem
from ptcli.plan.model import Plan, Step
from ptcli.plan.script import launch_script
from ptcli.run.checkpoints import list_checkpoints, read_state


@dataclass(frozen=True)
class Resumed:
    """A plan that goes on from a checkpoint, or all that stands in its way."""

    plan: Plan
    problems: tuple[Problem, ...] = ()


def resume(plan: Plan, resume_from: str | None) -> Resumed:
    """Let a plan go on from the checkpoint that is named, or from the latest whole one of its directory."""
    checkpoint = Path(resume_from).expanduser().absolute() if resume_from else _latest(plan.output_dir)
    if checkpoint is None:
        note = f"{plan.output_dir} has no checkpoint to go on from: the run starts at its beginning"
        return Resumed(replace(plan, notes=(*plan.notes, note)))
    if read_state(checkpoint) is None:
        return Resumed(plan, (Problem(f"--resume-from: {checkpoint} is no whole checkpoint"),))
    return Resumed(_go_on(plan, checkpoint))


def _latest(run: Path) -> Path | None:
    return next((path for path in list_checkpoints(run) if read_state(path) is not None), None)


def _go_on(plan: Plan, checkpoint: Path) -> Plan:
    steps = tuple(_with_checkpoint(step, checkpoint) for step in plan.steps)
    files = {**plan.files, "launch.sh": _script(plan, steps)}
    note = f"going on from {checkpoint}"
    return replace(plan, steps=steps, files=files, notes=(*plan.notes, note))


def _with_checkpoint(step: Step, checkpoint: Path) -> Step:
    if step.name != "trainer":
        return step
    return replace(step, argv=(*step.argv, "--resume-from", str(checkpoint)))


def _script(plan: Plan, steps: Sequence[Step]) -> str:
    return launch_script(steps, plan.server, plan.after)
