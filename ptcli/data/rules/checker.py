"""Rows go in, a Profile comes out."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

from ptcli.data.model import Context, Hit, Kind, Profile, Row
from ptcli.data.rules.facts import Facts, Seen, read_columns
from ptcli.data.rules.registry import ROW_RULES, RowRule
from ptcli.data.rules.shapes import Shape, shapes_of

MOST_COLUMN_SETS = 256
MOST_COLUMNS = 1024
_MOST_PLANS = 1024

_encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True)
class _Plan:
    """What follows from a row's column names alone."""

    columns: tuple[str, ...]
    shape: Shape | None
    read: tuple[str, ...]
    rules: tuple[RowRule, ...]


class Checker:
    """Looks at rows one by one, in order. Nothing that a row holds makes it raise."""

    def __init__(self, context: Context) -> None:
        self.facts = Facts(context)
        self.profile = Profile()
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._label = _LABELS.get(self.facts.label_form)
        self._neighbours = self.facts.traits.kl_batches

    def rows(self, rows: Iterable[Row], first: int = 0) -> None:
        """Looks at rows that follow each other, of which the first has the number `first`."""
        for number, row in enumerate(rows, first):
            self.row(row, number)

    def row(self, row: Row, number: int) -> None:
        """Looks at one row. `number` counts from the first row of this profile."""
        profile = self.profile
        plan = self._plans.get(tuple(row)) or self._plan(row)
        profile.rows += 1
        self._count(row, plan, number)
        self._bulk(row, plan)
        seen = Seen(row, self.facts, plan.shape, plan.columns, plan.read)
        hits: dict[tuple[str, str, str], Hit] = {}
        for rule in plan.rules:
            for hit in rule(seen):
                hits.setdefault((hit.rule, hit.severity, hit.variant), hit)
        for hit in hits.values():
            if hit.rule in self.facts.served:
                profile.hit(hit, number)

    def _plan(self, row: Row) -> _Plan:
        columns = tuple(sorted(row))
        shapes = shapes_of(columns, self.facts.shapes)
        shape = shapes[0] if shapes else None
        rules = tuple(rule for rule, serves in ROW_RULES if serves(self.facts, shape))
        plan = _Plan(columns, shape, read_columns(shape, columns, self.facts), rules)
        if len(self._plans) < _MOST_PLANS:
            self._plans[tuple(row)] = plan
        return plan

    def _count(self, row: Row, plan: _Plan, number: int) -> None:
        profile = self.profile
        columns = plan.columns if plan.columns in profile.columns or len(profile.columns) < MOST_COLUMN_SETS else ()
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

    def _bulk(self, row: Row, plan: _Plan) -> None:
        profile = self.profile
        profile.digests.append(digest([row[name] for name in plan.read]))
        if self._label is not None and plan.shape is not None and plan.shape.form == self.facts.label_form:
            profile.labels.append(self._label(row, self.facts.traits.strict_labels))
            if self._neighbours:
                self._neighbour(digest([row["completion"]]))

    def _neighbour(self, completion: int) -> None:
        profile = self.profile
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
    if not value:
        return "empty list"
    return "chat" if isinstance(value[0], dict) else "list"


_KINDS: dict[type, Kind] = {type(None): "null", str: "str", bool: "bool", int: "int", float: "float", dict: "dict"}


def digest(values: list[Any]) -> int:
    """xxh3_64 of values as JSON with sorted keys; of their names for Python where JSON cannot hold them."""
    try:
        return xxhash.xxh3_64_intdigest(_encode(values))
    except Exception:  # lone surrogates, numbers beyond 64 bits, deep nesting
        text = ""
        with contextlib.suppress(RecursionError):
            text = ascii(values)
        return xxhash.xxh3_64_intdigest(text.encode())


def _truth(value: Any, strict: bool) -> int:
    if value is True or value is False:
        return int(value)
    if strict or not isinstance(value, int | float | str):
        return 2
    return {0: 0, 1: 1, "0": 0, "1": 1}.get(value, 2)


def _row_label(row: Row, strict: bool) -> int:
    value = row["label"]
    return 2 if isinstance(value, str) else _truth(value, strict)


def _step_labels(row: Row, strict: bool) -> int:
    """0 or 1 where all steps have that label."""
    labels = row["labels"]
    if not isinstance(labels, list):
        return 2
    found = {_truth(label, strict) for label in labels}
    return found.pop() if len(found) == 1 else 2


_LABELS = {"unpaired": _row_label, "steps": _step_labels}
