"""A merge plan as text for people, and as JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptcli.merge.machine import free_memory
from ptcli.merge.model import Merged, MergePlan
from ptcli.merge.publish import gigabytes

_WAYS = {
    "stream": "streamed, tensor by tensor",
    "handover": "handed over to PEFT, with the whole model in memory",
    "consolidate": "put together from the parts of a sharded checkpoint, tensor by tensor",
}


def plan_lines(plan: MergePlan, out: Path | None) -> Iterator[str]:
    """What `--dry-run` prints."""
    yield f"{'shards' if plan.mode == 'consolidate' else 'adapter':10}{plan.adapter}"
    revision = f" at {plan.base_revision}" if plan.base_revision else ""
    place = f" ({plan.base})" if str(plan.base) != plan.base_name else ""
    yield f"base      {plan.base_name}{revision}{place}"
    yield f"way       {_WAYS[plan.mode]}{f': {plan.reason}' if plan.reason else ''}"
    yield from _what(plan)
    free = free_memory()
    yield f"memory    about {gigabytes(plan.memory)}{f', of which {gigabytes(free)} are free' if free else ''}"
    if out is not None:
        yield f"out       {out}"
    for note in all_notes(plan):
        yield f"note: {note}"


def all_notes(plan: MergePlan) -> Iterator[str]:
    """What is to be said before the work starts."""
    yield from plan.notes
    free = free_memory()
    if plan.mode == "handover" and free is not None and plan.memory > free:
        yield f"PEFT takes about {gigabytes(plan.memory)} of memory, and {gigabytes(free)} are free"


def _what(plan: MergePlan) -> Iterator[str]:
    if not plan.shards:
        return
    files = f"{len(plan.shards)} file{'s' * (len(plan.shards) != 1)}, {gigabytes(plan.nbytes)}"
    if plan.mode != "stream":
        yield f"weights   {files}{' of the base' if plan.mode == 'handover' else ''}"
        return
    changed = sum(1 for each in plan.outputs if each.operations)
    copied = sum(1 for each in plan.outputs) - changed
    kinds = Counter(type(step).__name__ for each in plan.outputs for step in each.operations)
    told = ", ".join(f"{count} {_KINDS[kind]}" for kind, count in kinds.items())
    yield f"weights   {changed} tensors changed ({told}), {copied} copied; {files}"


_KINDS = {"AddLora": "with B A", "AddBias": "biases", "Replace": "replaced", "ReplaceRows": "with new rows"}


def plan_json(plan: MergePlan, out: Path | None) -> dict[str, Any]:
    """What `--dry-run --json` prints."""
    changed = sum(1 for each in plan.outputs if each.operations)
    return {
        "mode": plan.mode,
        "reason": plan.reason,
        "adapter": str(plan.adapter),
        "base": plan.base_name,
        "out": None if out is None else str(out),
        "tensors_merged": changed if plan.mode != "handover" else None,
        "tensors_copied": sum(1 for each in plan.outputs) - changed if plan.mode != "handover" else None,
        "bytes": plan.nbytes,
        "memory": plan.memory,
        "files": [shard.name for shard in plan.shards] if plan.mode != "handover" else None,
        "config_changes": dict(plan.config_changes),
        "notes": list(all_notes(plan)),
    }


def merged_lines(merged: Merged, plan: MergePlan) -> Iterator[str]:
    """What is said of a merge that is done."""
    counts = f"merged: {merged.tensors_merged} tensors merged, {merged.tensors_copied} copied"
    if plan.mode == "consolidate":
        counts = f"consolidated: {merged.tensors_copied} tensors"
    cost = f"{gigabytes(plan.nbytes)} in {merged.seconds:.1f} s"
    yield f"{counts}, {cost}; the model is in {os.path.relpath(merged.out)}"
    yield merged.verification or "not verified"
