"""A merge from its plan to a published folder. Light: what computes is imported when it is its turn."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ptcli.errors import WorkError
from ptcli.merge.base import INDEX
from ptcli.merge.model import Merged, MergePlan, Progress, Shard, Verification
from ptcli.merge.publish import published, synced_meanwhile
from ptcli.recipe.local_models import BadWeights

if TYPE_CHECKING:
    from ptcli.merge.verifier import Verifier


_BEHIND = 5
"""Niceness of what writes beside what verifies, whose imports take longer and cannot be shared out."""


def run_merge(
    plan: MergePlan,
    out: Path,
    *,
    force: bool = False,
    verify: bool | Verifier = True,
    serve_check: bool = False,
    progress: Progress = lambda *_: None,
) -> Merged:
    """Write, verify and publish a merged model.

    `force`: replace a model that is at `out`. `verify`: whether to, or the process that shall, which has begun already.
    `progress` is called from several threads, one at a time.

    Raises:
        RequestError: `out` cannot be written; nothing was.
        WorkError: the merge failed or did not verify; `out` is as it was.
    """
    start = time.monotonic()
    with published(out, plan.nbytes, force=force, read=(plan.base, plan.adapter)) as folder:
        if plan.mode == "stream":
            merged, copied, verification = _stream(plan, folder, progress, verify=verify)
        else:
            merged, copied, verification = _convert(plan, folder, progress, verify=verify)
        if serve_check:
            from ptcli.merge.serve_check import check_serving

            check_serving(plan, folder, progress)
    return Merged(
        out=str(out),
        base=plan.base_name,
        tensors_merged=merged,
        tensors_copied=copied,
        verified=verification is not None and verification.complete,
        max_abs_diff=verification.max_abs_diff if verification else None,
        seconds=round(time.monotonic() - start, 3),
        verification=verification.line() if verification else "",
    )


def _stream(
    plan: MergePlan, folder: Path, progress: Progress, *, verify: bool | Verifier
) -> tuple[int, int, Verification | None]:
    """Write all there is; returns how many tensors were changed or added, how many are the base's, and what was found.

    What verifies it begins at once, and does what it can while the weights are written.
    """
    from ptcli.merge.serving import write_serving_files
    from ptcli.merge.stream import stream
    from ptcli.merge.verifier import begun_verifier

    with begun_verifier() if verify is True else nullcontext(verify or None) as verifying:
        try:
            write_serving_files(plan, folder)
        except BadWeights as error:
            raise WorkError(f"the base changed while it was read: a file {error}") from error
        if verifying:
            verifying.prepare(plan, folder)
        with synced_meanwhile(folder):
            stream(plan, folder, progress, niceness=_BEHIND if verifying else 0)
            write_index(plan.shards, folder)
            found = verifying.finish(progress) if verifying else None
    merged = sum(1 for each in plan.outputs if each.operations)
    return merged, sum(1 for _ in plan.outputs) - merged, found


def _convert(
    plan: MergePlan, folder: Path, progress: Progress, *, verify: bool | Verifier
) -> tuple[int, int, Verification | None]:
    """The same where the work is transformers' and PEFT's, in this process."""
    from ptcli.merge.serving import write_serving_files

    if verify is not True and verify:
        verify.end()  # it would import once more what is imported here
    merged, copied = _write(plan, folder, progress)
    write_serving_files(plan, folder)
    with synced_meanwhile(folder):
        return merged, copied, _verify(plan, folder, progress) if verify else None


def _write(plan: MergePlan, folder: Path, progress: Progress) -> tuple[int, int]:
    """Write the weights; returns how many tensors were changed or added, and how many are the base's."""
    if plan.mode == "consolidate":
        from ptcli.merge.consolidate import consolidate

        written = consolidate(plan, folder, progress)
        write_index(plan.shards, folder)
        return 0, written
    from ptcli.merge.handover import count_changed, hand_over

    hand_over(plan, folder, progress)
    return count_changed(plan, folder)


def _verify(plan: MergePlan, folder: Path, progress: Progress) -> Verification:
    from ptcli.merge.verify import verify_merge

    return verify_merge(plan, folder, progress=progress)


def write_index(shards: tuple[Shard, ...], folder: Path) -> None:
    """The index of several files, with the true number of bytes; none for a single file that all readers find."""
    if len(shards) == 1:
        return
    places = {each.name: shard.name for shard in shards for each in shard.tensors}
    index = {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": dict(sorted(places.items())),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
