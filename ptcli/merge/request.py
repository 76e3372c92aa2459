"""From what a person typed for `ptcli merge` to a plan: of a merge, or of putting a sharded checkpoint together."""

from __future__ import annotations

from ptcli.merge.model import MergePlan
from ptcli.merge.plan import plan_merge
from ptcli.merge.sharded import find_sharded


def plan_request(
    path: str,
    *,
    base: str | None,
    dtype: str | None,
    max_shard_size: str | None,
    allow_missing: bool,
    download: bool,
) -> MergePlan:
    """The plan for an adapter, a run directory or a sharded checkpoint. Raises RequestError with all that is wrong."""
    sharded = find_sharded(path)
    if sharded is None:
        return plan_merge(
            path,
            base=base,
            dtype=dtype,
            max_shard_size=max_shard_size,
            allow_missing=allow_missing,
            download=download,
        )
    from ptcli.merge.consolidate import plan_consolidation

    return plan_consolidation(sharded, base=base, dtype=dtype, max_shard_size=max_shard_size)
