"""The documentation of the rules: one page of Markdown each, in `rules/pages`."""

from __future__ import annotations

from pathlib import Path

from ptcli.data.model import Severity
from ptcli.data.rules.table import RULES
from ptcli.errors import Problem, RequestError
from ptcli.recipe.suggest import quote_nearest

_PAGES = Path(__file__).parent / "rules" / "pages"


def page(rule: str) -> str:
    """The page on a rule, Markdown that ends in a line break. Raises RequestError for an id that no rule has."""
    if rule not in RULES:
        fix = quote_nearest(rule, RULES) or "a report of ptcli validate-data names rules by their ids"
        raise RequestError(Problem(f"there is no rule `{rule}`", fix))
    return (_PAGES / f"{rule}.md").read_text(encoding="utf-8")


def index() -> list[tuple[str, Severity, str]]:
    """Every rule's id, the worst that it says, and what it is about in a few words, in the order of the table."""
    return [(rule.id, rule.severity, rule.summary) for rule in RULES.values()]
