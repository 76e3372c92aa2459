"""What a merge may use of the machine."""

from __future__ import annotations

import os
import re

_MOST_WORKERS = 16


def worker_count() -> int:
    """Workers of a stream: one for each core that this process may use, up to what a disk can follow."""
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


def free_memory() -> int | None:
    """Bytes that programs can still take; None where the kernel does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(r"^MemAvailable:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None
