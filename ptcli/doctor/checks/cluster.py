"""Slurm, and accelerate's own settings, which ptcli does not use."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs

_SECONDS = 6.0
_PROGRAMS = ("sbatch", "sinfo", "squeue")


@dataclass(frozen=True)
class Slurm:
    """What Slurm says of itself."""

    missing: tuple[str, ...] = ()
    """Of its programs."""
    partitions: tuple[str, ...] = ()
    """Names of those that are up."""
    error: str = ""
    """Why sinfo tells nothing."""


def read_slurm(needs: Needs) -> Slurm:
    """Ask sinfo for its partitions."""
    missing = tuple(name for name in _PROGRAMS if shutil.which(name) is None)
    if missing:
        return Slurm(missing)
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%R %a"], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Slurm(error=f"sinfo does not answer within {_SECONDS:.0f} s")
    if done.returncode:
        return Slurm(error=next(iter(done.stderr.strip().splitlines()[-1:]), f"sinfo: exit code {done.returncode}"))
    rows = [line.split() for line in done.stdout.splitlines()]
    return Slurm(partitions=tuple(dict.fromkeys(row[0] for row in rows if len(row) == 2 and row[1] == "up")))


def judge_slurm(slurm: Slurm, needs: Needs) -> list[Finding]:
    """Its absence matters only to a recipe with `launch.slurm`."""
    if len(slurm.missing) == len(_PROGRAMS):
        if needs.slurm:
            fix = "run this on a login node of the cluster"
            return [Finding("slurm", "fail", "the recipe has launch.slurm, and Slurm is not on PATH", fix)]
        return [Finding("slurm", "pass", "no Slurm here, which only --launcher slurm needs")]
    if slurm.missing or slurm.error:
        message = slurm.error or f"not on PATH: {', '.join(slurm.missing)}"
        fix = "sinfo must list the partitions: see SLURM_CONF, and scontrol ping"
        return [
            Finding("slurm", "fail" if needs.slurm else "warn", f"Slurm is installed and does not work: {message}", fix)
        ]
    if needs.partition and not set(needs.partition.split(",")) <= set(slurm.partitions):
        message = f"launch.slurm.partition {needs.partition} is not up here"
        return [
            Finding(
                "slurm",
                "fail",
                message,
                f"launch.slurm.partition={' or '.join(slurm.partitions) or 'none is up: sinfo'}",
            )
        ]
    return [Finding("slurm", "pass", f"partitions: {', '.join(slurm.partitions) or 'none is up'}")]


def read_accelerate(needs: Needs) -> Path | None:
    """Where `accelerate config` has left its answers; None when it has not."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = Path(home).expanduser() / "accelerate"
    found = [folder / f"default_config.{suffix}" for suffix in ("yaml", "json")]
    return next((path for path in found if path.is_file()), None)


def judge_accelerate(path: Path | None, needs: Needs) -> list[Finding]:
    """Said because `accelerate launch` without ptcli would follow it (axolotl#394)."""
    if path is None:
        return []
    return [Finding("accelerate", "pass", f"{path} is ignored: ptcli passes a config and every count of its own")]
