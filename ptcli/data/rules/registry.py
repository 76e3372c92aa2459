"""The row rules and the rules about whole sets, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ptcli.data.model import Finding, Hit, Profile
from ptcli.data.rules import columns, duplicates
from ptcli.data.rules.facts import Facts, Seen
from ptcli.data.rules.shapes import Shape

RowRule = Callable[[Seen], Iterator[Hit]]
SetRule = Callable[[Profile, Facts], Iterator[Finding]]
ServesRows = Callable[[Facts, Shape | None], bool]

ROW_RULES: tuple[tuple[RowRule, ServesRows], ...] = ()
"""Functions that look at one row, and for which methods and shapes they are called."""

SET_RULES: tuple[SetRule, ...] = (*columns.SET_RULES, *duplicates.SET_RULES)
"""Functions that look at a profile."""
