"""Ports that a run has to bind: free, or taken by whom."""

from __future__ import annotations

import errno
import json
import shlex
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

import psutil

from ptcli.doctor.checks.processes import command_of
from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs
from ptcli.plan.machine import free_ports

USUAL = (("the rollout server's usual", 8000), ("TRL's weight sync", 51216), ("torchrun's", 29500))
"""Looked at without a recipe. A run of ptcli draws free ones, but other tools do not."""
_CONNECT = 3.0
"""Seconds that a server may take to answer."""


@dataclass(frozen=True)
class Port:
    """One port of this machine."""

    name: str
    """Key of the recipe, or what usually wants it."""
    number: int
    taken: bool
    refused: bool = False
    """This user may not bind it (below 1024)."""
    owner: str = ""
    """Who listens on it, as shown to a person; empty when that is another user's or another container's."""
    pid: int | None = None


@dataclass(frozen=True)
class Ports:
    """Every port that was looked at."""

    ports: tuple[Port, ...]
    free: int
    """How many of as many as a run takes could be bound just now."""
    unreachable: str = ""
    """Why nothing answers at the recipe's `rollouts.url`."""
    server: str = ""
    """The version of vLLM that answers there."""
    installed: str = ""
    """The version of vLLM here, which the trainer's client is of."""


def read_ports(needs: Needs) -> Ports:
    """Bind each for a moment."""
    wanted = needs.ports if needs.recipe is not None else USUAL
    unreachable, server = _ask_server(needs.url) if needs.url else ("", "")
    return Ports(tuple(_look(*each) for each in wanted), len(free_ports()), unreachable, server, _installed())


def judge_ports(ports: Ports, needs: Needs) -> list[Finding]:
    """A finding for each that is taken, one for all that are free."""
    wrong = [*_taken(ports, needs), *_no_server(ports, needs), *_other_server(ports, needs)]
    if not ports.free:
        message = "no port between 20000 and 32767 can be bound, and every run needs some"
        wrong.append(Finding("ports", "fail", message, "ss -ltn shows what is taken"))
    numbers = ", ".join(str(port.number) for port in ports.ports)
    told = f"{numbers} can be bound" if numbers else "free ones can be bound"
    return wrong or [Finding("ports", "pass", told)]


def _taken(ports: Ports, needs: Needs) -> Iterator[Finding]:
    for port in ports.ports:
        if not (port.taken or port.refused):
            continue
        of_recipe = needs.recipe is not None
        who = (
            "may only be bound by root" if port.refused else f"is taken by {port.owner or 'a process of another user'}"
        )
        message = f"{port.name} {port.number} {who}"
        other = f"{port.name}=null for a free one" if of_recipe else "none for ptcli, which draws free ones"
        end = f"kill {port.pid}" if port.pid else f"sudo ss -ltnp 'sport = :{port.number}' names it"
        fix = other if port.refused else f"{end}; or {other}" if of_recipe else f"{other}; for other tools: {end}"
        yield Finding("ports", "fail" if of_recipe else "warn", message, fix)


def _no_server(ports: Ports, needs: Needs) -> Iterator[Finding]:
    if needs.url and ports.unreachable:
        port = urlsplit(needs.url).port or 8000
        fix = f"ptcli serve-rollouts {shlex.quote(needs.recipe or 'RECIPE')} rollouts.url=null rollouts.port={port}"
        yield Finding("ports", "fail", f"nothing answers at rollouts.url {needs.url}: {ports.unreachable}", fix)


def _other_server(ports: Ports, needs: Needs) -> Iterator[Finding]:
    """vLLM's weight transfer changes from version to version, and so does TRL's client."""
    theirs, ours = (each.partition("+")[0] for each in (ports.server, ports.installed))
    if theirs and ours and theirs != ours:
        message = f"rollouts.url {needs.url} is vLLM {ports.server}, and {ports.installed} is installed here"
        yield Finding("ports", "fail", message, f"install the same on both sides; there: pip install vllm=={ours}")


def _look(name: str, number: int) -> Port:
    """SO_REUSEADDR, as every server sets it: a port whose last connections linger in TIME_WAIT is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", number))
        except OSError as error:
            if error.errno == errno.EACCES:
                return Port(name, number, taken=False, refused=True)
            pid = _owner(number)
            return Port(name, number, taken=True, owner=command_of(pid) if pid else "", pid=pid)
    return Port(name, number, taken=False)


def _owner(number: int) -> int | None:
    """Pid of who listens on it, or holds it otherwise; None when /proc does not show it to this user."""
    try:
        found = [
            each for each in psutil.net_connections("tcp") if each.laddr and each.laddr.port == number and each.pid
        ]
    except psutil.Error:
        return None
    listening = [each for each in found if each.status == psutil.CONN_LISTEN]
    return next((each.pid for each in (*listening, *found)), None)


def _ask_server(url: str) -> tuple[str, str]:
    """Why nothing answers at the address, or else the version of vLLM that does; empty where it does not say."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/version", timeout=_CONNECT) as answer:
            return "", str(json.load(answer).get("version", ""))
    except urllib.error.HTTPError:
        return "", ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        return getattr(reason, "strerror", None) or str(reason) or type(error).__name__, ""
    except (ValueError, AttributeError):
        return "", ""


def _installed() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return ""
