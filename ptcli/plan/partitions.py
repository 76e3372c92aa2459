"""What `sinfo` says of a cluster, and whether a job could ever start there.

sbatch takes a job that no node can run and leaves it pending for ever (EnforcePartLimits=NO, the default).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ptcli.errors import Problem
from ptcli.plan.slurm import Job
from ptcli.plan.slurm_time import parse_time, spell

FORMAT = "%P|%G|%l|%D|%c"
"""`sinfo --format`: name, generic resources, time limit, nodes, cores; a line for each kind of node."""


@dataclass(frozen=True)
class Partition:
    """One partition."""

    name: str
    default: bool
    gpus: bool
    """Whether a node of it has GPUs that Slurm hands out."""
    seconds: float
    """Longest time of a job."""
    nodes: int
    cpus: int
    """Cores of its largest node."""


def read_partitions(text: str) -> list[Partition]:
    """The partitions in the output of `sinfo --noheader --format=FORMAT`; lines that are none are passed over."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = [each.strip() for each in line.split("|")]
        if len(fields) != 5 or not fields[3].isdigit():
            continue
        new = _partition(*fields)
        old = found.get(new.name)
        found[new.name] = _together(old, new) if old else new
    return list(found.values())


def cluster_problems(partitions: list[Partition], job: Job) -> list[Problem]:
    """Why a job would be refused, or wait for ever. Nothing where the cluster tells nothing."""
    if not partitions:
        return []
    named = job.spec.partition.split(",") if job.spec.partition else []
    chosen = [each for each in partitions if (each.name in named if named else each.default)]
    problems = list(_unknown(named, partitions))
    return problems if problems or not chosen else list(_unfit(chosen, job))


def _partition(name: str, resources: str, limit: str, nodes: str, cpus: str) -> Partition:
    seconds = parse_time(limit)
    cores = cpus.rstrip("+")
    return Partition(
        name=name.rstrip("*"),
        default=name.endswith("*"),
        gpus="gpu" in resources,
        seconds=float("inf") if seconds is None else seconds,
        nodes=int(nodes),
        cpus=int(cores) if cores.isdigit() else 0,
    )


def _together(old: Partition, new: Partition) -> Partition:
    """One partition with several kinds of nodes."""
    cpus, gpus = max(old.cpus, new.cpus), old.gpus or new.gpus
    return Partition(old.name, old.default, gpus, old.seconds, old.nodes + new.nodes, cpus)


def _unknown(named: Iterable[str], partitions: list[Partition]) -> Iterator[Problem]:
    names = [each.name for each in partitions]
    for name in named:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            yield Problem(f"there is no partition {name!r} on this cluster", fix, ("launch", "slurm", "partition"))


def _unfit(chosen: list[Partition], job: Job) -> Iterator[Problem]:
    """What no partition of those that the job may run in can give."""
    where = " and ".join(each.name for each in chosen)
    most = max(each.nodes for each in chosen)
    if job.nodes > most:
        message = f"the job needs {job.nodes} nodes, and {where} has {most}"
        yield Problem(message, "lower launch.nodes, or name another partition", ("launch", "nodes"))
    if job.gpus and not any(each.gpus for each in chosen):
        message = f"the job needs {job.gpus} GPUs on a node, and no node of {where} has any that Slurm knows of"
        yield Problem(message, "name another in launch.slurm.partition", ("launch", "slurm", "partition"))
    cores = max(each.cpus for each in chosen)
    if cores and job.cpus > cores:
        message = f"the job needs {job.cpus} cores on a node, and the largest of {where} has {cores}"
        yield Problem(message, "set launch.slurm.cpus_per_task", ("launch", "slurm", "cpus_per_task"))
    asked = parse_time(job.spec.time) if job.spec.time else None
    longest = max(each.seconds for each in chosen)
    if asked is not None and asked > longest:
        message = f"the job asks for {spell(asked)}, and {where} allows {spell(longest)}"
        fix = "lower launch.slurm.time, and let requeue: true go on where it ends"
        yield Problem(message, fix, ("launch", "slurm", "time"))
