"""`ptcli doctor`: every check, read at once and judged one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ptcli.doctor.background import in_background
from ptcli.doctor.checks.allreduce import Reduced, choose_pair, judge_reduced, read_reduced
from ptcli.doctor.checks.cluster import judge_accelerate, judge_slurm, read_accelerate, read_slurm
from ptcli.doctor.checks.disk import judge_disk, read_disk
from ptcli.doctor.checks.gpus import judge_gpus, read_gpus
from ptcli.doctor.checks.hub import judge_hub, read_hub
from ptcli.doctor.checks.imports import Probe, judge_cuda, judge_imports, judge_template, read_imports
from ptcli.doctor.checks.limits import judge_limits, read_limits
from ptcli.doctor.checks.packages import judge_packages, read_packages
from ptcli.doctor.checks.ports import judge_ports, read_ports
from ptcli.doctor.checks.toolchain import judge_toolchain, read_toolchain
from ptcli.doctor.findings import Examination, Finding
from ptcli.doctor.needs import Needs

if TYPE_CHECKING:
    from ptcli.run.panel import View

Reader = Callable[[Needs], Any]

READERS: Mapping[str, Reader] = {
    "packages": read_packages,
    "gpus": read_gpus,
    "toolchain": read_toolchain,
    "limits": read_limits,
    "ports": read_ports,
    "disk": read_disk,
    "hub": read_hub,
    "slurm": read_slurm,
    "accelerate": read_accelerate,
}
"""What is read, beside the imports and the all-reduce."""
SECONDS = 15.0
"""Longest that this may take. Those two have limits of their own."""


def examine(needs: Needs, view: View) -> Examination:
    """Look at everything. Nothing is changed; what a check leaves in a temporary folder is removed.

    Raises:
        Interrupted: on a signal.
    """
    began = time.monotonic()
    reading = {name: in_background(read, needs) for name, read in READERS.items()}
    try:
        probe = read_imports(needs, view)
        facts, unread = results(reading, began + SECONDS)
        reduced = read_reduced(choose_pair(needs, probe, facts.get("gpus")), view)
    finally:
        view.close()
    return Examination(tuple(judge(needs, probe, facts, unread, reduced)), needs.recipe, time.monotonic() - began)


def judge(
    needs: Needs,
    probe: Probe,
    facts: Mapping[str, Any],
    unread: Mapping[str, Finding],
    reduced: Reduced | None = None,
) -> Iterator[Finding]:
    """Findings in the order in which things are worth mending; for what could not be read the one that says so."""
    gpus = facts.get("gpus")
    judges: dict[str, Callable[[Any], list[Finding]]] = {
        "packages": lambda found: judge_packages(found, needs),
        "imports": lambda found: [*judge_imports(found), *judge_template(found)],
        "gpus": lambda found: [*judge_gpus(found, needs), *judge_cuda(probe, found.cuda, found.visible)],
        "toolchain": lambda found: judge_toolchain(found, needs),
        "limits": lambda found: judge_limits(found, needs, gpus.visible if gpus else 0),
        "allreduce": lambda found: judge_reduced(found, needs),
        "ports": lambda found: judge_ports(found, needs),
        "disk": lambda found: judge_disk(found, needs),
        "hub": lambda found: judge_hub(found, needs),
        "slurm": lambda found: judge_slurm(found, needs),
        "accelerate": lambda found: judge_accelerate(found, needs),
    }
    yield from (Finding("recipe", "fail", str(replace(problem, fix="")), problem.fix) for problem in needs.problems)
    facts = {**facts, "imports": probe, "allreduce": reduced}
    for name, judge_it in judges.items():
        yield from judge_it(facts[name]) if name in facts else [unread[name]]


def results(reading: Mapping[str, Future[Any]], deadline: float) -> tuple[dict[str, Any], dict[str, Finding]]:
    """Facts of the checks that could be read in time, and a warning for each other: one must not hide the rest."""
    facts, unread = {}, {}
    for name, future in reading.items():
        try:
            facts[name] = future.result(max(deadline - time.monotonic(), 0.1))
        except TimeoutError:
            message = f"gave no answer within {SECONDS:.0f} s"
            unread[name] = Finding(name, "warn", message, "is a network drive or a name server away?")
        except Exception as error:
            message = f"could not be looked at: {type(error).__name__}: {error}"
            unread[name] = Finding(name, "warn", message, "the other lines are not affected; please report this one")
    return facts, unread
