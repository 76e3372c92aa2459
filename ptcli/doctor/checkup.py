"""Check the mathematics in a child, which may import what is heavy, and read what it found."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.doctor.report import Outcome, Report
from ptcli.errors import WorkError
from ptcli.plan.model import Step
from ptcli.run.processes import Processes, ProcessGroup, adopt_orphans
from ptcli.run.signals import Signals

if TYPE_CHECKING:
    from ptcli.run.panel import View

PACKAGES = ("ptcli", "torch", "trl", "transformers", "peft", "accelerate", "datasets")
TICK = 0.05
"""Seconds between two looks at the child."""
_LINES = 15
"""Of what the child printed, when it died."""


def check_math(view: View) -> Report:
    """Check every identity of `ptcli.doctor.math`: on the CPU, offline, in a folder of its own that is removed.

    Raises:
        WorkError: when the child died, with its last lines.
        Interrupted: on a signal; nothing is left behind.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ptcli-doctor-") as folder:
        outcomes = _run(Path(folder), view)
    return Report(outcomes, read_versions(), time.monotonic() - began)


def read_versions() -> dict[str, str]:
    """Package -> version, of those that the mathematics depends on."""
    return {name: found for name in PACKAGES if (found := _version(name))}


def _run(folder: Path, view: View) -> tuple[Outcome, ...]:
    result, log = folder / "result.jsonl", folder / "doctor.log"
    result.touch()
    step = Step("doctor", 0, (sys.executable, "-m", "ptcli.doctor.math", str(result)), _environment(folder), ())
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        child = processes.start(step, log)
        while child.poll() is None:
            signals.check()
            processes.record()
            view.show(_activity(_read(result)))
            time.sleep(TICK)
    view.close()
    return _outcomes(_read(result), child, log)


def _environment(folder: Path) -> Mapping[str, str]:
    """One thread, because the matrices are tiny; no GPU, because float32 there is not always float32; no hub."""
    place = str(folder)
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TMPDIR": place,
        "HF_HOME": place,
        "XDG_CACHE_HOME": place,
    }


def _activity(lines: list[dict[str, Any]]) -> str:
    checking = [line["checking"] for line in lines if "checking" in line]
    return f"checking {checking[-1].split('-')[0]}" if checking else "loading the libraries"


def _outcomes(lines: list[dict[str, Any]], child: ProcessGroup, log: Path) -> tuple[Outcome, ...]:
    outcomes = tuple(Outcome.from_dict(line) for line in lines if "tolerance" in line)
    if child.poll() == 0 and lines and len(outcomes) == lines[0]["count"]:
        return outcomes
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LINES:]
    raise WorkError("\n".join([f"the checks died {_last_step(lines)} (exit code {child.poll()})", *last]))


def _last_step(lines: list[dict[str, Any]]) -> str:
    checking = [line["checking"] for line in lines if "checking" in line]
    return f"while checking {checking[-1]}" if checking else "while loading the libraries"


def _read(result: Path) -> list[dict[str, Any]]:
    """The lines that are complete."""
    complete, _, _ = result.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.splitlines()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
