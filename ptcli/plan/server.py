"""The rollout server that a recipe asks for: parallel sizes, ports, dtype and length, each checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ptcli.errors import Problem
from ptcli.plan.arguments import argument, argument_key
from ptcli.plan.batch import divisors
from ptcli.plan.gpus import asked
from ptcli.plan.layout import Layout, serves_apart, uses_server
from ptcli.plan.model import Machine, Server
from ptcli.recipe.model import Recipe, RolloutsSpec
from ptcli.rollouts.command import is_loopback
from ptcli.train.config import rollout_url

STARTUP_SECONDS = {"cpu": 300.0, "cuda": 1800.0}
APART = (8000, 51216)
"""Ports of a server on a node of its own and of the weight sync, where a recipe names none: each node plans for itself,
and all must mean the same ones."""
_COMPUTE = {"bf16": "bfloat16", "fp16": "float16"}
_LENGTHS = ("max_completion_length", "max_new_tokens")


@dataclass(frozen=True)
class Ports:
    """Ports of a run, all distinct."""

    server: int
    group: int
    """Where trainer and server meet for the weight sync."""
    main: int
    """accelerate's rendezvous."""
    spare: tuple[int, ...]
    """For vLLM's own processes."""


def decide_ports(recipe: Recipe, machine: Machine) -> tuple[Ports, list[Problem]]:
    """The recipe's ports where it names some, free ones for the rest."""
    rollouts = recipe.rollouts
    main = machine.place.port if machine.place else None
    fixed = APART if serves_apart(recipe) else (None, None)
    wanted = (rollouts.port or fixed[0], rollouts.group_port or fixed[1])
    free = [port for port in machine.free_ports if port not in {*wanted, main, _port_of(rollouts.url)}]
    server, group = wanted[0] or free.pop(0), wanted[1] or free.pop(0)
    ports = Ports(server, group, main or free.pop(0), tuple(free))
    problems = _port_problems(recipe, machine) if uses_server(recipe) else []
    if main in (server, group) and uses_server(recipe):
        name = "port" if main == server else "group_port"
        problems.append(
            Problem(f"rollouts.{name} and --master have the same port, {main}", "choose another", ("rollouts", name))
        )
    return ports, problems


def decide_server(
    recipe: Recipe, layout: Layout, ports: Ports, precision: str, facts: Mapping[str, Any] | None
) -> tuple[Server, list[Problem]]:
    """The server. `precision` is what the trainer computes in, `facts` the model's config.json, None when unknown."""
    rollouts = recipe.rollouts
    tensor, data, problems = _parallel(recipe, layout)
    problems += [] if problems else head_problems(tensor, _server_gpus(recipe, layout), facts)
    spec = rollouts.model_copy(update={"port": rollouts.port or ports.server})
    server = Server(
        url=rollout_url(spec),
        model=recipe.model.path,
        dtype=rollouts.dtype or compute_type(recipe, layout, precision),
        max_model_len=rollouts.max_model_len,
        tensor_parallel_size=tensor,
        data_parallel_size=data,
        weight_transfer="gloo" if layout.device == "cpu" else "nccl",
        startup_timeout=rollouts.startup_timeout or STARTUP_SECONDS[layout.device],
        external=rollouts.url is not None,
    )
    return server, problems + _url_problems(rollouts) + length_problems(recipe, facts)


def exposure(server: Server, host: str) -> tuple[str, ...]:
    """The warning that an address which others can reach deserves."""
    if server.external or is_loopback(host):
        return ()
    return (
        f"rollouts.host {host}: whoever can reach port {urlsplit(server.url).port} can read and overwrite the model's "
        "weights and run worker methods, without a password; keep it to a trusted network",
    )


def model_limit(facts: Mapping[str, Any] | None) -> int | None:
    """Longest sequence of the model in tokens; None when unknown or stretched by RoPE scaling."""
    text = _text_config(facts)
    if text.get("rope_scaling"):
        return None
    limit = text.get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def _parallel(recipe: Recipe, layout: Layout) -> tuple[int, int, list[Problem]]:
    """tensor_parallel_size x data_parallel_size (x pipeline) must use every GPU of the server, and no more."""
    tensor, data = recipe.rollouts.tensor_parallel_size, recipe.rollouts.data_parallel_size
    if layout.device == "cpu":
        return tensor, data or 1, [] if tensor == 1 else [_tensor_on_cpu(tensor)]
    count = _server_gpus(recipe, layout)
    if count < 1:  # a server elsewhere, of which the recipe does not say more, or a count that the split refuses
        return tensor, data or 1, []
    pipeline = _pipeline(recipe.rollouts)
    data = data or max(count // (tensor * pipeline), 1)
    if tensor * data * pipeline == count:
        return tensor, data, []
    shown = f"tensor_parallel_size {tensor} x data_parallel_size {data}" + (f" x pipeline {pipeline}" * (pipeline > 1))
    message = f"{shown} = {tensor * data * pipeline} GPUs, and rollouts.gpus gives the server {count}"
    pairs = [f"{size} x {count // pipeline // size}" for size in (1, *divisors(count // pipeline))]
    fix = f"legal tensor x data parallel sizes: {', '.join(pairs)}" if pairs else ""
    return tensor, data, [Problem(message, fix, _parallel_key(recipe.rollouts))]


def _server_gpus(recipe: Recipe, layout: Layout) -> int:
    """GPUs of the server: what the recipe means, or else what it got."""
    return asked(recipe.rollouts.gpus) or len(layout.split.server)


def _tensor_on_cpu(tensor: int) -> Problem:
    message = f"tensor_parallel_size {tensor} needs GPUs, and this is a CPU run"
    return Problem(message, "use data_parallel_size", ("rollouts", "tensor_parallel_size"))


def _parallel_key(rollouts: RolloutsSpec) -> tuple[str, str]:
    said = [name for name in ("data_parallel_size", "tensor_parallel_size") if name in rollouts.model_fields_set]
    return ("rollouts", said[0] if said else "gpus")


def _pipeline(rollouts: RolloutsSpec) -> int:
    engine = {name.replace("-", "_"): value for name, value in rollouts.engine.items()}
    size = engine.get("pipeline_parallel_size", 1)
    return size if isinstance(size, int) and size >= 1 else 1


def head_problems(tensor: int, count: int, facts: Mapping[str, Any] | None) -> list[Problem]:
    """vLLM gives every GPU the same number of heads; key-value heads may be copied, but not cut unevenly."""
    text = _text_config(facts)
    heads = text.get("num_attention_heads")
    if tensor == 1 or not isinstance(heads, int):
        return []
    key_value = text.get("num_key_value_heads") or heads
    if _fits(tensor, heads, key_value):
        return []
    legal = [size for size in (1, *divisors(max(count, tensor))) if _fits(size, heads, key_value)]
    message = f"tensor_parallel_size {tensor} does not divide the model's {heads} heads ({key_value} key-value heads)"
    fix = f"legal tensor_parallel_size here: {', '.join(map(str, legal))}"
    return [Problem(message, fix, ("rollouts", "tensor_parallel_size"))]


def _fits(tensor: int, heads: int, key_value: int) -> bool:
    return heads % tensor == 0 and (key_value % tensor == 0 or tensor % key_value == 0)


def compute_type(recipe: Recipe, layout: Layout, precision: str) -> str:
    """What the trainer computes in, so that both sides give a token the same probability."""
    weights = recipe.model.dtype or "float32"
    return weights if layout.device == "cpu" else _COMPUTE.get(precision, weights)


def length_problems(recipe: Recipe, facts: Mapping[str, Any] | None) -> list[Problem]:
    asked, limit = recipe.rollouts.max_model_len, model_limit(facts)
    if asked is not None and limit is not None and asked > limit:
        message = f"rollouts.max_model_len {asked} is more than the model's own limit of {limit}"
        return [Problem(message, "", ("rollouts", "max_model_len"))]
    room = asked or limit
    name = next((name for name in _LENGTHS if argument(recipe, name) is not None), _LENGTHS[0])
    completion = argument(recipe, name)
    if room is None or not isinstance(completion, int) or completion < room:
        return []
    whose = "rollouts.max_model_len" if asked else "the model's limit"
    message = f"{name} {completion} leaves no room for a prompt: {whose} is {room} tokens for both"
    key = ("rollouts", "max_model_len") if asked and name not in recipe.training else argument_key(recipe, (name,))
    return [Problem(message, "raise one or lower the other", key)]


def _url_problems(rollouts: RolloutsSpec) -> list[Problem]:
    if rollouts.url is None:
        return []
    parts = urlsplit(rollouts.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or _port_of(rollouts.url) is None:
        message = f"rollouts.url {rollouts.url!r} is not an address"
        return [Problem(message, "write it as http://127.0.0.1:8000", ("rollouts", "url"))]
    return []


def _port_of(url: str | None) -> int | None:
    try:
        parts = urlsplit(url or "")
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None


def _port_problems(recipe: Recipe, machine: Machine) -> list[Problem]:
    rollouts = recipe.rollouts
    problems = []
    for name, node in (("port", recipe.launch.nodes if serves_apart(recipe) else 0), ("group_port", 0)):
        port = getattr(rollouts, name)
        if machine.place and machine.place.rank != node:
            continue  # another node opens it
        if port in machine.busy_ports and not (name == "port" and rollouts.url):
            message = f"rollouts.{name} {port} is in use"
            problems.append(Problem(message, "choose another, or leave it out for a free one", ("rollouts", name)))
    server = _port_of(rollouts.url) if rollouts.url else rollouts.port
    if rollouts.group_port is not None and rollouts.group_port == server:
        message = f"rollouts.group_port is the server's port, {server}"
        problems.append(Problem(message, "choose another", ("rollouts", "group_port")))
    return problems


def _text_config(facts: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The language model's part: a vision-language model nests it."""
    facts = facts or {}
    nested = facts.get("text_config")
    return nested if isinstance(nested, Mapping) else facts
