"""What the tallies of a profile amount to: most are findings as they are, some count from a share of the rows on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from ptcli.data.model import Finding, Profile, Severity, Tally
from ptcli.data.rules.facts import Facts

_EQUAL = 0.01
_REPEATED = 0.05
_JSON = 0.9
_GLUED = 0.5
_LEAKED = 0.2
_PADDED = 0.1


def settle(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """The findings of the row rules."""
    for (rule, severity, variant), tally in profile.hits.items():
        found = _finding(rule, severity, tally, profile)
        decide = _SHARES.get((rule, variant)) or _SHARES.get((rule, "*"))
        settled = decide(found, variant, profile, facts) if decide else found
        if settled is not None:
            yield settled
    yield from _mixed_content(profile)


def _finding(rule: str, severity: Severity, tally: Tally, profile: Profile) -> Finding:
    share = tally.count / profile.rows if profile.rows else 0.0
    return Finding(rule, severity, tally.detail, tally.count, tuple(tally.rows), tally.fix, share)


def _equal(found: Finding, variant: str, profile: Profile, facts: Facts) -> Finding | None:
    return found if found.share >= _EQUAL else replace(found, severity="warning")


def _repeated(found: Finding, variant: str, profile: Profile, facts: Facts) -> Finding | None:
    """Short prompts that begin an answer may do so by chance."""
    return found if found.share >= _REPEATED else replace(found, severity="warning")


def _json(found: Finding, variant: str, profile: Profile, facts: Facts) -> Finding | None:
    """Chats as JSON text in a few rows are another mistake: text among chats, or a prompt about JSON."""
    if found.share >= _JSON:
        return found
    if variant in ("messages", "conversations"):
        return replace(found, rule="wrong-value-type")
    return replace(found, severity="warning")


def _more_than(least: float) -> Callable[[Finding, str, Profile, Facts], Finding | None]:
    return lambda found, variant, profile, facts: found if found.share > least else None


def _at_least(least: float) -> Callable[[Finding, str, Profile, Facts], Finding | None]:
    return lambda found, variant, profile, facts: found if found.share >= least else None


def _without_tokenizer(found: Finding, variant: str, profile: Profile, facts: Facts) -> Finding | None:
    """With a tokenizer, rendering decides."""
    return None if facts.context.tokenizer else found


def _text_only(found: Finding, variant: str, profile: Profile, facts: Facts) -> Finding | None:
    """Parts are what a model of images and text takes."""
    return None if facts.context.tokenizer or facts.context.vision else found


def _like_bool(found: Finding, variant: str, profile: Profile, facts: Facts) -> Finding | None:
    """That some labels are 0 or 1 matters little where others are 2."""
    worse = any(rule == "label-not-bool" and severity == "error" for rule, severity, _ in profile.hits)
    return None if worse and found.severity == "warning" else found


_SHARES: Mapping[tuple[str, str], Callable[[Finding, str, Profile, Facts], Finding | None]] = MappingProxyType(
    {
        ("chosen-equals-rejected", ""): _equal,
        ("prompt-duplicated", "short"): _repeated,
        ("json-string-column", "*"): _json,
        ("boundary-whitespace", "glued"): _at_least(_GLUED),
        ("answer-leak", "share"): _more_than(_LEAKED),
        ("padded-input-ids", "run"): _at_least(_PADDED),
        ("content-parts", "*"): _text_only,
        ("unknown-role", "developer"): _without_tokenizer,
        ("label-not-bool", "*"): _like_bool,
    }
)
"""(rule, variant or `*`) -> what becomes of its finding."""


def _mixed_content(profile: Profile) -> Iterator[Finding]:
    """Parts in some rows, text in others."""
    parts = profile.hits.get(("content-parts", "warning", ""))
    chats = max((kinds["chat"] for kinds in profile.kinds.values()), default=0)
    if parts is not None and parts.count < chats:
        message = f"`content` is a list of parts in {parts.count} rows and text in others"
        fix = "write every content as text, or every content as a list of parts"
        share = parts.count / profile.rows
        yield Finding("mixed-format", "error", message, parts.count, tuple(parts.rows), fix, share)
