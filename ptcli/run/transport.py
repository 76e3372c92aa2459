"""What NCCL's log says of the ways it took: pure functions over lines of `NCCL_DEBUG=INFO`.

    node1:71:95 [0] NCCL INFO Using network IB
    node1:71:95 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/RoCE [RO]; OOB ib0:10.0.0.1<0>
    node1:71:95 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA
    node1:71:95 [0] NCCL INFO Channel 02/0 : 0[0] -> 8[0] [send] via NET/Socket/0
    node1:71:95 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read
    node1:71:95 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct

Older versions write the bus id in the brackets and `[GDRDMA]` or `/GDRDMA` at the end.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptcli.plan.model import Plan

_CHANNEL = re.compile(
    r"NCCL INFO Channel \d+(?:/\d+)? : \d+\[[^\]]*\] -> \d+\[[^\]]*\](?: \[(?P<way>send|receive)\])? via (?P<how>\S.*)"
)
_NETWORK = re.compile(r"NCCL INFO Using network (?P<name>\S+(?: [A-Z]\w+)*)")
_DEVICES = re.compile(r"NCCL INFO NET/(?P<kind>IB|Socket) : Using (?P<devices>.*)")
_DEVICE = re.compile(r"\[\d+\](?P<name>[^\s:;]+)")
_GDR = re.compile(r"GDRDMA")
_KINDS = ("NET/IB", "NET/Socket", "P2P/CUMEM", "P2P/IPC", "P2P/direct", "P2P/indirect", "SHM", "NVLS", "COLLNET")
_READ_BYTES = 64 << 20
"""NCCL says this when groups are made: near the beginning of a log."""


@dataclass(frozen=True)
class Transport:
    """The ways between ranks, counted in channels."""

    channels: Counter[str] = field(default_factory=Counter)
    """By kind: `NET/IB`, `NET/Socket`, `P2P/CUMEM`, `SHM`, and what else NCCL names."""
    direct: int = 0
    """Channels over a network whose adapter reads the GPU's memory by itself (GPUDirect RDMA)."""
    networks: tuple[str, ...] = ()
    """What NCCL calls the network that it uses: `IB`, `Socket`, a plugin."""
    devices: tuple[str, ...] = ()
    """Adapters or interfaces."""

    @property
    def over_network(self) -> int:
        return sum(count for kind, count in self.channels.items() if kind.startswith("NET/"))


def find_transport(lines: Iterable[str]) -> Transport:
    """Read the ways that NCCL took from a log."""
    channels: Counter[str] = Counter()
    direct = 0
    networks: dict[str, None] = {}
    devices: dict[str, None] = {}
    for line in lines:
        if "NCCL INFO" not in line:
            continue
        if found := _CHANNEL.search(line):
            if found["way"] != "receive":  # the other end counts it as sent
                channels[_kind(found["how"])] += 1
                direct += bool(found["how"].startswith("NET/") and _GDR.search(found["how"]))
        elif found := _NETWORK.search(line):
            networks[found["name"]] = None
        elif found := _DEVICES.search(line):
            devices |= dict.fromkeys(each["name"] for each in _DEVICE.finditer(found["devices"].partition(";")[0]))
    return Transport(channels, direct, tuple(networks), tuple(devices))


def describe_transport(transport: Transport) -> list[str]:
    """What a person should know of it; empty where the log says nothing."""
    if not transport.channels:
        named = f" ({', '.join(transport.devices)})" if transport.devices else ""
        return [f"NCCL's network: {', '.join(transport.networks)}{named}"] if transport.networks else []
    ways = ", ".join(f"{kind} ({count} channel{'s'[: count > 1]})" for kind, count in transport.channels.most_common())
    devices = f"; devices {', '.join(transport.devices)}" if transport.devices else ""
    lines = [f"NCCL went over {ways}{devices}"]
    network = transport.over_network
    if network and transport.direct:
        share = "all" if transport.direct == network else f"{transport.direct} of {network}"
        lines.append(f"GPUDirect RDMA ([GDRDMA]) on {share} network channels")
    elif transport.channels["NET/IB"]:
        lines.append(
            "warning: InfiniBand without GPUDirect RDMA (no [GDRDMA]): data pass through main memory; look at the "
            "nvidia-peermem module and launch.nccl.gdr_level"
        )
    if transport.channels["NET/Socket"]:
        lines.append("warning: NCCL used TCP sockets between nodes; with InfiniBand look at launch.nccl.ib_hca")
    return lines


def transport_lines(logs: Sequence[Path]) -> list[str]:
    """`describe_transport` of log files together. A log that cannot be read says nothing."""
    return describe_transport(find_transport(line for log in logs for line in _read(log)))


def told_of(plan: Plan, logs: Path) -> list[str]:
    """What a run's logs say of it, where NCCL was told to say something."""
    trainer = next((step for step in plan.steps if step.name == "trainer"), None)
    level = (trainer.env.get("NCCL_DEBUG") if trainer else None) or os.environ.get("NCCL_DEBUG") or ""
    if level.upper() not in ("INFO", "TRACE"):
        return []
    return transport_lines([*sorted(logs.glob("trainer*.log")), logs / "rollouts.log"])


def _kind(how: str) -> str:
    for kind in _KINDS:
        if how.startswith(kind):
            return kind
    if "shared memory" in how:  # NCCL 2.4
        return "SHM"
    parts = how.split("/")
    return "/".join(parts[:2]) if parts[0] == "NET" else parts[0]


def _read(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            return file.read(_READ_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
