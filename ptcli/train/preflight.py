"""`python -m ptcli.train.preflight RECIPE RESULT`: the checks of `ptcli.run.preflight`, in a process of their own.

Reads the resolved recipe and writes what was found as JSON: `{"problems": [{message, fix, key}], "warnings": [str]}`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import Recipe
from ptcli.train.checks import Finding

Check = Callable[[Recipe], Iterator[Finding]]

CHECKS = ("ptcli.train.checks.rewards:check_rewards", "ptcli.train.checks.adapter:check_adapter")
"""Import strings: a check imports what it needs only when the recipe has something for it."""


def find(recipe: Recipe, checks: Sequence[str] = CHECKS) -> list[Finding]:
    """What all checks find."""
    return [finding for check in checks for finding in _load(check)(recipe)]


def main(argv: Sequence[str]) -> int:
    recipe_file, result = map(Path, argv)
    recipe = load_recipe(recipe_file).recipe
    assert recipe is not None, f"{recipe_file} was written by the plan"
    findings = find(recipe)
    errors = [finding.problem for finding in findings if finding.severity == "error"]
    report = {
        "problems": [{"message": each.message, "fix": each.fix, "key": list(each.key)} for each in errors],
        "warnings": [str(finding.problem) for finding in findings if finding.severity == "warning"],
    }
    result.write_text(json.dumps(report), encoding="utf-8")
    return 0


def _load(check: str) -> Check:
    module, _, name = check.partition(":")
    found: Check = getattr(importlib.import_module(module), name)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
