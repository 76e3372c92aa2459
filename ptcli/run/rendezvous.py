"""Several nodes meet before anything is started, and stay in touch until the end.

Node 0 listens on the master port, which the trainer's processes take later; every other node connects to it and says
what it would run. Where all agree, the connections stay and the listener goes:

    node N ── connects ─────────▶ node 0        node 0 ── greeting ──▶ node N
    node N ── hello: rank, facts ▶ node 0       node 0 ── verdict ───▶ node N      differences: exit 2 on every node
    either ── {"ended": ...} ────▶ the other, later: why its side ended; a connection that breaks says that, too

What goes over the wire are JSON objects, one a line, of limited length: numbers, names and hashes, no secret, nothing
that is run.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from ptcli.errors import Problem, RequestError
from ptcli.plan.model import Place
from ptcli.rollouts.command import is_loopback

Tick = Callable[[str], None]
"""Called several times a second with what is being waited for; may raise."""
Facts = Mapping[str, Mapping[str, str]]
"""What a node would run: a group (`recipe`, `package`, ...) to names to values."""

PROTOCOL = 1
LONGEST_LINE = 1 << 20
"""Bytes of one message."""
GREETING_SECONDS = 10.0
"""How long the other end of a fresh connection may be silent."""
CONNECT_SECONDS = 3.0
STRAGGLERS_SECONDS = 2.0
"""How long further nodes are waited for once it is clear that the run will not start, so that they learn why."""
_SEND_SECONDS = 10.0
_UNREAD = 8
"""Messages at most that are on their way when a connection is closed."""
_PAUSE = 0.1
_SHOWN = 6
"""Differences that are listed of each node."""
_LONGEST_VALUE = 120
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 60_000}
"""A machine that lost its power says nothing any more: it is noticed after 45 to 60 seconds."""

_FIXES = {
    "recipe": "start every node with the same recipe and overrides",
    "file": "the nodes must have the same files at the same places, best on storage that they share",
    "package": "install the same packages on every node",
    "launch": "the trainer's nodes must be alike: set launch.gpus, or start with the same options",
}


class Line:
    """JSON objects over a connection. Never raises for what the other end does."""

    def __init__(self, connection: socket.socket, peer: str = ""):
        connection.settimeout(_SEND_SECONDS)
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket, self.peer = connection, peer
        self._unread = b""
        self._inbox: deque[dict[str, Any]] = deque()
        self.closed = False

    @property
    def own_address(self) -> str:
        """This machine's end; empty when the connection is gone."""
        try:
            return str(self._socket.getsockname()[0])
        except (OSError, IndexError):
            return ""

    def send(self, **message: Any) -> None:
        if self.closed:
            return
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.closed = True

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when none has come yet, or none will. What is no message closes the line."""
        while not self._inbox and not self.closed and select.select([self._socket], [], [], 0)[0]:
            try:
                read = self._socket.recv(1 << 16)
            except OSError:
                read = b""
            *whole, self._unread = (self._unread + read).split(b"\n")
            messages = [_decode(text) for text in whole]
            self._inbox.extend(message for message in messages if message is not None)
            self.closed = not read or len(self._unread) > LONGEST_LINE or None in messages
        return self._inbox.popleft() if self._inbox else None

    def close(self) -> None:
        for _ in range(_UNREAD):  # what is left unread would have the kernel take back what was sent last
            self.receive()
        self.closed = True
        self._socket.close()


@dataclass
class Peers:
    """The other nodes, as far as this one is connected with them: node 0 with all, the others with node 0."""

    lines: dict[int, Line] = field(default_factory=dict)
    _lost: set[int] = field(default_factory=set)

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self.lines.values():
            line.close()

    def tell(self, *, only: Iterable[int] | None = None, **message: Any) -> None:
        for rank in self.lines if only is None else only:
            self.lines[rank].send(**message)

    def hear(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What has come since, with the node that said it; `{"lost": True}`, once, of one that is gone."""
        for rank, line in self.lines.items():
            while message := line.receive():
                yield rank, message
            if line.closed and rank not in self._lost:
                self._lost.add(rank)
                yield rank, {"lost": True}


def meet(place: Place, nodes: int, facts: Facts, *, seconds: float, tick: Tick) -> Peers:
    """Wait until all nodes are there, and compare what they would run. `facts` of a group that is not there differ in
    nothing.

    Raises:
        RequestError: nodes are missing or there twice, or they would run different things. All that came are told.
    """
    deadline = time.monotonic() + seconds
    if place.rank == 0:
        return _gather(place, nodes, facts, deadline, seconds, tick)
    return _join(place, nodes, facts, deadline, seconds, tick)


def differences(first: Facts, other: Facts, rank: int) -> list[Problem]:
    """Where a node differs from node 0, in words that are true on both."""
    problems = []
    for group in (name for name in _FIXES if name in first and name in other):
        mine, theirs = first[group], other[group]
        keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        shown = [f"{key} is {_said(mine.get(key))} on node 0, {_said(theirs.get(key))} on node {rank}" for key in keys]
        more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
        if shown:
            message = f"node {rank} has another {group} than node 0: " + "; ".join(shown[:_SHOWN] + more)
            problems.append(Problem(message, _FIXES[group]))
    return problems


def open_listener(place: Place) -> socket.socket:
    """Node 0's. On loopback where that is the master, or else on every address, as the trainer's own will be.

    Raises RequestError where the address is not this machine's, or the port is taken.
    """
    addresses = resolve(place.host)
    if not addresses:
        message = f"--master {place.host}: there is no machine of that name"
        raise RequestError(Problem(message, "give an address of node 0"))
    if not any(is_own(address) for address in addresses):
        message = f"--master {place.host} ({', '.join(addresses)}) is not an address of this machine, which is node 0"
        raise RequestError(Problem(message, "give an address of node 0, or this node another --node-rank"))
    loopback = is_loopback(place.host)
    family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    both = family == socket.AF_INET6 and not loopback and socket.has_dualstack_ipv6()
    where = addresses[0] if loopback else ""
    try:
        return socket.create_server((where, place.port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        message = f"port {place.port} of {place.host} cannot be opened: {error.strerror or error}"
        fix = "another run, or another node 0, may use it: choose another port, the same on all nodes"
        raise RequestError(Problem(message, fix)) from error


def resolve(host: str) -> list[str]:
    """The addresses of a machine, without repeats; empty when the name is unknown."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def is_own(address: str) -> bool:
    """Whether an address is one of this machine: only those can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


# --- node 0 ----------------------------------------------------------------------------------------------------------


class _Hall:
    """Where node 0 waits for the others: who knocked, who said which node it is, and what is wrong."""

    def __init__(self, nodes: int, facts: Facts):
        self.nodes, self.facts = nodes, facts
        self.fresh: list[tuple[Line, float]] = []
        self.lines: dict[int, Line] = {}
        self.turned_away: list[Line] = []
        self.hosts = {0: facts.get("machine", {})}
        self.problems: list[Problem] = []

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(1, self.nodes) if rank not in self.lines]

    def let_in(self, line: Line) -> None:
        line.send(ptcli=PROTOCOL)
        self.fresh.append((line, time.monotonic() + GREETING_SECONDS))

    def listen(self) -> None:
        """Read what those say who have not said yet which node they are."""
        waiting = []
        for line, deadline in self.fresh:
            hello = line.receive()
            if hello is not None:
                self._welcome(line, hello)
            elif line.closed or time.monotonic() > deadline:
                line.close()
            else:
                waiting.append((line, deadline))
        self.fresh = waiting
        for rank in [rank for rank, line in self.lines.items() if line.closed]:
            del self.lines[rank]  # one that was started anew is welcome

    def _welcome(self, line: Line, hello: Mapping[str, Any]) -> None:
        rank, nodes, facts = hello.get("rank"), hello.get("nodes"), _facts(hello.get("facts"))
        if hello.get("ptcli") != PROTOCOL or type(rank) is not int or type(nodes) is not int or facts is None:
            line.close()
            return
        wrong = differences(self.facts, facts, rank)
        if rank in self.lines:
            who = " and ".join(dict.fromkeys((self.lines[rank].peer, line.peer)))
            wrong = [Problem(f"two nodes say that they are node {rank} ({who})", "give each its own --node-rank")]
        elif not 0 < rank < self.nodes and not wrong:
            wrong = [Problem(f"node {rank} came, and the nodes are 0 to {self.nodes - 1}", _FIXES["recipe"])]
        elif not wrong:
            wrong = self._shared_gpus(rank, facts.get("machine", {}))
        self.problems += wrong
        if rank in self.lines or not 0 < rank < self.nodes:
            self.turned_away.append(line)
        else:
            self.lines[rank] = line

    def _shared_gpus(self, rank: int, machine: Mapping[str, str]) -> list[Problem]:
        """Nodes that are the same machine, and would use the same GPU."""
        problems = []
        for other, theirs in self.hosts.items():
            both = set(theirs.get("gpus", "").split()) & set(machine.get("gpus", "").split())
            if other != rank and both and theirs.get("boot") == machine.get("boot"):
                message = f"nodes {other} and {rank} are the same machine and both use GPU {', '.join(sorted(both))}"
                problems.append(Problem(message, "give each its own with CUDA_VISIBLE_DEVICES"))
        self.hosts[rank] = machine
        return problems

    def dismiss(self) -> RequestError:
        """Tell everybody why there is no run."""
        problems = list(dict.fromkeys(self.problems))
        for line in (*self.lines.values(), *self.turned_away, *(line for line, _ in self.fresh)):
            line.send(refused=[[problem.message, problem.fix] for problem in problems])
            line.close()
        return RequestError(problems)


def _gather(place: Place, nodes: int, facts: Facts, deadline: float, seconds: float, tick: Tick) -> Peers:
    hall = _Hall(nodes, facts)
    with ExitStack() as stack:
        listener = stack.enter_context(open_listener(place))
        while hall.missing and time.monotonic() < deadline:
            tick(f"waiting for {_listed(hall.missing)} of {nodes} at {place.address}")
            if select.select([listener], [], [], _PAUSE)[0]:
                with suppress(OSError):
                    connection, address = listener.accept()
                    hall.let_in(Line(connection, str(address[0])))
            hall.listen()
            if hall.problems:
                deadline = min(deadline, time.monotonic() + STRAGGLERS_SECONDS) if hall.missing else 0.0
    if hall.missing and not hall.problems:
        missing = _listed(hall.missing)
        fix = f"start it there with --node-rank {hall.missing[0]} --master {place.address}"
        fix += ": only this machine can reach that address" if is_loopback(place.host) else ", or look for a firewall"
        verb = "has" if len(hall.missing) == 1 else "have"
        hall.problems.append(Problem(f"{missing} {verb} not come within {seconds:g} s", fix))
    if hall.problems:
        raise hall.dismiss()
    for line in hall.lines.values():
        line.send(accepted=True)
    return Peers(dict(sorted(hall.lines.items())))


# --- the others ------------------------------------------------------------------------------------------------------


def _join(place: Place, nodes: int, facts: Facts, deadline: float, seconds: float, tick: Tick) -> Peers:
    line = _connect(place, deadline, seconds, tick)
    line.send(ptcli=PROTOCOL, rank=place.rank, nodes=nodes, facts=facts)
    while (answer := line.receive()) is None and not line.closed:
        tick(f"node 0 at {place.address} waits for the other nodes")
        time.sleep(_PAUSE)
    if answer and answer.get("accepted") is True:
        return Peers({0: line})
    line.close()
    problems = [Problem(str(message), str(fix)) for message, fix in (answer or {}).get("refused", ())]
    gone = Problem(f"node 0 at {place.address} went away before the run began", "see what it says there")
    raise RequestError(problems or gone)


def _connect(place: Place, deadline: float, seconds: float, tick: Tick) -> Line:
    """A connection on which node 0 has said its greeting."""
    trouble = "nothing was tried"
    while time.monotonic() < deadline:
        tick(f"looking for node 0 at {place.address}")
        try:
            line = Line(socket.create_connection((place.host, place.port), timeout=CONNECT_SECONDS), place.host)
        except OSError as error:
            trouble = error.strerror or str(error)
            time.sleep(_PAUSE)
            continue
        until = min(deadline, time.monotonic() + GREETING_SECONDS)
        while (greeting := line.receive()) is None and not line.closed and time.monotonic() < until:
            tick(f"looking for node 0 at {place.address}")
            time.sleep(_PAUSE / 2)
        if greeting and greeting.get("ptcli") == PROTOCOL:
            return line
        line.close()
        trouble = "something else answers there, or a ptcli of another version"
    message = f"node 0 does not answer at {place.address} within {seconds:g} s: {trouble}"
    fix = "start it there with --node-rank 0 and the same --master"
    fix += f"; {place.host} is this machine itself" if is_loopback(place.host) else ", or look for a firewall"
    raise RequestError(Problem(message, fix))


def _decode(text: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _facts(value: Any) -> Facts | None:
    """What a stranger says, when it has the shape of facts."""
    if not isinstance(value, dict):
        return None
    groups = value.values()
    if not all(isinstance(group, dict) and all(isinstance(each, str) for each in group.values()) for group in groups):
        return None
    return value


def _said(value: str | None) -> str:
    if value is None:
        return "absent"
    shown = "".join(character if character.isprintable() else " " for character in value)
    return shown if len(shown) <= _LONGEST_VALUE else shown[: _LONGEST_VALUE - 3] + "..."


def _listed(ranks: Sequence[int]) -> str:
    """`node 1`, `nodes 1, 2, 5`, `nodes 1, 2, 3 and 12 more`."""
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"node{'' if len(ranks) == 1 else 's'} {shown}"
