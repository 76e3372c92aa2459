"""From a profile to findings."""

from __future__ import annotations

from dataclasses import replace

from ptcli.data.model import Context, Finding, Profile
from ptcli.data.rules.facts import Facts
from ptcli.data.rules.registry import SET_RULES
from ptcli.data.rules.settle import settle
from ptcli.data.rules.table import RULES

_ORDER = {id: place for place, id in enumerate(RULES)}


def conclude(profile: Profile, context: Context, total: int | None = None) -> list[Finding]:
    """What is wrong with a split, errors first, in the order of the table of rules.

    `total`: the rows of the split, where the profile is of a sample only. Nothing is then said of the order of rows,
    nor of rows that are left over.
    """
    facts = Facts(context, total)
    found = list(settle(profile, facts))
    if profile.rows:
        found += [finding for rule in SET_RULES for finding in rule(profile, facts) if finding.rule in facts.served]
    elif not found:
        found = [Finding("empty-split", "error", f"the {context.split} split has no rows")]
    return sorted((replace(finding, split=context.split) for finding in found), key=_place)


def _place(finding: Finding) -> tuple[bool, int]:
    return finding.severity != "error", _ORDER.get(finding.rule, 0)
