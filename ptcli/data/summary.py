"""What the rows of a recipe are like as a whole, whether that is wrong or not: for the end of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ptcli.data.model import Profile
from ptcli.data.rules.duplicates import found_in, repeated


def summarize_rows(train: Profile, evaluation: Mapping[str, Profile]) -> Iterator[str]:
    """Lines: duplicates, the balance of labels where there are some, and what evaluation shares with training.

    `evaluation`: split -> its profile.
    """
    if train.digests:
        yield f"rows that repeat another: {_share(repeated(train), len(train.digests))}"
    if train.labels:
        good, bad = train.labels.count(1), train.labels.count(0)
        rest = len(train.labels) - good - bad
        yield f"labels: {good:,} true, {bad:,} false{f', {rest:,} other' if rest else ''}"
    for split, profile in evaluation.items():
        if profile.digests:
            yield f"rows of data.{split} that are in data.train: " + _share(
                len(found_in(profile.digests, train.digests)), len(profile.digests)
            )


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.1%})"
