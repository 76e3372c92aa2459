"""Shared memory, limits of this process, main memory and CPUs."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs

GIB = 2**30
_SHM_A_PROCESS = 10**9
"""Bytes: NCCL, vLLM and data loaders share buffers through it."""
_FILES, _PROCESSES = 4096, 4096
_MEMORY_WARN, _MEMORY_FAIL = 4 * GIB, 1 * GIB
"""Free bytes: a vLLM server and a trainer on a CPU, with a tiny model, take about 3."""
UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True)
class Limits:
    """What one process may take, and what there is. Sizes in bytes, UNLIMITED for no limit."""

    shm_free: int | None
    """None: there is no /dev/shm."""
    files: tuple[int, int]
    """Open files: the limit, and as far as it may be raised."""
    locked: int
    """Locked memory."""
    processes: int
    memory: int
    """Main memory, or what the container may take of it."""
    memory_free: int
    cpus: int
    infiniband: bool = False


def read_limits(needs: Needs) -> Limits:
    """Ask the kernel."""
    memory = psutil.virtual_memory()
    limit, used = container_memory()
    return Limits(
        shm_free=_free(Path("/dev/shm")),
        files=resource.getrlimit(resource.RLIMIT_NOFILE),
        locked=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        processes=resource.getrlimit(resource.RLIMIT_NPROC)[0],
        memory=min(memory.total, limit or memory.total),
        memory_free=min(memory.available, limit - used) if limit else memory.available,
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        infiniband=any(Path("/sys/class/infiniband").glob("*")),
    )


def judge_limits(limits: Limits, needs: Needs, gpus: int = 0) -> list[Finding]:
    """`gpus`: those visible here, each of which gets a process when the recipe leaves their number open."""
    processes = max(needs.processes, gpus if needs.device != "cpu" else 1)
    return [_shm(limits, needs, processes), *_ulimits(limits, needs), *_memory(limits, needs), _cpus(limits, needs)]


def _shm(limits: Limits, needs: Needs, processes: int) -> Finding:
    wanted = processes * _SHM_A_PROCESS
    size = f"{-(-wanted // GIB) + 1}g"
    fix = f"sudo mount -o remount,size={size} /dev/shm; in a container: docker run --shm-size={size}, or --ipc=host"
    if limits.shm_free is None:
        return Finding("shm", "fail", "there is no /dev/shm: data loaders, NCCL and vLLM share memory through it", fix)
    told = f"/dev/shm has {_gb(limits.shm_free)} free"
    if limits.shm_free >= wanted:
        return Finding("shm", "pass", told)
    several = processes > 1 and needs.device == "cuda"
    message = (
        f"{told}; {processes} process{'es' if processes > 1 else ''} want{'' if processes > 1 else 's'} {_gb(wanted)}"
    )
    return Finding("shm", "fail" if several else "warn", message, fix)


def _ulimits(limits: Limits, needs: Needs) -> Iterator[Finding]:
    wrong = []
    if _below(limits.files[0], _FILES):
        top = "" if not _below(limits.files[1], _FILES) else f" (the hard limit is {limits.files[1]}: ask for more)"
        wrong.append(
            Finding(
                "ulimits",
                "warn",
                f"open files: {limits.files[0]}, and shards and sockets take many{top}",
                "ulimit -n 65536",
            )
        )
    if _below(limits.processes, _PROCESSES):
        wrong.append(Finding("ulimits", "warn", f"processes and threads: {limits.processes}", "ulimit -u 65536"))
    if limits.locked != UNLIMITED and (needs.nodes > 1 or limits.infiniband):
        message = f"locked memory: {limits.locked // 1024} KiB, and InfiniBand registers its buffers"
        fix = "ulimit -l unlimited; in a container: docker run --ulimit memlock=-1"
        wrong.append(Finding("ulimits", "warn", message, fix))
    told = f"open files {_shown(limits.files[0])}, processes {_shown(limits.processes)}"
    yield from wrong or [Finding("ulimits", "pass", told)]


def _memory(limits: Limits, needs: Needs) -> Iterator[Finding]:
    told = f"main memory: {_gb(limits.memory_free)} of {_gb(limits.memory)} free"
    copies = needs.processes if needs.device == "cpu" else 1
    wanted = (needs.weights or 0) * copies
    if limits.memory_free < max(wanted, _MEMORY_FAIL):
        least = f"; the model's weights alone are {_gb(wanted)}" if wanted > _MEMORY_FAIL else ""
        yield Finding("memory", "fail", told + least, "end what takes it: ps aux --sort -rss | head")
    elif limits.memory_free < _MEMORY_WARN:
        yield Finding("memory", "warn", f"{told}: little for a trainer and a server", "ps aux --sort -rss | head")
    else:
        yield Finding("memory", "pass", told)


def _cpus(limits: Limits, needs: Needs) -> Finding:
    told = f"{limits.cpus} CPU{'s' if limits.cpus > 1 else ''}"
    if limits.cpus < needs.processes:
        message = f"{told} for {needs.processes} processes, which will wait for each other"
        return Finding("cpus", "warn", message, "give this job more CPUs: one a process, better four a GPU")
    return Finding("cpus", "pass", told)


def _below(limit: int, wanted: int) -> bool:
    return limit != UNLIMITED and limit < wanted


def _shown(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else str(limit)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _free(place: Path) -> int | None:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def container_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Limit and use of the control group, in bytes; 0 for no limit. Version 2, then version 1."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            most = int((root / limit).read_text())
            return (most, int((root / used).read_text())) if most < 2**60 else (0, 0)
    return 0, 0
