"""Lengths of time as Slurm writes them."""

from __future__ import annotations

import re

_LENGTH = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_ENDLESS = frozenset({"infinite", "unlimited"})

FORMATS = "write minutes (90), hours:minutes:seconds (24:00:00) or days-hours (2-00)"


def parse_time(text: str) -> float | None:
    """Seconds of a time limit; infinity for one that is none. None for what Slurm cannot read.

    `90` is minutes, `90:00` minutes and seconds, `1:30:00` hours first; after `2-`, days, it is hours first always.
    `sbatch --time`, `sinfo` and `squeue` share this.
    """
    if text.lower() in _ENDLESS or text == "0":
        return float("inf")
    match = _LENGTH.fullmatch(text)
    if match is None:
        return None
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return float(((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds)
    hours, minutes, seconds = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
    return float((hours * 60 + minutes) * 60 + seconds)


def looks_like_hours(text: str) -> bool:
    """Whether a person may have meant hours and minutes where Slurm reads minutes and seconds: `12:00`."""
    minutes, colon, seconds = text.partition(":")
    return bool(colon) and minutes.isdigit() and seconds.isdigit() and int(minutes) <= 96


def spell(seconds: float) -> str:
    """`12 minutes`, `1 day 6 hours`."""
    if seconds == float("inf"):
        return "no limit"
    left = int(seconds)
    words = []
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, left = divmod(left, size)
        if count:
            words.append(f"{count} {unit}{'' if count == 1 else 's'}")
    return " ".join(words) or "no time"
