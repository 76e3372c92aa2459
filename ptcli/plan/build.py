"""From a recipe and a machine to a plan. Everything is decided here and nothing is started or written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.plan.accelerate import Counts, config_files, conflicts, deepspeed_values, mixed_precision
from ptcli.plan.adapter_rules import adapter_notes, adapter_problems
from ptcli.plan.after import after_problems, after_step
from ptcli.plan.arguments import argument
from ptcli.plan.batch import Batch, batch_at_any_size, batch_of
from ptcli.plan.colocate import colocate_notes, decide_colocate, uses_colocate
from ptcli.plan.combinations import combination_notes, combination_problems
from ptcli.plan.launch import (
    ACCELERATE_FILE,
    RECIPE_FILE,
    environment_problems,
    main_address,
    rollouts_step,
    trainer_steps,
)
from ptcli.plan.layout import Layout, decide_device, decide_layout, uses_server
from ptcli.plan.memory import memory_facts, memory_problems
from ptcli.plan.model import Machine, Plan, Server, Step
from ptcli.plan.nccl import nccl_notes, nccl_problems
from ptcli.plan.nodes import node_notes, rollout_node_problems
from ptcli.plan.resolve import change, resolve_recipe, with_defaults, with_evaluation
from ptcli.plan.rows import count_rows, given_rows
from ptcli.plan.script import launch_script
from ptcli.plan.server import Ports, decide_ports, decide_server, exposure, model_limit
from ptcli.plan.slurm import slurm_problems
from ptcli.plan.training_notes import training_notes
from ptcli.plan.training_rules import training_problems
from ptcli.recipe.data_files import held_out
from ptcli.recipe.loading import dump_recipe
from ptcli.recipe.model import Recipe
from ptcli.recipe.references import read_model_config


@dataclass(frozen=True)
class Planned:
    """A plan, or all that stands in its way."""

    plan: Plan | None
    problems: tuple[Problem, ...] = field(default=())


@dataclass(frozen=True)
class _Decided:
    """What the steps and files of a plan are written from."""

    recipe: Recipe
    machine: Machine
    output_dir: Path
    layout: Layout
    ports: Ports
    server: Server | None
    precision: str
    batch: Batch
    facts: dict[str, Any] | None


def build_plan(recipe: Recipe, machine: Machine, *, output_dir: Path, server_only: bool = False) -> Planned:
    """Plan a run, or with `server_only` just its rollout server.

    The problems carry the recipe's key, not its place in a file. A recipe whose method is not one is for loading to
    complain about.
    """
    output_dir = output_dir.absolute()
    device, _ = decide_device(recipe, machine)
    recipe = with_defaults(recipe, device or recipe.launch.device)
    problems = environment_problems(recipe.launch.env) + slurm_problems(recipe) + nccl_problems(recipe, machine)
    problems += _needs_no_server(recipe) if server_only else rollout_node_problems(recipe)
    layout, wrong = decide_layout(recipe, machine, trains=not server_only)
    recipe = with_evaluation(recipe, layout.world)
    decided, more = _decide(recipe, machine, layout, output_dir)
    if not server_only:
        more += adapter_problems(recipe, assumed=machine.assumed)
        more += combination_problems(recipe, layout, assumed=machine.assumed)
        more += _trainer_problems(recipe, layout)
        more += after_problems(recipe)
        more += training_problems(recipe, layout.device, layout.strategy.kind, assumed=machine.assumed)
    problems += wrong + more
    return Planned(None, tuple(problems)) if problems else Planned(_plan(decided, server_only=server_only))


def _decide(recipe: Recipe, machine: Machine, layout: Layout, output_dir: Path) -> tuple[_Decided, list[Problem]]:
    facts = read_model_config(recipe.model.path, recipe.model.revision)
    ports, problems = decide_ports(recipe, machine)
    precision, _ = mixed_precision(layout.strategy, recipe)
    batch = batch_of(recipe, layout.world, count_rows(recipe))
    server = None
    if uses_server(recipe):
        server, wrong = decide_server(recipe, layout, ports, precision, facts)
        problems += wrong
    elif uses_colocate(recipe):
        rollouts, wrong = decide_colocate(recipe, layout, precision, facts)
        recipe = change(recipe, rollouts=rollouts)
        problems += wrong
    resolved = resolve_recipe(recipe, layout, server, ports, precision=precision, output_dir=output_dir)
    problems += memory_problems(machine, layout, resolved)
    return _Decided(resolved, machine, output_dir, layout, ports, server, precision, batch, facts), problems


def _trainer_problems(recipe: Recipe, layout: Layout) -> list[Problem]:
    rows = count_rows(recipe)
    if not layout.known:
        return _evaluation_problems(recipe) + batch_at_any_size(recipe, rows)
    wrong = conflicts(layout.strategy, recipe, layout.world, layout.device)
    return wrong + _evaluation_problems(recipe) + list(batch_of(recipe, layout.world, rows).problems)


def _evaluation_problems(recipe: Recipe) -> list[Problem]:
    share, rows = recipe.data.eval, given_rows(recipe)
    if isinstance(share, float | int) and rows and not 0 < held_out(share, rows) < rows:
        message = f"data.eval: {share:g} of {rows} rows is {held_out(share, rows)}; both parts need at least one row"
        return [Problem(message, "add rows, or hold out another share", ("data", "eval"))]
    if recipe.data.eval is not None or argument(recipe, "eval_strategy", "no") in ("no", False):
        return []
    message = "training.eval_strategy asks for evaluation, and the recipe has no data.eval"
    return [Problem(message, "add rows to evaluate on, or set it to no", ("training", "eval_strategy"))]


def _needs_no_server(recipe: Recipe) -> list[Problem]:
    if recipe.rollouts.url is not None:
        message = f"rollouts.url says that the server already runs at {recipe.rollouts.url}"
        return [Problem(message, "leave it out to start one", ("rollouts", "url"))]
    if uses_server(recipe):
        return []
    fix = "set rollouts.mode: server" if uses_colocate(recipe) else "set rollouts.backend: vllm"
    return [Problem("this recipe uses no rollout server", fix, ("rollouts",))]


def _plan(decided: _Decided, *, server_only: bool) -> Plan:
    steps = _steps(decided, server_only=server_only)
    return Plan(
        method=decided.recipe.method,
        recipe=decided.recipe,
        output_dir=decided.output_dir,
        steps=steps,
        files=_files(decided, steps),
        batch={} if server_only else dict(decided.batch.sizes),
        memory=memory_facts(decided.machine, decided.layout, decided.recipe),
        server=decided.server,
        after=None if server_only else after_step(decided.recipe, decided.output_dir),
        no_progress_seconds=decided.recipe.guards.no_progress_seconds,
        place=decided.machine.place,
        notes=_notes(decided) + (() if server_only else _training_notes(decided)),
    )


def _steps(decided: _Decided, *, server_only: bool) -> tuple[Step, ...]:
    recipe, machine, layout, server, ports = (
        decided.recipe, decided.machine, decided.layout, decided.server, decided.ports,
    )  # fmt: skip
    steps: tuple[Step, ...] = ()
    if server is not None and not server.external:
        steps = (rollouts_step(recipe, machine, layout, server, ports),)
    if server_only:
        return steps
    return steps + trainer_steps(
        recipe, machine, layout, server, ports, precision=decided.precision, output_dir=decided.output_dir
    )


def _files(decided: _Decided, steps: tuple[Step, ...]) -> dict[str, str]:
    layout = decided.layout
    counts = Counts(
        processes=layout.world,
        nodes=layout.nodes,
        main_ip=main_address(1, None) if layout.nodes == 1 else None,
        main_port=decided.ports.main,
        mixed_precision=decided.precision,
        device=layout.device,
        auto=deepspeed_values(decided.recipe),
    )
    return {
        RECIPE_FILE: dump_recipe(decided.recipe),
        **config_files(layout.strategy, counts, decided.output_dir, ACCELERATE_FILE),
        "launch.sh": launch_script(steps, decided.server, after_step(decided.recipe, decided.output_dir)),
    }


def _notes(decided: _Decided) -> tuple[str, ...]:
    notes = [*decided.layout.strategy.notes, *_unused_config(decided), *_unused_rollouts(decided.recipe)]
    server = decided.server
    if uses_colocate(decided.recipe):
        notes += colocate_notes(decided.recipe)
    if server is not None:
        notes += exposure(server, decided.recipe.rollouts.host)
        notes += _unknown(decided, server)
    if METHODS[decided.recipe.method].wants_eval and isinstance(decided.recipe.data.eval, int):
        notes.append(
            f"{decided.recipe.data.eval} training rows are held out for the trainer to sample from (data.eval)"
        )
    if decided.layout.strategy.deepspeed is not None and decided.layout.device == "cpu":
        notes.append("the DeepSpeed file's sizes, steps and precision give way to the recipe's: this is a CPU run")
    notes += node_notes(decided.recipe, decided.machine.place)
    notes += nccl_notes(decided.recipe, decided.machine)
    return tuple(notes)


def _unused_config(decided: _Decided) -> list[str]:
    """The one that accelerate would take by itself: it has started runs with counts of another day (axolotl#394)."""
    path = decided.machine.accelerate_config
    if path is None or Path(path) == Path(decided.layout.strategy.name).expanduser():
        return []
    return [f"{path} is not used: launch.accelerate is {decided.layout.strategy.name}"]


def _unused_rollouts(recipe: Recipe) -> list[str]:
    """No error: `rollouts.backend=transformers` on the command line is how a recipe for a server runs on one GPU."""
    rollouts = recipe.rollouts
    said = [name for name in type(rollouts).model_fields if name in rollouts.model_fields_set - {"backend"}]
    if rollouts.backend != "transformers" or not said:
        return []
    return [
        f"the trainer generates by itself (rollouts.backend: transformers): {', '.join(said)} of rollouts do nothing"
    ]


def _training_notes(decided: _Decided) -> tuple[str, ...]:
    recipe = decided.recipe
    kind = decided.layout.strategy.kind
    more = combination_notes(recipe, decided.layout)
    return (*adapter_notes(recipe), *more, *training_notes(recipe, kind, decided.facts))


def _unknown(decided: _Decided, server: Server) -> list[str]:
    """What could not be checked, because the model's config is not on this machine."""
    path = decided.recipe.model.path
    if decided.facts is None:
        return [f"{path}: its config.json is not on this machine, so its heads and longest sequence are unknown"]
    if server.max_model_len is None and model_limit(decided.facts) is None:
        return [f"{path}: its config does not say how long a sequence may be; rollouts.max_model_len is not checked"]
    return []
