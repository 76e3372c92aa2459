"""The last lines of a run: what came of it, where it is, and whether the reward rose."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ptcli.events import Event
from ptcli.plan.after import FOLDER
from ptcli.recipe.adapter_folders import UNMERGEABLE
from ptcli.recipe.local_models import adapter_config

_SERVERS = (
    "serve that: vllm serve",
    "or: python -m sglang.launch_server --model-path",
    "or: python -m dynamo.frontend & python -m dynamo.vllm --model",
)


def finished_lines(output_dir: Path, steps: int, events: Sequence[Event] = (), *, merged: bool = False) -> list[str]:
    """What to say of a run that finished. The reward line, where there is one, comes last.

    `merged`: the trained adapter has been merged as well (`after: {merge: true}`).
    """
    place = os.path.relpath(output_dir)
    adapter = adapter_config(output_dir)
    what = "model" if adapter is None else "adapter"
    lines = [f"finished: {steps} steps; {what}, metrics.jsonl and logs in {place}", *_warnings(events)]
    lines += _serving_lines(place, adapter, merged) if adapter else []
    reward = reward_line(read_metric(output_dir / "metrics.jsonl", "reward"))
    return [*lines, reward] if reward else lines


def _serving_lines(place: str, adapter: Mapping[str, Any], merged: bool) -> list[str]:
    """How to come from a trained adapter to a server. Not merged, it would be the base that is served."""
    kind = str(adapter.get("peft_type")).lower()
    if kind in UNMERGEABLE:
        return [f"an adapter of type {kind} cannot be merged: serve it with PEFT"]
    folder = shlex.quote(os.path.join(place, FOLDER))
    if merged:
        lines = [f"merged into its base: {folder}"]
    else:
        lines = [f"merge it into its base before it is served: ptcli merge {shlex.quote(place)} --out {folder}"]
    if str(adapter.get("task_type")) not in ("SEQ_CLS", "TOKEN_CLS"):
        lines += [f"  {command} {folder}" for command in _SERVERS]
    return lines


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
