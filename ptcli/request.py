"""From what a person typed to a plan. Recipe, overrides and machine are read; all that is wrong is said at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ptcli.errors import Problem, RequestError

if TYPE_CHECKING:
    from ptcli.plan.model import Machine, Plan
    from ptcli.plan.slurm import Job
    from ptcli.recipe.loading import SourceMap
    from ptcli.recipe.model import Recipe
    from ptcli.run.resume import Resumption

SMOKE_NO_PROGRESS_SECONDS = 60.0


@dataclass(frozen=True)
class Request:
    """A recipe and how it shall be run."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    smoke: bool = False
    assume_gpus: str | None = None
    """Plan for this machine instead of the one at hand (`8x80GiB`)."""
    server_only: bool = False
    """Plan only the rollout server (`ptcli serve-rollouts`)."""
    launcher: Literal["local", "slurm"] = "local"
    """Where it runs: here, or as a job."""
    resume: bool = False
    """Go on from the latest whole checkpoint in the output directory."""
    resume_from: str | None = None
    """Go on from this checkpoint."""
    node_rank: int | None = None
    """Which of several nodes this is."""
    master: str | None = None
    """Where they meet: HOST:PORT of node 0."""

    @property
    def resumes(self) -> bool:
        return self.resume or self.resume_from is not None


@dataclass(frozen=True)
class Accepted:
    """A request that can be carried out, as far as can be told without the heavy libraries."""

    plan: Plan
    sources: SourceMap
    """Where each key of the recipe was written, for what is found out later."""
    job: Job | None = None
    """The job that runs the plan, with `launcher: slurm`."""
    resumption: Resumption | None = None
    """Where it goes on, with `--resume`."""

    @property
    def resumes(self) -> bool:
        return self.resumption is not None


def plan_request(request: Request) -> Plan:
    """The plan of `accept`."""
    return accept(request).plan


def accept(request: Request) -> Accepted:
    """Plan a run. Reads files and the machine; starts and writes nothing.

    Raises:
        RequestError: with every problem of the recipe, its bases, the overrides and the machine.
    """
    from ptcli.plan.build import build_plan
    from ptcli.plan.slurm import place_problems, placed_by_slurm
    from ptcli.recipe.loading import load_recipe
    from ptcli.run.disk import check_disk
    from ptcli.run.inputs import check_inputs
    from ptcli.run.resume import resume

    _check_working_directory()
    if request.smoke and request.launcher != "local":
        raise RequestError("--smoke runs on this machine's CPU; leave it out, or --launcher slurm")
    if request.launcher == "slurm" and (request.node_rank, request.master) != (None, None):
        raise RequestError("--node-rank and --master: Slurm places the nodes; leave them out, or --launcher slurm")
    loaded = load_recipe(request.recipe, request.overrides)
    if loaded.recipe is None:
        raise RequestError(loaded.problems)
    recipe, replacements = _shrunk(loaded.recipe) if request.smoke else (loaded.recipe, ())
    problems = list(loaded.problems)
    machine = _machine(request, recipe, problems)
    problems = [loaded.sources.locate(problem) if problem.key else problem for problem in problems]
    plan = None
    if machine:
        output_dir = _output_dir(request, recipe)
        where = placed_by_slurm(recipe, machine) if request.launcher == "slurm" else (recipe, machine)
        planned = build_plan(*where, output_dir=output_dir, server_only=request.server_only)
        plan = planned.plan
        cleared = () if request.server_only else check_inputs(recipe, output_dir)
        place = place_problems(output_dir) if request.launcher == "slurm" else ()
        problems += [loaded.sources.locate(problem) for problem in (*planned.problems, *cleared, *place)]
    resumption = resume(plan, request.resume_from) if plan and request.resumes else None
    if resumption:
        plan = resumption.plan
        problems += [loaded.sources.locate(problem) for problem in resumption.problems]
    if plan and not request.server_only and request.assume_gpus is None:
        lacking, notes = check_disk(plan)
        plan = replace(plan, notes=(*plan.notes, *notes))
        problems += [loaded.sources.locate(problem) for problem in lacking]
    if problems or plan is None:
        raise RequestError(_once(problems))
    if request.smoke:
        longest = max((reward.timeout or 0.0 for reward in recipe.rewards), default=0.0)
        limit = recipe.guards.no_progress_seconds or max(SMOKE_NO_PROGRESS_SECONDS, 2 * longest)
        plan = replace(plan, smoke=True, no_progress_seconds=limit, notes=(*replacements, *plan.notes))
    job = _job(request, plan, recipe)
    plan = replace(plan, notes=(*plan.notes, *(job.notes if job else ())))
    return Accepted(plan, loaded.sources, job, resumption=resumption)


def _job(request: Request, plan: Plan, recipe: Recipe) -> Job | None:
    """The job to submit. The nodes run the ptcli that was called here, so both see one file system."""
    if request.launcher != "slurm":
        return None
    from ptcli.plan.slurm import plan_job
    from ptcli.run.processes import find_program

    return plan_job(plan, recipe, find_program("ptcli"), resume_from=request.resume_from)


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RequestError("the working directory is gone; change to one that is there") from None


def _shrunk(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    from ptcli.plan.smoke import shrink

    return shrink(recipe)


def _machine(request: Request, recipe: Recipe, problems: list[Problem]) -> Machine | None:
    """The machine to plan for; None, with a problem added, when it can't be told."""
    from ptcli.plan.machine import assume_machine, read_machine
    from ptcli.plan.slurm import job_machine

    try:
        if request.assume_gpus is not None:
            return _placed(assume_machine(request.assume_gpus), request, recipe, {}, problems)
        if request.launcher == "slurm":
            return job_machine(recipe)
    except RequestError as error:
        problems += error.problems
        return None
    machine = read_machine(recipe)
    return machine if request.server_only else _placed(machine, request, recipe, os.environ, problems)


def _placed(
    machine: Machine, request: Request, recipe: Recipe, environ: Mapping[str, str], problems: list[Problem]
) -> Machine:
    """The machine, as one of several nodes where the request or the environment says which."""
    from ptcli.plan.nodes import decide_place

    place, wrong = decide_place(recipe, request.node_rank, request.master, environ)
    problems += wrong
    return replace(machine, place=place)


def _output_dir(request: Request, recipe: Recipe) -> Path:
    """The run directory. A smoke run gets one of its own, unless the command line names the place."""
    output_dir = Path(recipe.output_dir).expanduser().absolute()
    named = any(override.partition("=")[0].strip() == "output_dir" for override in request.overrides)
    if request.smoke and not named:
        return output_dir.with_name(output_dir.name + "-smoke")
    return output_dir


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Problems without repeats, file by file in the order of their first problems; those of no file come last."""
    unique = list(dict.fromkeys(problems))
    files = list(dict.fromkeys(problem.where.file for problem in unique if problem.where))

    def place(problem: Problem) -> tuple[int, int, int]:
        where = problem.where
        return (files.index(where.file), where.line, where.column) if where else (len(files), 0, 0)

    return sorted(unique, key=place)
