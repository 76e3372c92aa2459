"""`launch.nccl`: what NCCL is told, in every process of a run, and whether this machine has what it names.

The syntax is NCCL's own (its user guide, "Environment Variables"): a list of beginnings of names; after `=` of whole
names; after `^` (or `^=`) of those to leave out. InfiniBand adapters may have a port, `mlx5_0:1`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ptcli.errors import KeyPath, Problem
from ptcli.plan.model import Machine
from ptcli.recipe.model import NcclSpec, Recipe

_VARIABLES = {
    "interface": "NCCL_SOCKET_IFNAME",
    "ib_hca": "NCCL_IB_HCA",
    "gdr_level": "NCCL_NET_GDR_LEVEL",
    "debug": "NCCL_DEBUG",
}
_GLOO = "GLOO_SOCKET_IFNAME"
"""gloo knows whole names only, and takes the address of the host's name where nothing is said."""
_WATCHED = ("NCCL_", "GLOO_", "TORCH_NCCL_")
_INFINIBAND = "/sys/class/infiniband"


@dataclass(frozen=True)
class Names:
    """A list of network devices as NCCL reads it."""

    words: tuple[str, ...]
    exact: bool
    exclude: bool

    @classmethod
    def parse(cls, text: str) -> Names:
        """Never fails: a word that is empty matches nothing."""
        exclude, rest = text.startswith("^"), text.removeprefix("^")
        exact, rest = rest.startswith("="), rest.removeprefix("=")
        return cls(tuple(word.strip() for word in rest.split(",")), exact, exclude)

    def matches(self, word: str, present: Iterable[str]) -> list[str]:
        """The devices that a word means."""
        name = word.partition(":")[0]
        return [each for each in present if (each == name if self.exact else each.startswith(name))] if name else []

    def chosen(self, present: Sequence[str]) -> list[str]:
        """The devices that are used, of these."""
        meant = {each for word in self.words for each in self.matches(word, present)}
        return [each for each in present if (each in meant) != self.exclude]


def read_interfaces() -> tuple[str, ...]:
    """The network interfaces of this machine."""
    with suppress(OSError):
        return tuple(name for _, name in socket.if_nameindex())
    return ()


def read_adapters() -> tuple[str, ...]:
    """The InfiniBand and RoCE adapters of this machine."""
    with suppress(OSError):
        return tuple(sorted(os.listdir(_INFINIBAND)))
    return ()


def watched(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which the caller speaks to NCCL and gloo."""
    return {name: environ[name] for name in sorted(environ) if name.startswith(_WATCHED)}


def nccl_environment(spec: NcclSpec, machine: Machine) -> dict[str, str]:
    """The variables of `launch.nccl`, for trainer and server alike."""
    said = {variable: getattr(spec, name) for name, variable in _VARIABLES.items()}
    env = {variable: str(value) for variable, value in said.items() if value is not None}
    names = Names.parse(spec.interface) if spec.interface is not None else None
    if names is None:
        return env
    present = machine.interfaces
    if present is None:  # what a name begins, or leaves out, cannot be known
        whole = [] if names.exclude else list(names.words)
    else:
        whole = [name for name in names.chosen(present) if name != "lo" or not names.exclude]
    return env | ({_GLOO: ",".join(whole)} if whole else {})


def nccl_problems(recipe: Recipe, machine: Machine) -> list[Problem]:
    """Names of devices that this machine does not have, and what is said twice. An assumed machine has any."""
    spec = recipe.launch.nccl
    problems = [_twice(name, key) for key, name in _VARIABLES.items() if _said_twice(recipe, key, name)]
    problems += _names(spec.interface, machine.interfaces, "interface", "network interface")
    return problems + _names(spec.ib_hca, machine.adapters, "ib_hca", "InfiniBand adapter")


def nccl_notes(recipe: Recipe, machine: Machine) -> list[str]:
    """What of the caller's environment gives way, and with several nodes all that NCCL is told."""
    ours = nccl_environment(recipe.launch.nccl, machine)
    notes = [
        f"{name}={machine.nccl[name]} in the environment gives way to {value}, the recipe's"
        for name, value in ours.items()
        if machine.nccl.get(name, value) != value
    ]
    told = {**machine.nccl, **ours, **{name: value for name, value in recipe.launch.env.items() if _is_watched(name)}}
    if told and (ours or recipe.launch.nodes > 1):
        notes.append(f"NCCL is told: {' '.join(f'{name}={value}' for name, value in told.items())}")
    return notes


def _is_watched(name: str) -> bool:
    return name.startswith(_WATCHED)


def _said_twice(recipe: Recipe, key: str, variable: str) -> bool:
    return getattr(recipe.launch.nccl, key) is not None and variable in recipe.launch.env


def _twice(variable: str, key: str) -> Problem:
    message = f"launch.env: {variable} is launch.nccl.{key}, which is given, too"
    return Problem(message, "leave one of them out", ("launch", "env", variable))


def _names(text: str | None, present: Sequence[str] | None, name: str, what: str) -> list[Problem]:
    key: KeyPath = ("launch", "nccl", name)
    if text is None:
        return []
    names = Names.parse(text)
    if not all(word.partition(":")[0] for word in names.words):
        return [Problem(f"launch.nccl.{name}: {text!r} names nothing", "write it as NCCL reads it: eth0,eth1", key)]
    if present is None:
        return []
    here = f"here are {', '.join(present)}" if present else "there is none"
    if not present:
        return [Problem(f"launch.nccl.{name}: {text}, and this machine has no {what}", "leave it out", key)]
    absent = [word for word in names.words if not names.matches(word, present)] if not names.exclude else []
    problems = [Problem(f"launch.nccl.{name}: this machine has no {what} {word}", here, key) for word in absent]
    if not problems and not names.chosen(present):
        problems.append(Problem(f"launch.nccl.{name}: {text} leaves no {what}", here, key))
    return problems
