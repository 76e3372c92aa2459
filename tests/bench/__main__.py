"""`make bench`: what ptcli costs, as ratios against the plain tools, in interleaved rounds of one run.

Prints the median of the paired ratios and the limit it must keep; exits 1 when one is broken. With words as arguments,
only the comparisons that have one of them in their name; $BENCH_ROUNDS sets the rounds. The data checks have claims of
their own (`data.py`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import merge
from tests.bench.data import check_claims

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "7"))


def wall_seconds(argv: Sequence[str]) -> float:
    """Seconds that a command takes from start to end."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def step_seconds(argv: Sequence[str]) -> float:
    """CPU seconds a training step, as the callback in `clock.py` measured them."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder, "clock.json")
        # One thread on both sides: with two, spinning threads count as work and drown the difference.
        env = os.environ | {"BENCH_CLOCK": str(clock), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [word.replace("OUT", str(Path(folder, "run"))) for word in argv]
        result = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
        if result.returncode:
            sys.exit(f"{' '.join(command)}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
        return float(json.loads(clock.read_text()))


@dataclass(frozen=True)
class Comparison:
    """One claim: `ours` costs at most `limit` times `theirs`."""

    name: str
    measure: Callable[[Sequence[str]], float]
    ours: Sequence[str]
    theirs: Sequence[str]
    limit: float


def _training(method: str, data: str) -> Comparison:
    from ptcli.builtin import MODEL, data_path

    return Comparison(
        f"CPU seconds a step, {method}",
        step_seconds,
        [str(BIN / "ptcli"), "train", str(HERE / f"{method}.yaml"), "output_dir=OUT"],
        [sys.executable, str(HERE / f"plain_{method}.py"), str(MODEL), str(data_path(data)), "OUT"],
        1.03,
    )


def comparisons() -> list[Comparison]:
    grpo = str(HERE.parents[1] / "recipes" / "grpo.yaml")
    return [
        Comparison("ptcli --help / trl --help", wall_seconds, [str(BIN / "ptcli"), "--help"],
                   [str(BIN / "trl"), "--help"], 1.5),
        Comparison("train --dry-run / bare imports", wall_seconds,
                   [str(BIN / "ptcli"), "train", grpo, "--dry-run", "--assume-gpus", "8x80GiB"],
                   [sys.executable, "-c", "import typer, pydantic, omegaconf, rich"], 3.0),
        _training("sft", "arithmetic-messages"),
        _training("grpo", "arithmetic"),
    ]  # fmt: skip


def main() -> int:
    broken = 0
    wanted = sys.argv[1:]
    for comparison in comparisons():
        if wanted and not any(word in comparison.name for word in wanted):
            continue
        pairs = [(comparison.measure(comparison.ours), comparison.measure(comparison.theirs)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(mine / other for mine, other in pairs)
        kept = ratio <= comparison.limit
        broken += not kept
        verdict = "ok" if kept else "BROKEN"
        figures = f"{ours:8.4f} s / {theirs:8.4f} s = {ratio:5.3f}"
        print(f"{comparison.name:32} {figures}  (limit {comparison.limit})  {verdict}", flush=True)
    broken += check_claims(wanted)
    if not wanted or any(word in merge.NAME for word in wanted):
        broken += merge.main()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
