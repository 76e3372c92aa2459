"""The last lines of a run: what came of it, where it is, and whether the reward rose."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean


def finished_lines(output_dir: Path, steps: int) -> list[str]:
    """What to say of a run that finished. The reward line, where there is one, comes last."""
    place = os.path.relpath(output_dir)
    lines = [f"finished: {steps} steps; model, metrics.jsonl and logs in {place}"]
    reward = reward_line(read_metric(output_dir / "metrics.jsonl", "reward"))
    return [*lines, reward] if reward else lines


def reward_line(rewards: Sequence[float]) -> str | None:
    """Mean reward of the first and of the last tenth of the logged steps; None for fewer than ten."""
    tenth = len(rewards) // 10
    if not tenth:
        return None
    return f"reward: first tenth {fmean(rewards[:tenth]):.3f}, last tenth {fmean(rewards[-tenth:]):.3f}"


def read_metric(metrics: Path, name: str) -> list[float]:
    """Every finite value of a metric in `metrics.jsonl`, in order; empty when the file is not there."""
    if not metrics.is_file():
        return []
    rows = (json.loads(line) for line in metrics.read_text().splitlines() if line.strip())
    return [row[name] for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
