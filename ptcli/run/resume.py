"""`--resume` and `--resume-from`: which checkpoint a run goes on from, and whether it may.

    find the checkpoint ─▶ compare what must be the same ─▶ the plan, with the checkpoint in the trainer's command

Nothing is written here; what is found is carried out by `ptcli.run.start`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ptcli.errors import Problem
from ptcli.methods import METHODS, Batching
from ptcli.plan.arguments import argument
from ptcli.plan.model import Plan, Step
from ptcli.plan.script import launch_script
from ptcli.run.checkpoints import Checkpoint, Torn, list_checkpoints, open_checkpoint, step_of
from ptcli.run.rundir import EARLIER, RunDirectory, Status
from ptcli.run.sameness import compare

_AGAIN = "start again without it, with --overwrite or another output_dir"


@dataclass(frozen=True)
class Resumption:
    """A plan that goes on where an earlier run was, or all that stands in its way."""

    plan: Plan
    checkpoint: Checkpoint | None = None
    """None: there is none to go on from, and the run starts at its beginning."""
    aside: tuple[Path, ...] = ()
    """Checkpoints of the run directory that are in the way of those to come."""
    problems: tuple[Problem, ...] = field(default=())

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.checkpoint.step if self.checkpoint else 0


def resume(plan: Plan, resume_from: str | None) -> Resumption:
    """Let a plan go on from the checkpoint that is named, or from the latest whole one of its run directory."""
    if not METHODS[plan.method].resumes:
        message = f"{plan.method}: TRL's trainer cannot go on from a checkpoint"
        return Resumption(plan, problems=(Problem(message, _AGAIN, ("method",)),))
    found = _named(resume_from) if resume_from else _latest(plan.output_dir)
    problems = [*found.problems, *_finished(plan, found.checkpoint)]
    notes = list(found.notes)
    if found.checkpoint:
        differences = compare(plan, found.checkpoint)
        problems += differences.problems
        notes += [*differences.notes, *_inside_a_generation(plan, found.checkpoint)]
    if problems:
        return Resumption(plan, found.checkpoint, problems=tuple(problems))
    aside = _in_the_way(plan.output_dir, found.checkpoint)
    notes += [f"{path.name} goes to {EARLIER}/: it is no part of what this run does now" for path in aside]
    return Resumption(_go_on(plan, found.checkpoint, notes), found.checkpoint, aside)


def way_back(plan: Plan, status: Status, argv: Sequence[str]) -> list[str]:
    """What to say of a run that ended before it was done: how to go on. `argv`: ptcli's arguments."""
    if status.state == "finished" or not METHODS[plan.method].resumes:
        return []
    latest = _latest(plan.output_dir).checkpoint
    if latest is None:
        return []
    return [f"to go on from step {latest.step}: {resume_command(argv)}"]


def resume_command(argv: Sequence[str]) -> str:
    """The command with those arguments, going on from the latest checkpoint."""
    kept: list[str] = []
    for word, before in zip(argv, ("", *argv), strict=False):
        if before != "--resume-from" and word.partition("=")[0] not in _NOT_AGAIN:
            kept.append(word)
    return shlex.join(["ptcli", *kept, "--resume"])


_NOT_AGAIN = frozenset({"--resume", "--resume-from", "--overwrite", "--json"})


# --- which checkpoint ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def _named(path: str) -> _Found:
    folder = Path(path).expanduser().absolute()
    try:
        checkpoint = open_checkpoint(folder)
    except Torn as torn:
        fix = "name a whole checkpoint, or let --resume find the latest"
        return _Found(problems=(Problem(f"--resume-from: {folder} {torn}", fix),))
    if checkpoint.weights_only:
        return _Found(problems=(_only_weights(folder),))
    return _Found(checkpoint)


def _latest(run: Path) -> _Found:
    notes: list[str] = []
    weights: list[Path] = []
    for path in list_checkpoints(run):
        try:
            checkpoint = open_checkpoint(path)
        except Torn as torn:
            notes.append(f"{path.name} {torn}: it is not whole, and passed over")
            continue
        if not checkpoint.weights_only:
            return _Found(checkpoint, tuple(notes))
        weights.append(path)
        notes.append(f"{path.name} holds weights only (training.save_only_model): passed over")
    if weights:
        return _Found(problems=(_only_weights(weights[0]),))
    return _Found(notes=(*notes, f"{run} has no whole checkpoint: the run starts at its beginning"))


def _only_weights(path: Path) -> Problem:
    message = f"{path} holds weights only (training.save_only_model): the optimizer would start anew"
    return Problem(message, _new_run(path))


def _new_run(path: Path) -> str:
    known = step_of(path) >= 0
    weights = f"{path.parent}@{step_of(path)}" if known else str(path)
    return f"begin a run of its own from these weights: model.path={weights}, and another output_dir"


def _finished(plan: Plan, checkpoint: Checkpoint | None) -> Iterator[Problem]:
    """What is wrong with going on with a run that has done all its steps."""
    steps, epochs = argument(plan.recipe, "max_steps", -1), argument(plan.recipe, "num_train_epochs", 3.0)
    done = checkpoint.step if checkpoint else 0
    more = "ask for more: training.max_steps or training.num_train_epochs"
    status = RunDirectory(plan.output_dir).status()
    if checkpoint and 0 < steps < done:
        message = f"{checkpoint.path} is at step {done}, past training.max_steps, which is {steps}"
        yield Problem(message, more, ("training", "max_steps"))
    elif status and status.state == "finished" and (checkpoint is None or checkpoint.path.parent == plan.output_dir):
        before = checkpoint.state.get("num_train_epochs", epochs) if checkpoint else epochs
        asks_more = steps > status.step if steps > 0 else epochs > before
        if not asks_more:
            yield Problem(f"the run in {plan.output_dir} is finished: {status.step} steps", more, ("training",))


# --- what the plan makes of it ---------------------------------------------------------------------------------------


def _inside_a_generation(plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
    """TRL keeps the completions of a generation batch in memory, and no checkpoint has them."""
    if METHODS[plan.method].batching is not Batching.GENERATION:
        return
    accumulation = argument(plan.recipe, "gradient_accumulation_steps", 1)
    batches = argument(plan.recipe, "steps_per_generation", accumulation) * argument(plan.recipe, "num_iterations", 1)
    if checkpoint.step * accumulation % batches:
        yield (
            f"step {checkpoint.step} lies within a generation batch, whose completions no checkpoint has: they are "
            "written again, by the model as it is now"
        )


def _in_the_way(run: Path, checkpoint: Checkpoint | None) -> tuple[Path, ...]:
    """Later checkpoints than the one that the run goes on from, whole or not: a mixture with those that this run will
    write in their place would look whole."""
    step = checkpoint.step if checkpoint else 0
    return tuple(path for path in reversed(list_checkpoints(run)) if step_of(path) > step)


def _go_on(plan: Plan, checkpoint: Checkpoint | None, notes: list[str]) -> Plan:
    if checkpoint is None:
        return replace(plan, notes=(*plan.notes, *notes))
    steps = tuple(_with_checkpoint(step, checkpoint.path) for step in plan.steps)
    files = {**plan.files, "launch.sh": launch_script(steps, plan.server, plan.after)}
    notes.append(f"going on from {checkpoint.path}: {_progress(checkpoint)}")
    return replace(plan, steps=steps, files=files, notes=(*plan.notes, *notes))


def _progress(checkpoint: Checkpoint) -> str:
    total = f" of {checkpoint.total}" if checkpoint.total else ""
    return f"{checkpoint.step}{total} steps are done"


def _with_checkpoint(step: Step, checkpoint: Path) -> Step:
    if step.name != "trainer":
        return step
    return replace(step, argv=(*step.argv, "--resume-from", str(checkpoint)))
