"""The commands of a run: argv, environment and GPUs of each group of processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptcli.errors import Problem
from ptcli.plan.colocate import uses_colocate
from ptcli.plan.gpus import tokens
from ptcli.plan.layout import Layout, serves_apart
from ptcli.plan.model import Machine, Place, Server, Step
from ptcli.plan.nccl import nccl_environment
from ptcli.plan.server import Ports
from ptcli.recipe.local_models import find_base
from ptcli.recipe.model import Recipe
from ptcli.rollouts.command import engine_environment, is_loopback, server_command, trainer_environment

MASTER_ADDRESS = "${oc.env:MASTER_ADDR}"
"""Address of the first node of several: known only where it runs, so it stays a variable."""

LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "TORCHELASTIC_")
LAUNCHER_VARIABLES = frozenset(
    {
        "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
        "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_PORT", "VLLM_API_KEY",
    }
)  # fmt: skip
"""What a run must not inherit: how another launcher (torchrun, accelerate, a Kubernetes job) described its own
processes, which ours would take for theirs, and a key that TRL's client cannot send. `launch.env` can set them."""

RECIPE_FILE = "recipe.resolved.yaml"
ACCELERATE_FILE = "accelerate.yaml"


_OWNED = {
    "CUDA_VISIBLE_DEVICES": "say launch.gpus and rollouts.gpus",
    "CUDA_DEVICE_ORDER": "set it in the environment of ptcli, which then counts the GPUs that way",
    "VLLM_SERVER_DEV_MODE": "leave it out: without it the server cannot take new weights",
    **dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PTCLI_RUN_ID"), "leave it out"),
}
"""Variables that the plan decides, for each process its own, and what to do instead of setting them."""


def environment_problems(env: Mapping[str, str]) -> list[Problem]:
    """What is wrong with `launch.env`: variables that are the plan's, and names that are none."""
    problems = []
    for name in env:
        key = ("launch", "env", name)
        if name in _OWNED:
            problems.append(Problem(f"launch.env: {name} is decided by the plan", _OWNED[name], key))
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            message = f"launch.env: {name!r} is no name of an environment variable"
            problems.append(Problem(message, "use letters, digits and underscores", key))
    return problems


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment as far as a run inherits it."""
    return {
        name: value
        for name, value in environ.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith(LAUNCHER_PREFIXES)
    }


def main_address(nodes: int, place: Place | None) -> str:
    """Where the trainer's processes find the first of them."""
    return "127.0.0.1" if nodes == 1 else own_address(place)


def own_address(place: Place | None) -> str:
    """The address of node 0 among several, as the others reach it."""
    return place.host if place else MASTER_ADDRESS


def rollouts_step(recipe: Recipe, machine: Machine, layout: Layout, server: Server, ports: Ports) -> Step:
    """The vLLM server, on the first node, or the last where that is its own. `recipe` is the resolved one."""
    rollouts = recipe.rollouts
    gpus = tokens(machine, layout.split.server)
    model, revision = find_base(recipe.model.path, recipe.model.revision)  # vLLM has no adapter: TRL sends it merged
    argv, env = server_command(
        model=model,
        revision=revision,
        server=server,
        host=rollouts.host,
        port=ports.server,
        gpus=gpus,
        device=layout.device,
        gpu_memory_utilization=rollouts.gpu_memory_utilization,
        seed=recipe.seed,
        trust_remote_code=recipe.model.trust_remote_code,
        engine=_engine(recipe),
        ports=ports.spare,
    )
    env = _threads(env, machine) | device_environment(gpus, machine, layout)
    if apart := serves_apart(recipe):
        env["VLLM_HOST_IP"] = rollouts.host
    env |= nccl_environment(recipe.launch.nccl, machine) | recipe.launch.env
    return Step("rollouts", layout.nodes if apart else 0, argv, env, gpus)


def _engine(recipe: Recipe) -> Mapping[str, Any]:
    """The server's further flags. Of a model of random weights it makes its own: the trainer sends its weights before
    the first completion (TRL pushes them whenever its step is another than that of the last push, at first -1)."""
    start = {"load_format": "dummy"} if recipe.model.from_ == "config" else {}
    return start | recipe.rollouts.engine


def trainer_steps(
    recipe: Recipe,
    machine: Machine,
    layout: Layout,
    server: Server | None,
    ports: Ports,
    *,
    precision: str,
    output_dir: Path,
) -> tuple[Step, ...]:
    """`accelerate launch` of the worker, one on each node. `recipe` is the resolved one."""
    gpus = tokens(machine, layout.split.trainer)
    env = _trainer_environment(machine, layout, server, gpus)
    if serves_apart(recipe) and not is_loopback(recipe.rollouts.host):
        env["VLLM_HOST_IP"] = own_address(machine.place)  # where the server's workers find the group's store
    if uses_colocate(recipe):
        env |= _colocate_environment(recipe, layout, ports)
    env |= nccl_environment(recipe.launch.nccl, machine) | recipe.launch.env
    return tuple(
        Step("trainer", node, _accelerate_argv(layout, machine, ports, node, precision, output_dir), env, gpus)
        for node in range(layout.nodes)
    )


def device_environment(gpus: tuple[str, ...], machine: Machine, layout: Layout) -> dict[str, str]:
    """Which GPUs a process sees. Both sides get the order in which the indices were counted."""
    if layout.device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": machine.device_order}


def _accelerate_argv(
    layout: Layout, machine: Machine, ports: Ports, node: int, precision: str, output_dir: Path
) -> tuple[str, ...]:
    """Every count is given twice, in the file and here: flags win over whatever else accelerate might find."""
    options = {
        "config_file": output_dir / ACCELERATE_FILE,
        "num_processes": layout.world,
        "num_machines": layout.nodes,
        "machine_rank": node,
        "main_process_ip": main_address(layout.nodes, machine.place),
        "main_process_port": ports.main,
        "mixed_precision": precision,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ("accelerate", "launch", *words, "--module", "ptcli.train.worker", str(output_dir / RECIPE_FILE))


def _trainer_environment(
    machine: Machine, layout: Layout, server: Server | None, gpus: tuple[str, ...]
) -> dict[str, str]:
    env = {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",  # the tokenizers' threads do not survive the data loader's forks
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if server is not None:
        env |= trainer_environment(server, layout.device)
    if layout.device == "cpu":
        env["OMP_NUM_THREADS"] = str(machine.threads or max(1, machine.cpus // layout.processes))
    return env | device_environment(gpus, machine, layout)


def _colocate_environment(recipe: Recipe, layout: Layout, ports: Ports) -> dict[str, str]:
    """For the vLLM inside the trainer. Of one process it makes a group of one, which needs a port of its own: TRL takes
    29500 or 12345 where nothing is said, and two runs would meet (trl#3979). Several have the launcher's."""
    compiles = bool(recipe.training.get("torch_compile"))
    env = engine_environment(layout.device, recipe.rollouts.engine, compiles=compiles)
    return env | ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports.server)} if layout.world == 1 else {})


def _threads(env: Mapping[str, str], machine: Machine) -> dict[str, str]:
    """The caller's own OMP_NUM_THREADS holds for the server as well."""
    chosen = {"OMP_NUM_THREADS": str(machine.threads)} if machine.threads and "OMP_NUM_THREADS" in env else {}
    return {**env, **chosen}
