"""Several nodes: how many a recipe asks for, which of them this is, and where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.plan.layout import serves_apart, uses_server
from ptcli.plan.model import Place
from ptcli.recipe.model import Recipe
from ptcli.rollouts.command import is_loopback
from ptcli.train.config import EVERY_INTERFACE

DEFAULT_PORT = 29500
"""accelerate's and torchrun's."""
FEW = 4
"""Nodes of online RL up to which one server and a trainer that waits for it are a good fit."""


def count_nodes(recipe: Recipe) -> int:
    """All machines of a run: the trainer's, and that of a server which has its own."""
    return recipe.launch.nodes + serves_apart(recipe)


def decide_place(
    recipe: Recipe, rank: int | None, master: str | None, environ: Mapping[str, str]
) -> tuple[Place | None, list[Problem]]:
    """Which node this is, from the command line or else the environment; None where nothing says it, or for one node.

    The variables are those of launchers: NODE_RANK, or Slurm's of a step with a task on each node, and MASTER_ADDR with
    MASTER_PORT.
    """
    nodes = count_nodes(recipe)
    if nodes == 1:
        given = [option for option, value in (("--node-rank", rank), ("--master", master)) if value is not None]
        message = f"{' and '.join(given)}: the recipe runs on one node"
        return None, [Problem(message, "say launch.nodes, or leave it out", ("launch", "nodes"))] if given else []
    rank = _rank_of(environ, nodes) if rank is None else rank
    master = _master_of(environ) if master is None else master
    if rank is None and master is None:
        return None, []
    problems = _rank_problems(rank, nodes)
    address = _parse(master) if master is not None else None
    if master is None:
        problems.append(Problem("where the nodes meet is not said", "add --master HOST:PORT, an address of node 0"))
    elif address is None:
        message = f"--master {master!r} is not HOST:PORT"
        problems.append(Problem(message, "write it as 10.0.0.1:29500, an address of node 0"))
    elif address[0] in EVERY_INTERFACE:
        message = f"--master {address[0]} stands for every address of a machine, and the others need one"
        problems.append(Problem(message, "give the address of node 0 by which the others reach it"))
    if problems or rank is None or address is None:
        return None, problems
    return Place(rank, *address), []


def rollout_node_problems(recipe: Recipe) -> list[Problem]:
    """What is wrong with a server on a node of its own, as far as the recipe tells."""
    rollouts = recipe.rollouts
    key = ("rollouts", "nodes")
    if not rollouts.nodes:
        return []
    if not uses_server(recipe):
        return [Problem("rollouts.nodes: this recipe uses no rollout server", "leave it out", key)]
    if rollouts.url is not None:
        message = "rollouts.nodes and rollouts.url: a server that already runs is not started on a node of the run"
        return [Problem(message, "leave one of them out", key)]
    fix = "say the address of that node by which node 0 reaches it, as 10.0.0.9"
    if "host" not in rollouts.model_fields_set:
        return [Problem("rollouts.nodes needs rollouts.host: the server listens on an address of its own", fix, key)]
    if rollouts.host in EVERY_INTERFACE:
        message = f"rollouts.host {rollouts.host}: a server on a node of its own must be told which address to use"
        return [Problem(message, fix, ("rollouts", "host"))]
    return []


def node_notes(recipe: Recipe, place: Place | None) -> list[str]:
    """What a person should know of a run on several nodes."""
    nodes = count_nodes(recipe)
    if nodes == 1:
        return []
    notes = []
    if place is None:
        notes.append(
            f"{nodes} nodes: run this on each, with --node-rank 0 to {nodes - 1} and --master HOST:PORT, an address of "
            "node 0 (or launch.sh, with NODE_RANK and MASTER_ADDR set)"
        )
    elif is_loopback(place.host) and place.rank == 0:
        notes.append(f"--master {place.host}: only nodes on this very machine can be reached by it")
    if serves_apart(recipe):
        notes.append(f"node {nodes - 1} runs the rollout server, the others train")
    if METHODS[recipe.method].online and nodes > FEW:
        notes.append(
            f"{nodes} nodes of online RL: trainer and server take turns here, and past about {FEW} nodes the stacks on "
            "Ray (verl, prime-rl, OpenRLHF) scale better"
        )
    return notes


def _rank_of(environ: Mapping[str, str], nodes: int) -> int | None:
    slurm = environ.get("SLURM_NODEID") if environ.get("SLURM_STEP_NUM_NODES") == str(nodes) else None
    said = environ.get("NODE_RANK") or slurm or ""
    return int(said) if said.isdecimal() else None


def _master_of(environ: Mapping[str, str]) -> str | None:
    host = environ.get("MASTER_ADDR")
    if not host:
        return None
    return f"{f'[{host}]' if ':' in host else host}:{environ.get('MASTER_PORT') or DEFAULT_PORT}"


def _rank_problems(rank: int | None, nodes: int) -> list[Problem]:
    if rank is None:
        return [Problem("which of the nodes this is is not said", f"add --node-rank, 0 to {nodes - 1}")]
    if not 0 <= rank < nodes:
        return [Problem(f"--node-rank {rank}: the {nodes} nodes are 0 to {nodes - 1}", "", ("launch", "nodes"))]
    return []


def _parse(master: str) -> tuple[str, int] | None:
    """`10.0.0.1:29500`, `node0`, `[fd00::1]:29500`."""
    try:
        parts = urlsplit(f"//{master}")
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        return None
    whole = bool(host) and not (parts.path or parts.query or parts.fragment or parts.username is not None)
    return (host, port) if whole and host and not host.isspace() else None
