"""A run on several nodes: what they compare, what node 0 tells the others, and how each of the others lives.

    all        meet and compare (`ptcli.run.rendezvous`), look for each other's storage and ports
    node 0     checks data and rewards, prepares the run directory, supervises; says when to prepare, to start, to end
    node N     does as node 0 says, with processes and a log of its own; says when they end, or a signal comes

Whoever ends, ends all: a node that is gone, or whose trainer died, ends the run with exit code 1 on every node, and
the cause is that of the side which failed first.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from ptcli.errors import Interrupted, Problem, PtcliError, RequestError, WorkError
from ptcli.plan.launch import ACCELERATE_FILE, RECIPE_FILE
from ptcli.plan.layout import serves_apart
from ptcli.run.logs import first_error, tail
from ptcli.run.processes import Processes, ProcessGroup, adopt_orphans
from ptcli.run.rendezvous import Facts, Peers, Tick, is_own, meet, resolve
from ptcli.run.rundir import RunDirectory, State, Status
from ptcli.run.signals import Signals, signals_raised

if TYPE_CHECKING:
    from ptcli.plan.model import Plan, Step
    from ptcli.run.panel import View

TICK = 0.1
STORAGE_SECONDS = 30.0
"""How long a network file system may take to show a new file to the other nodes."""
PROBE_SECONDS = 10.0
"""How long a port of another node may take to answer."""
RECORD_SECONDS = 1.0

_PACKAGES = (
    "ptcli", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "tokenizers", "deepspeed", "vllm",
    "bitsandbytes", "liger-kernel", "flash-attn", "nvidia-nccl-cu12", "nvidia-nccl-cu13",
)  # fmt: skip
_OF_EACH_NODE = frozenset({"launch.gpus", "rollouts.gpus", "rollouts.data_parallel_size"})
"""Keys of the resolved recipe in which each node has its own GPUs. What must be the same is in the launch config."""
_OF_NODE_0 = frozenset({"rollouts.port", "rollouts.group_port"})
"""Keys that only node 0 goes by, where the server shares it."""
_LONGEST = 100


@dataclass(frozen=True)
class Ended:
    """Why a run ended, as one node tells another."""

    code: int
    cause: str | None
    state: State

    @classmethod
    def of(cls, error: BaseException) -> Ended:
        code = error.exit_code if isinstance(error, PtcliError) else 1
        state: State = "stopped" if isinstance(error, Interrupted) else "failed"
        return cls(code, str(error) or type(error).__name__, state)

    @classmethod
    def read(cls, message: Mapping[str, Any], rank: int) -> Ended | None:
        """What a message says of an end; None when it is about something else."""
        if message.get("lost"):
            return cls(1, f"node {rank} is gone: its ptcli, or the connection to it, ended without a word", "failed")
        code, cause, state = message.get("ended"), message.get("cause"), message.get("state")
        if type(code) is not int or state not in ("finished", "failed", "stopped"):
            return None
        return cls(code, None if cause is None else str(cause), state)

    def tell(self, peers: Peers) -> None:
        peers.tell(ended=self.code, cause=self.cause, state=self.state)

    def error(self, rank: int) -> PtcliError:
        """The same as an exception of this node."""
        text = _named(self.cause, rank) or f"node {rank} ended"
        if self.code == RequestError.exit_code:
            return RequestError(text)
        return Interrupted(self.code - 128) if self.code > 128 else WorkError(text)


def node_facts(plan: Plan) -> Facts:
    """What the nodes of a run must have in common, and by what they are told apart. Names, values and hashes; secrets
    are references in a resolved recipe, and stay so."""
    recipe = dict(_leaves(yaml.safe_load(plan.files[RECIPE_FILE])))
    apart = serves_apart(plan.recipe)
    own = _OF_EACH_NODE | (frozenset() if apart else _OF_NODE_0)
    facts: dict[str, Mapping[str, str]] = {
        "recipe": {key: value for key, value in recipe.items() if key.rpartition(".")[0] not in own and key not in own},
        "file": dict(_code(recipe.values())),
        "package": dict(_packages()),
        "machine": {"boot": _boot(), "gpus": " ".join(_gpus(plan))},
    }
    if trains_here(plan):
        config = dict(_leaves(yaml.safe_load(plan.files[ACCELERATE_FILE])))
        facts["launch"] = config | dict(_options(plan))
    return facts


def trains_here(plan: Plan) -> bool:
    """Whether this node has a part of the trainer; False for that of a server on its own."""
    return own_step(plan).name == "trainer"


def own_step(plan: Plan) -> Step:
    """What one of the nodes but the first runs."""
    return next(step for step in reversed(plan.steps) if step.node == plan.node)


@contextmanager
def met(plan: Plan, view: View) -> Iterator[Peers]:
    """The other nodes, once all are there and agree. Whatever is raised inside is told to them.

    Raises:
        RequestError: they are not all there, or do not agree.
        Interrupted: on a signal.
    """
    place = plan.place
    if place is None:
        message = f"the recipe runs on {plan.nodes} nodes, and it is not said which of them this is"
        fix = f"start it on each with --node-rank 0 to {plan.nodes - 1} and --master HOST:PORT, an address of node 0"
        raise RequestError(Problem(message, fix, ("launch", "nodes")))
    with signals_raised():
        peers = meet(place, plan.nodes, node_facts(plan), seconds=plan.recipe.launch.rendezvous_seconds, tick=view.show)
    with peers:
        view.say(f"all {plan.nodes} nodes are there{_over(peers)}")
        try:
            yield peers
        except BaseException as error:
            Ended.of(error).tell(peers)
            raise


def _over(peers: Peers) -> str:
    """`, over eth0`: the interface by which this node reaches the first of the others."""
    address = next(iter(peers.lines.values())).own_address
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return f", over {name}"
    return ""


# --- node 0 ----------------------------------------------------------------------------------------------------------


def share_storage(plan: Plan, peers: Peers, tick: Tick) -> None:
    """See that the others see what this node writes beside the run directory. Raises RequestError when one does not."""
    folder = next(path for path in (plan.output_dir, *plan.output_dir.parents) if path.is_dir())
    token = folder / f".ptcli-nodes-{secrets.token_hex(8)}"
    try:
        token.touch()
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        peers.tell(look_for=str(token))
        collect(peers, "looked", set(peers.lines), lambda: tick("looking for the run directory on every node"))
    finally:
        token.unlink(missing_ok=True)


def probe_ports(plan: Plan, peers: Peers, tick: Tick) -> None:
    """See that a server on its own node and this node reach each other's ports, before anything uses them."""
    if not serves_apart(plan.recipe):
        return
    server = plan.nodes - 1
    rollouts = plan.recipe.rollouts
    address = group_address(plan)
    with _listening(address, rollouts.group_port or 0, "rollouts.group_port"):
        peers.tell(only=[server], probe=[address, rollouts.group_port])
        collect(peers, "listening", {server}, lambda: tick("trying the ports between trainer and rollout server"))
        trouble = _trouble(rollouts.host, rollouts.port or 0)
    if trouble:
        message = (
            f"node 0 cannot reach node {server}, the rollout server's, at {rollouts.host}:{rollouts.port}: {trouble}"
        )
        raise RequestError(Problem(message, "look for a firewall, or at rollouts.host", ("rollouts", "host")))
    peers.tell(only=[server], probed=True)


def prepare_others(peers: Peers, tick: Tick) -> None:
    """Have the others do what each has to do for itself before the start, and wait for them."""
    peers.tell(prepare=True)
    collect(peers, "prepared", set(peers.lines), lambda: tick("the other nodes prepare"))


def collect(peers: Peers, word: str, ranks: set[int], tick: Callable[[], None]) -> None:
    """Wait until all of these said `{word: True}`. Raises what one of them ended of."""
    while ranks:
        tick()
        for rank, message in peers.hear():
            if ended := Ended.read(message, rank):
                raise ended.error(rank)
            if message.get(word):
                ranks = ranks - {rank}
        time.sleep(TICK / 2)


def group_address(plan: Plan) -> str:
    """Where the trainer's rank 0 opens the store of the weight sync."""
    trainer = next(step for step in plan.steps if step.name == "trainer")
    return trainer.env.get("VLLM_HOST_IP", "127.0.0.1")


# --- the others ------------------------------------------------------------------------------------------------------


def follow(plan: Plan, peers: Peers, prepare: Callable[[], None], *, view: View) -> Status:
    """The life of a node that is not the first. `prepare` is what it does for itself before the start."""
    ended = _follow_until_start(plan, peers, prepare, view) or _run_own_step(plan, peers, view)
    if ended.code:
        log = RunDirectory(plan.output_dir).log(log_name(own_step(plan)))
        lines = tail(log) if ended.state == "failed" else []
        view.fail(ended.cause or "", [f"--- last lines of {log}", *lines] if lines else [])
    else:
        view.say(f"node {plan.node} is done")
    view.close()
    updated = datetime.now(UTC).isoformat(timespec="seconds")
    return Status(ended.state, ended.cause if ended.code else None, 0, ended.code, updated)


def log_name(step: Step) -> str:
    """`trainer`, `trainer.1`: the name of a step's log."""
    return f"{step.name}.{step.node}" if step.name == "trainer" and step.node else step.name


def _follow_until_start(plan: Plan, peers: Peers, prepare: Callable[[], None], view: View) -> Ended | None:
    """Answer node 0 until it says to start; the end, when that comes before."""
    with signals_raised():
        while True:
            view.show("node 0 checks data and rewards")
            for _, message in peers.hear():
                if ended := Ended.read(message, 0):
                    return _of_node_0(ended)
                if message.get("start"):
                    return None
                _answer(plan, peers, message, prepare)
            time.sleep(TICK)


def _answer(plan: Plan, peers: Peers, message: Mapping[str, Any], prepare: Callable[[], None]) -> None:
    if "look_for" in message:
        _look_for(Path(str(message["look_for"])), plan.node)
        peers.tell(looked=True)
    elif "probe" in message:
        _probe(plan, peers, *message["probe"])
    elif "prepare" in message:
        if trains_here(plan):
            prepare()
        peers.tell(prepared=True)


def _look_for(token: Path, rank: int) -> None:
    deadline = time.monotonic() + STORAGE_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            os.listdir(token.parent)  # has NFS ask the server anew
        if token.exists():
            return
        time.sleep(TICK)
    message = f"node {rank} does not see what node 0 writes to {token.parent}"
    raise RequestError(Problem(message, "give output_dir on storage that all nodes share", ("output_dir",)))


def _probe(plan: Plan, peers: Peers, address: str, port: int) -> None:
    """Listen where the server will, while node 0 tries to connect, and connect where the trainer will listen."""
    rollouts = plan.recipe.rollouts
    if not any(map(is_own, resolve(rollouts.host))):
        message = f"rollouts.host {rollouts.host} is not an address of node {plan.node}, which runs the rollout server"
        raise RequestError(Problem(message, "give one of its addresses", ("rollouts", "host")))
    if trouble := _trouble(str(address), int(port)):
        message = f"node {plan.node}, the rollout server's, cannot reach node 0 at {address}:{port}: {trouble}"
        raise RequestError(Problem(message, "look for a firewall, or at --master", ("rollouts", "group_port")))
    with _listening(rollouts.host, rollouts.port or 0, "rollouts.port"):
        peers.tell(listening=True)
        deadline = time.monotonic() + 2 * PROBE_SECONDS
        while time.monotonic() < deadline:
            for _, said in peers.hear():
                if ended := Ended.read(said, 0):
                    raise ended.error(0)
                if said.get("probed"):
                    return
            time.sleep(TICK / 2)


def _run_own_step(plan: Plan, peers: Peers, view: View) -> Ended:
    """Run this node's processes until node 0 says that all is over, and end them."""
    step = own_step(plan)
    log = RunDirectory(plan.output_dir).log(log_name(step))
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        group = processes.start(step, log)
        try:
            return _watch(step, group, log, peers, signals, processes, view)
        finally:
            view.show("ending the processes")
            processes.end(signals.hurry)


def _watch(
    step: Step, group: ProcessGroup, log: Path, peers: Peers, signals: Signals, processes: Processes, view: View
) -> Ended:
    told, reported, record_at = 0, False, 0.0
    while True:
        for _, message in peers.hear():
            if ended := Ended.read(message, 0):
                return _of_node_0(ended)
        if signals.received is not None and told < 1 + signals.hurry():
            told += 1
            peers.tell(signal=signals.received)
            view.say(f"{signal.Signals(signals.received).name}: node 0 is told, which ends the run on all nodes")
            if told > 1:
                return Ended.of(Interrupted(signals.received))
        if not reported and (code := group.poll()) is not None:
            reported = True
            _report(step, code, log, peers)
        if time.monotonic() > record_at:
            processes.record()
            record_at = time.monotonic() + RECORD_SECONDS
        view.show(f"this is node {step.node}: {'training' if step.name == 'trainer' else 'serving rollouts'}")
        time.sleep(TICK)


def _report(step: Step, code: int, log: Path, peers: Peers) -> None:
    from ptcli.run.supervise import describe_death

    cause = describe_death(step.name, code, first_error(log) or "") if code else None
    peers.tell(exited=code, log=log_name(step), cause=cause)


def _of_node_0(ended: Ended) -> Ended:
    """Node 0's end as this node's."""
    return Ended(ended.code, _named(ended.cause, 0), ended.state)


def _named(cause: str | None, rank: int) -> str | None:
    return f"node {rank}: {cause}" if cause and not cause.startswith("node ") else cause


# --- what nodes tell of themselves -----------------------------------------------------------------------------------


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a mapping by its dotted name, as text; a long one as its beginning and a hash."""
    if isinstance(value, Mapping) and value:
        for key, inside in value.items():
            yield from _leaves(inside, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, inside in enumerate(value):
            yield from _leaves(inside, f"{path}.{index}")
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        digest = f"... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"
        yield path, text if len(text) <= _LONGEST else text[: _LONGEST - len(digest)] + digest


def _code(values: Any) -> Iterator[tuple[str, str]]:
    """The user's own code that a recipe names, by its hash."""
    for value in values:
        path = Path(str(value).rpartition(":")[0] or str(value))
        if path.suffix in (".py", ".jinja") and path.is_file():
            yield str(path), f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _packages() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _boot() -> str:
    """What two machines never share, nor two runs of one kernel."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _gpus(plan: Plan) -> Iterator[str]:
    for step in plan.steps:
        if step.node == plan.node:
            yield from step.gpus


def _options(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the command line adds to the trainer's command."""
    argv = own_step(plan).argv
    if "--resume-from" in argv:
        yield "the checkpoint to go on from", argv[argv.index("--resume-from") + 1]


# --- ports -----------------------------------------------------------------------------------------------------------


@contextmanager
def _listening(host: str, port: int, key: str) -> Iterator[None]:
    addresses = resolve(host) or [host]
    family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    try:
        listener = socket.create_server((addresses[0], port), family=family)
    except OSError as error:
        message = f"{key} {port} cannot be opened at {host}: {error.strerror or error}"
        raise RequestError(Problem(message, "choose another", tuple(key.split(".")))) from error
    with listener:
        yield


def _trouble(host: str, port: int) -> str | None:
    """Why a port cannot be reached; None when it can."""
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
