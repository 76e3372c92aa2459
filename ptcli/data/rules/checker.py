"""Rows go in, a Profile comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ptcli.data.model import OTHER_COLUMNS, Context, Hit, Kind, Profile, Row
from ptcli.data.rules import leaves
from ptcli.data.rules.digests import digest
from ptcli.data.rules.facts import Facts, Plan, Seen, plan_of
from ptcli.data.rules.labels import row_label, row_step_labels
from ptcli.data.rules.registry import ROW_RULES, RowRule

MOST_COLUMN_SETS = 256
MOST_COLUMNS = 1024
_MOST_PLANS = 1024


class Checker:
    """Looks at rows one by one, in order. Nothing that a row holds makes it raise."""

    def __init__(self, context: Context) -> None:
        self.facts = Facts(context)
        self.profile = Profile()
        self._plans: dict[tuple[str, ...], tuple[Plan, tuple[RowRule, ...]]] = {}
        self._label = _LABELS.get(self.facts.label_form)
        self._neighbours = self.facts.traits.kl_batches
        self._nested = self.facts.rewarded or self.facts.traits.chats

    def rows(self, rows: Iterable[Row], first: int = 0) -> None:
        """Looks at rows that follow each other, of which the first has the number `first`."""
        for number, row in enumerate(rows, first):
            self.row(row, number)

    def row(self, row: Row, number: int) -> None:
        """Looks at one row. `number` counts from the first row of this profile."""
        profile = self.profile
        plan, rules = self._plans.get(tuple(row)) or self._plan(row)
        if number != profile.rows:
            profile.counts["renumbered"] = 1
        profile.rows += 1
        self._count(row, plan, number)
        self._bulk(row, plan)
        seen = Seen(row, plan, self.facts)
        if self._nested:
            leaves.record(profile, seen, number)
        hits: dict[tuple[str, str, str], Hit] = {}
        for rule in rules:
            for hit in rule(seen):
                hits.setdefault((hit.rule, hit.severity, hit.variant), hit)
        for hit in hits.values():
            if hit.rule in self.facts.served:
                profile.hit(hit, number)

    def _plan(self, row: Row) -> tuple[Plan, tuple[RowRule, ...]]:
        plan = plan_of(tuple(sorted(row)), self.facts)
        rules = tuple(rule for rule, serves in ROW_RULES if serves(self.facts, plan))
        if len(self._plans) < _MOST_PLANS:
            self._plans[tuple(row)] = plan, rules
        return plan, rules

    def _count(self, row: Row, plan: Plan, number: int) -> None:
        profile = self.profile
        columns = (
            plan.columns
            if plan.columns in profile.columns or len(profile.columns) < MOST_COLUMN_SETS
            else OTHER_COLUMNS
        )
        profile.columns[columns] += 1
        profile.first_columns.setdefault(columns, number)
        for name, value in row.items():
            kind = kind_of(value)
            kinds = profile.kinds.get(name)
            if kinds is None:
                if len(profile.kinds) >= MOST_COLUMNS:
                    continue
                kinds = profile.kinds[name] = Counter()
            if kind not in kinds:
                profile.first[name, kind] = number
            kinds[kind] += 1

    def _bulk(self, row: Row, plan: Plan) -> None:
        profile = self.profile
        profile.digests.append(digest([row[name] for name in plan.read]))
        if self._label is not None and plan.form == self.facts.label_form:
            profile.labels.append(self._label(row, self.facts.traits.strict_labels))
            if self._neighbours:
                add_neighbour(profile, digest([row["completion"]]))


def add_neighbour(profile: Profile, completion: int) -> None:
    """Takes note of a completion, given by its digest, beside the one before it."""
    if profile.ends is None:
        profile.ends = (completion, completion)
        return
    profile.counts["same completion"] += profile.ends[1] == completion
    profile.ends = (profile.ends[0], completion)


def kind_of(value: Any) -> Kind:
    """What a JSON value is."""
    kind = _KINDS.get(type(value))
    if kind is not None:
        return kind
    if not isinstance(value, list):
        return next((kind for kind_type, kind in _KINDS.items() if isinstance(value, kind_type)), "other")
    if not value:
        return "empty list"
    return "chat" if isinstance(value[0], dict) else "list"


_KINDS: dict[type, Kind] = {type(None): "null", str: "str", bool: "bool", int: "int", float: "float", dict: "dict"}


_LABELS = {"unpaired": row_label, "steps": row_step_labels}
