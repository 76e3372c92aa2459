"""The last lines of a run: what came of it, where it is, and whether the reward rose."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ptcli.events import Event


def finished_lines(output_dir: Path, steps: int, events: Sequence[Event] = ()) -> list[str]:
    """What to say of a run that finished. The reward line, where there is one, comes last."""
    place = os.path.relpath(output_dir)
    lines = [f"finished: {steps} steps; model, metrics.jsonl and logs in {place}", *_warnings(events)]
    reward = reward_line(read_metric(output_dir / "metrics.jsonl", "reward"))
    return [*lines, reward] if reward else lines


def _warnings(events: Sequence[Event]) -> list[str]:
    """One line for all warnings: `warnings: clipped_completions (step 5), kl (2, first at step 7)`."""
    counts = Counter(event.guard for event in events)
    first = {event.guard: event.step for event in reversed(events)}
    parts = [
        f"{guard} ({f'{count}, first at step' if count > 1 else 'step'} {first[guard]})"
        for guard, count in counts.items()
    ]
    return [f"warnings: {', '.join(parts)}; see `events` in status.json"] if parts else []


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
