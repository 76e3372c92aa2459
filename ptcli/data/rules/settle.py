"""What the tallies of a profile amount to: most are findings as they are, some count from a share of the rows on."""

from __future__ import annotations

from collections.abc import Iterator

from ptcli.data.model import Finding, Profile, Severity, Tally
from ptcli.data.rules.facts import Facts

Key = tuple[str, Severity, str]


def settle(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """The findings of the row rules."""
    for (rule, severity, _variant), tally in profile.hits.items():
        yield finding(rule, severity, tally, profile)


def finding(rule: str, severity: Severity, tally: Tally, profile: Profile) -> Finding:
    """A tally as a finding."""
    share = tally.count / profile.rows if profile.rows else 0.0
    return Finding(rule, severity, tally.detail, tally.count, tuple(tally.rows), tally.fix, share)
