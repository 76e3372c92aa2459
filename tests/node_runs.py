"""Runs on several nodes, each of them a real `ptcli train` on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from ptcli.plan.machine import free_ports
from tests.conftest import ROOT, Result


@dataclass
class Node:
    """One ptcli of a run."""

    rank: int
    process: psutil.Popen
    out: Path
    err: Path

    def wait(self, seconds: float = 300) -> Result:
        code = self.process.wait(seconds)
        return Result(code, self.out.read_text(), self.err.read_text())


@contextmanager
def nodes(
    folder: Path, recipes: Sequence[Mapping[str, Any]], *options: str, host: str = "127.0.0.1"
) -> Iterator[list[Node]]:
    """A node for each recipe, which are one and the same where all is well. All are gone at the end, come what may."""
    port = free_ports(count=1)[0]
    started: list[Node] = []
    try:
        for rank, described in enumerate(recipes):
            started.append(_start(rank, described, folder, (*options, "--master", f"{host}:{port}")))
        yield started
    finally:
        for node in started:
            if node.process.poll() is None:
                node.process.terminate()
        for node in started:
            node.process.wait(60)


def _start(rank: int, described: Mapping[str, Any], folder: Path, options: Sequence[str]) -> Node:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"node-{rank}.yaml"
    recipe.write_text(yaml.safe_dump({"name": "nodes"} | dict(described)))
    out, err = folder / f"node-{rank}.out", folder / f"node-{rank}.err"
    argv = [sys.executable, "-m", "ptcli", "train", str(recipe), "--node-rank", str(rank), *options]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = psutil.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=ROOT, env=environ, start_new_session=True
        )
    return Node(rank, process, out, err)
