"""Two processes add up a tensor, as those of a run will (E4 of the field's reports).

Between some GPUs NCCL hangs, or gives a wrong sum, although everything says that they reach each other (trl#3157,
halo#17): a run then stands still in its first step. What does not work is tried once more with the setting that mends
it most often.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.doctor.checks.gpus import Gpus
from ptcli.doctor.checks.imports import Probe
from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs
from ptcli.doctor.pairs import Pair, pair_of_gpus
from ptcli.plan.model import Step
from ptcli.plan.nccl import read_interfaces
from ptcli.run.processes import Processes, adopt_orphans
from ptcli.run.signals import Signals
from ptcli.run.transport import transport_lines

if TYPE_CHECKING:
    from ptcli.run.panel import View

SECONDS = 60.0
"""Without news from either process, that are a hang."""
CHILD = (sys.executable, "-m", "ptcli.doctor.reduce")
_TICK = 0.05
_NAMES = {"gloo": "gloo", "nccl": "NCCL"}
_LOOPBACK = "lo"
_REMEDIES = (
    (r"[Oo]ut of memory", "see the line `gpus`, and end what holds their memory"),
    (r"shared memory|/dev/shm|No space left", "see the line `shm`"),
    (
        r"address for|ifname|[Ii]nterface|[Bb]ootstrap",
        "ip -brief address; launch.nccl.interface=NAME of one that is up",
    ),
)
"""What the error says, and what mends it."""
_FIXES = {
    "gloo": "ip -brief address; launch.env.GLOO_SOCKET_IFNAME=NAME of an interface that is up",
    "nccl": "see the lines `p2p`, `acs` and `shm`; try launch.env.NCCL_SHM_DISABLE=1, and where there is an NVSwitch: "
    "sudo systemctl restart nvidia-fabricmanager",
}


@dataclass(frozen=True)
class Sum:
    """What came of adding up."""

    problem: str = ""
    """Why it did not work, in words that follow a colon; empty when it did."""
    ways: str = ""
    """What NCCL says of the ways that it took."""


@dataclass(frozen=True)
class Reduced:
    """What was found for a pair."""

    pair: Pair
    sum: Sum
    setting: str = ""
    """`NAME=value`, with which it was tried once more because it had not worked."""
    second: Sum | None = None


def choose_pair(needs: Needs, probe: Probe, gpus: Gpus | None) -> Pair | None:
    """Which two: the recipe's, or without one the first two GPUs. None where there are no two, or torch does not work:
    other lines say so."""
    torch = next((each for each in probe.imported if each.module == "torch" and not each.error), None)
    if torch is None:
        return None
    pair = needs.pair
    if needs.recipe is None and gpus and gpus.visible > 1 and not any(device.mig for device in gpus.devices):
        pair = pair_of_gpus()
    if pair and pair.backend == "nccl" and torch.facts.get("gpus", 0) < 2:
        return None
    return pair


def read_reduced(pair: Pair | None, view: View, *, seconds: float = SECONDS) -> Reduced | None:
    """Let the two add up, and once more with another setting where that did not work.

    Raises:
        Interrupted: on a signal; nothing is left behind.
    """
    if pair is None:
        return None
    what = f"adding up a tensor over {_NAMES[pair.backend]}: {pair.names}"
    found = _attempt(pair, what, view, seconds)
    setting = _setting(pair, os.environ) if found.problem else None
    if setting is None:
        return Reduced(pair, found)
    name, value = setting
    members = tuple(replace(member, env={**member.env, name: value}) for member in pair.members)
    changed = replace(pair, members=members)  # type: ignore[arg-type]
    again = _attempt(changed, f"{what}, with {name}={value}", view, seconds)
    return Reduced(pair, found, f"{name}={value}", again)


def judge_reduced(reduced: Reduced | None, needs: Needs) -> list[Finding]:
    """Nothing to say where there are no two."""
    if reduced is None:
        return []
    pair, backend = reduced.pair, _NAMES[reduced.pair.backend]
    if not reduced.sum.problem:
        told = reduced.sum.ways or f"over {backend}"
        return [Finding("allreduce", "pass", f"{pair.names} add up a tensor; {told}")]
    message = f"{pair.names} cannot add up a tensor over {backend}: {reduced.sum.problem}"
    if reduced.second and not reduced.second.problem:
        fix = f"launch.env.{reduced.setting}"
        fix += "" if needs.recipe else f" in every recipe, or export {reduced.setting}"
        return [Finding("allreduce", "fail", f"{message}; with {reduced.setting} they can", fix)]
    found = next((fix for pattern, fix in _REMEDIES if re.search(pattern, reduced.sum.problem)), None)
    state = "warn" if found == _REMEDIES[0][1] else "fail"  # whoever holds the memory may be gone by then
    return [Finding("allreduce", state, message, found or _FIXES[pair.backend])]  # type: ignore[arg-type]


def _setting(pair: Pair, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """What most often mends it; None where it is set already, or cannot be meant."""
    if pair.backend == "nccl":
        name, value = "NCCL_P2P_DISABLE", "1"
    elif pair.one_node and _LOOPBACK in read_interfaces():
        name, value = "GLOO_SOCKET_IFNAME", _LOOPBACK
    else:
        return None
    is_set = all({**environ, **member.env}.get(name) == value for member in pair.members)
    return None if is_set else (name, value)


# --- the two processes -----------------------------------------------------------------------------------------------


def _attempt(pair: Pair, activity: str, view: View, seconds: float) -> Sum:
    try:
        with tempfile.TemporaryDirectory(prefix="ptcli-doctor-") as folder:
            return _run(pair, Path(folder), activity, view, seconds)
    except OSError as error:
        return Sum(f"it was not tried, for want of a temporary folder: {error.strerror or error}")


def _run(pair: Pair, folder: Path, activity: str, view: View, seconds: float) -> Sum:
    results = [folder / f"result-{rank}.jsonl" for rank in (0, 1)]
    logs = [folder / f"{rank}.log" for rank in (0, 1)]
    for path in results:
        path.touch()
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        children = [
            processes.start(_step(pair, rank, folder, results[rank]), logs[rank]) for rank in range(len(results))
        ]
        lines, news = [_read(path) for path in results], time.monotonic()
        while not (ended := _ended(lines, [child.poll() for child in children])):
            signals.check()
            processes.record()
            view.show(activity)
            if time.monotonic() - news > seconds:
                return Sum(f"it hangs, without news for {seconds:.0f} s {_places(lines)}")
            time.sleep(_TICK)
            before, lines = lines, [_read(path) for path in results]
            news = time.monotonic() if lines != before else news
    return replace(ended, ways="; ".join(transport_lines(logs)))


def _step(pair: Pair, rank: int, folder: Path, result: Path) -> Step:
    """Named after a run's processes, which are two as well."""
    member = pair.members[rank]
    env = {"OMP_NUM_THREADS": "1", "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "INFO"), **member.env}
    argv = (*CHILD, str(result), str(folder / "meeting"), str(rank), pair.backend, member.device)
    return Step("rollouts" if rank else "trainer", 0, argv, env, ())


def _ended(lines: Sequence[list[dict[str, Any]]], codes: Sequence[int | None]) -> Sum | None:
    """What came of it, as soon as it can be said; None while both are at it."""
    last = [each[-1] if each else {} for each in lines]
    errors = [each["error"] for each in last if "error" in each]
    if errors:
        return Sum(errors[0])
    if all("done" in each for each in last):
        right = all(each["done"] for each in last)
        return Sum() if right else Sum("the sum is wrong")
    for each, code in zip(last, codes, strict=True):
        if code is not None and "done" not in each:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Sum(f"a process ended with {how} {_places([[each]])}")
    return None


def _places(lines: Sequence[list[dict[str, Any]]]) -> str:
    """Where they were: `while importing torch`, `while meeting`."""
    places = dict.fromkeys(next((line["at"] for line in reversed(each) if "at" in line), "starting") for each in lines)
    return f"while {' and '.join(places)}"


def _read(result: Path) -> list[dict[str, Any]]:
    """The lines that are complete."""
    complete, _, _ = result.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.splitlines()]
