"""Who runs where: device, accelerate config, the GPUs of both sides, processes and nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.plan.accelerate import Strategy, load_strategy, sized
from ptcli.plan.gpus import Split, asked, seen, split_gpus
from ptcli.plan.model import Machine
from ptcli.recipe.model import GPUs, Recipe
from ptcli.rollouts.command import is_loopback

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Layout:
    """Where a run's processes go, before any command is written."""

    device: Device
    strategy: Strategy
    split: Split
    processes: int
    """Trainer processes on each node."""
    nodes: int
    known: bool = True
    """False when the number of processes is left open and cannot be found out."""

    @property
    def world(self) -> int:
        """Trainer processes on all nodes."""
        return self.processes * self.nodes


def decide_backend(recipe: Recipe) -> Literal["vllm", "transformers"] | None:
    """Where completions come from; None for a method that generates none, or always by itself.

    A `rollouts` section that says anything means vLLM where the method can use it.
    """
    backends = METHODS[recipe.method].backends
    if recipe.rollouts.backend is not None or not backends:
        return recipe.rollouts.backend
    return "vllm" if recipe.rollouts.model_fields_set and "vllm" in backends else "transformers"


def uses_server(recipe: Recipe) -> bool:
    """True for a recipe whose trainer talks to a vLLM server, ours or another."""
    return decide_backend(recipe) == "vllm" and recipe.rollouts.mode == "server"


def serves_apart(recipe: Recipe) -> int:
    """Nodes that our server has for itself; 0 when it shares the first with the trainer."""
    return recipe.rollouts.nodes if uses_server(recipe) and recipe.rollouts.url is None else 0


def decide_layout(recipe: Recipe, machine: Machine, *, trains: bool) -> tuple[Layout, list[Problem]]:
    """Place trainer and server. `trains` is False when only the server shall run here.

    Where something is wrong the layout is what the recipe means, as far as it says, so that the rest can be checked.
    """
    device, problems = decide_device(recipe, machine)
    strategy, wrong = _strategy(recipe)
    problems += wrong
    if device == "cpu":
        split, processes = Split(problems=_gpus_on_cpu(recipe)), recipe.launch.processes
    else:
        split = _split(recipe, machine, strategy, trains=trains) if machine.gpus else Split()
        processes = asked(recipe.launch.gpus)
        problems += _processes_on_gpus(recipe)
    problems += split.problems
    if recipe.launch.accelerate is None and (processes or len(split.trainer) or 1) * recipe.launch.nodes == 1:
        strategy = _shipped("single")
    known = device == "cpu" or processes is not None or bool(split.trainer and not split.problems)
    count = max(processes or len(split.trainer), 1)
    strategy = sized(strategy, count, recipe.launch.nodes)
    return Layout(device or "cuda", strategy, split, count, recipe.launch.nodes, known), problems


def decide_device(recipe: Recipe, machine: Machine) -> tuple[Device | None, list[Problem]]:
    """`launch.device`, with `auto` meaning GPUs: a run of days must not start on a CPU because a driver is missing."""
    asked = recipe.launch.device
    if asked == "cpu":
        return "cpu", []
    if machine.gpus:
        return "cuda", _nodes(recipe, machine)
    key = ("launch", "device") if asked == "cuda" else ("launch",)
    message = f"training needs a GPU, and {seen(machine)}"
    fix = (
        "try the recipe with --smoke, train on the CPU with launch.device: cpu, or see the plan for another machine "
        "with --dry-run --assume-gpus 8"
    )
    return None, [Problem(message, fix, key)]


def server_size(recipe: Recipe) -> int:
    """GPUs that one server with the recipe's parallel sizes takes, when `rollouts.gpus` does not say."""
    return recipe.rollouts.tensor_parallel_size * (recipe.rollouts.data_parallel_size or 1)


def _strategy(recipe: Recipe) -> tuple[Strategy, list[Problem]]:
    strategy, problems = load_strategy(recipe.launch.accelerate or "ddp")
    return strategy or _shipped("ddp"), problems


def _shipped(name: str) -> Strategy:
    strategy, problems = load_strategy(name)
    assert strategy is not None, problems
    return strategy


def _split(recipe: Recipe, machine: Machine, strategy: Strategy, *, trains: bool) -> Split:
    single = strategy.single and recipe.launch.nodes == 1
    if trains and serves_apart(recipe):
        return _split_apart(recipe, machine, single=single)
    return split_gpus(machine, _server_gpus(recipe), recipe.launch.gpus, single=single, trains=trains)


def _split_apart(recipe: Recipe, machine: Machine, *, single: bool) -> Split:
    """Server and trainer on machines of their own. Of the other's GPUs this one can say nothing."""
    served = split_gpus(machine, _server_gpus(recipe), None, trains=False)
    trained = split_gpus(machine, None, recipe.launch.gpus, single=single)
    serves_here = machine.place is None or machine.place.rank == recipe.launch.nodes
    trains_here = machine.place is None or machine.place.rank < recipe.launch.nodes
    problems = served.problems * serves_here + trained.problems * trains_here
    return Split(served.server, trained.trainer, problems)


def _server_gpus(recipe: Recipe) -> GPUs | None:
    """What the server takes here. One that already runs on this machine (`rollouts.url`) keeps the GPUs that the
    recipe gives it, or else the trainer would land on them."""
    if not uses_server(recipe):
        return None
    if recipe.rollouts.url is not None:
        here = is_loopback(urlsplit(recipe.rollouts.url).hostname or "")
        return recipe.rollouts.gpus if here else None
    return recipe.rollouts.gpus if recipe.rollouts.gpus is not None else server_size(recipe)


def _gpus_on_cpu(recipe: Recipe) -> tuple[Problem, ...]:
    given = [("launch", recipe.launch.gpus), ("rollouts", recipe.rollouts.gpus)]
    fix = "leave it out, or set launch.device: auto"
    return tuple(
        Problem(f"{section}.gpus is given, and launch.device is cpu", fix, (section, "gpus"))
        for section, gpus in given
        if gpus is not None
    )


def _processes_on_gpus(recipe: Recipe) -> list[Problem]:
    if recipe.launch.processes is None:
        return []
    message = "launch.processes is for CPU runs: on GPUs there is one process a GPU"
    return [Problem(message, "say launch.gpus", ("launch", "processes"))]


def _nodes(recipe: Recipe, machine: Machine) -> list[Problem]:
    nodes = recipe.launch.nodes + serves_apart(recipe)
    if not machine.assumed or machine.nodes in (nodes, recipe.launch.nodes) or nodes == 1:
        return []
    message = f"launch.nodes is {recipe.launch.nodes}, and --assume-gpus describes {machine.nodes}"
    return [Problem(message, "make them agree", ("launch", "nodes"))]
