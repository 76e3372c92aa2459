"""Profiles of runs of rows that follow each other, put together."""

from __future__ import annotations

from ptcli.data.model import MOST_ROWS, MOST_TALLIES, OTHER_COLUMNS, Profile, Severity, Tally
from ptcli.data.rules.checker import MOST_COLUMN_SETS, MOST_COLUMNS
from ptcli.data.rules.leaves import MOST_LEAVES

MOST_DIGESTS = 20_000_000


def merge(profile: Profile, later: Profile, shift: int | None = None) -> None:
    """Takes into `profile` what was seen in the rows that follow its own.

    `shift` is added to the later one's row numbers: by default the rows of `profile`, so that numbers count rows.
    """
    by = profile.rows if shift is None else shift
    _merge_columns(profile, later, by)
    for key, tally in later.hits.items():
        _merge_tally(profile, key, tally, by)
    for path, types in later.leaves.items():
        if path in profile.leaves or len(profile.leaves) < MOST_LEAVES:
            known = profile.leaves.setdefault(path, {})
            for name, row in types.items():
                known.setdefault(name, row + by)
    profile.labels += later.labels
    room = MOST_DIGESTS - len(profile.digests)
    if room > 0:
        profile.digests += later.digests if len(later.digests) <= room else later.digests[:room]
    profile.counts.update(later.counts)
    if by != profile.rows:
        profile.counts["renumbered"] += 1
    _merge_ends(profile, later)
    profile.rows += later.rows


def _merge_columns(profile: Profile, later: Profile, by: int) -> None:
    for columns, count in later.columns.items():
        known = columns in profile.columns or len(profile.columns) < MOST_COLUMN_SETS
        key = columns if known else OTHER_COLUMNS
        profile.columns[key] += count
        profile.first_columns.setdefault(key, later.first_columns[columns] + by)
    for name, kinds in later.kinds.items():
        if name not in profile.kinds:
            if len(profile.kinds) >= MOST_COLUMNS:
                continue
            profile.kinds[name] = type(kinds)()
        profile.kinds[name].update(kinds)
        for kind in kinds:
            profile.first.setdefault((name, kind), later.first[name, kind] + by)


def _merge_tally(profile: Profile, key: tuple[str, Severity, str], tally: Tally, by: int) -> None:
    if key not in profile.hits and len(profile.hits) >= MOST_TALLIES:
        key = (key[0], key[1], "")
    rows = [row + by for row in tally.rows]
    known = profile.hits.get(key)
    if known is None:
        profile.hits[key] = Tally(tally.count, rows, tally.detail, tally.fix)
        return
    known.count += tally.count
    known.rows += rows[: MOST_ROWS - len(known.rows)]


def _merge_ends(profile: Profile, later: Profile) -> None:
    if later.ends is None:
        return
    if profile.ends is None:
        profile.ends = later.ends
        return
    profile.counts["same completion"] += profile.ends[1] == later.ends[0]
    profile.ends = (profile.ends[0], later.ends[1])
