"""One of the two processes of `ptcli doctor`'s all-reduce, which add up a tensor and compare the sum.

    python -m ptcli.doctor.reduce RESULT MEETING RANK BACKEND DEVICE

RESULT gets a line of JSON before each thing that may hang and one at the end; MEETING is a file by which the two find
each other, so that no port is taken. Nothing of ptcli is imported: what is tested is torch and what is below it.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TextIO

SIZES = (1, 1 << 10, 1 << 22)
"""Values of the tensors (float32, up to 16 MiB): small and large ones take different ways."""
_WORLD = 2
_PLACE = re.compile(r"\[[^\]]*\.(cc|cpp|h):\d+\] ")


def main(result: str, meeting: str, rank: int, backend: str, device: str) -> None:
    """Add up with the other process, and say what came of it."""
    with Path(result).open("a", encoding="utf-8", buffering=1) as out:
        try:
            right = _add_up(out, meeting, rank, backend, device)
            _tell(out, done=right)
        except Exception as error:
            _tell(out, error=_last_line(error))


def _add_up(out: TextIO, meeting: str, rank: int, backend: str, device: str) -> bool:
    _tell(out, at="importing torch")
    import torch
    import torch.distributed as dist

    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    _tell(out, at="meeting")
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=_WORLD, timeout=timedelta(minutes=10)
    )
    _tell(out, at="adding up")
    right = True
    for size in SIZES:
        tensor = torch.full((size,), rank + 1.0, device=where)
        dist.all_reduce(tensor)
        right = right and bool((tensor == 3.0).all())
    return right


def _last_line(error: Exception) -> str:
    """Of NCCL's errors the last line tells most. Places in gloo's sources tell nothing."""
    lines = [line.strip() for line in _PLACE.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _tell(out: TextIO, **line: object) -> None:
    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
