"""Rows that occur more than once, in one split or in two."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice

from ptcli.data.model import MOST_ROWS, Context, Finding, Profile
from ptcli.data.rules.facts import Facts

_MOST = 0.01
_FEW = 50_000
"""Up to so many digests a set costs less than importing numpy."""
_LOOKED_AT = 500_000
"""Rows among which the first that repeat another are looked for."""


def duplicate_rows(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Exact duplicates of what the trainer reads, more than one in a hundred."""
    count = repeated(profile)
    rows = len(profile.digests)
    if rows == 0 or count <= _MOST * rows:
        return
    what = "prompts" if facts.repeats_prompts else "rows"
    first = () if profile.counts["renumbered"] else tuple(islice(_first_repeated(profile), MOST_ROWS))
    message = f"{count} of {rows} {what} ({count / rows:.0%}) repeat an earlier one exactly"
    yield Finding("duplicate-rows", "warning", message, count, first, "drop the copies", count / rows)


def repeated(profile: Profile) -> int:
    """Rows that repeat an earlier one."""
    digests = profile.digests
    if len(digests) <= _FEW:
        return len(digests) - len(set(digests))
    import numpy as np

    ordered = np.sort(np.frombuffer(digests, dtype=np.uint64))
    return int((ordered[1:] == ordered[:-1]).sum())


def _first_repeated(profile: Profile) -> Iterator[int]:
    """The first rows that repeat one before them, among the first half a million."""
    met: set[int] = set()
    for number, digest in enumerate(islice(profile.digests, _LOOKED_AT)):
        if digest in met:
            yield number
        met.add(digest)


def found_in(digests: array[int], others: array[int]) -> list[int]:
    """The places of those digests that are among the others."""
    if len(digests) + len(others) <= _FEW:
        known = set(others)
        return [place for place, digest in enumerate(digests) if digest in known]
    if not digests or not others:
        return []
    import numpy as np

    both = np.isin(np.frombuffer(digests, np.uint64), np.frombuffer(others, np.uint64), kind="sort")
    return np.flatnonzero(both).tolist()


def overlap(train: Profile, evaluation: Profile, context: Context) -> list[Finding]:
    """Evaluation rows that are training rows too. `context` is that of the evaluation split."""
    rows = found_in(evaluation.digests, train.digests)
    count, total = len(rows), len(evaluation.digests)
    if not count:
        return []
    first = () if evaluation.counts["renumbered"] else tuple(rows[:MOST_ROWS])
    message = f"{count} of {total} rows ({count / total:.0%}) of the {context.split} split are training rows too"
    fix = "take them out of one of the two: they make the evaluation look better than it is"
    return [Finding("duplicate-rows", "warning", message, count, first, fix, count / total, context.split)]


SET_RULES = (duplicate_rows,)
