"""`python -m ptcli.data.child RECIPE RESULT`: the check of `ptcli.run.datacheck`, in a process of its own.

Reads the resolved recipe and writes what was found as JSON: `{"problems": [{message, fix, key}], "errors": [line],
"warnings": [line]}`. How far it is stands in the file `progress` beside the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptcli.data.check import Checked, check
from ptcli.data.report import finding_lines
from ptcli.data.request import check_what_data_need
from ptcli.errors import RequestError
from ptcli.recipe.loading import load_recipe
from ptcli.run.child import PROGRESS


def main(argv: Sequence[str]) -> int:
    recipe_file, result = map(Path, argv)
    recipe = load_recipe(recipe_file, references=check_what_data_need).recipe
    assert recipe is not None, f"{recipe_file} was written by the plan"

    def tell(split: str, done: int, total: int | None) -> None:
        with suppress(OSError):
            result.with_name(PROGRESS).write_text(progress_text(split, done, total), encoding="utf-8")

    found: dict[str, Any] = {"problems": [], "errors": [], "warnings": []}
    try:
        found |= _lines(check(recipe, progress=tell, hide_torch=True))
    except RequestError as error:
        found["problems"] = [{"message": p.message, "fix": p.fix, "key": list(p.key)} for p in error.problems]
    result.write_text(json.dumps(found), encoding="utf-8")
    return 0


def progress_text(split: str, done: int, total: int | None) -> str:
    """`data.train, 43 %`, or the megabytes where the whole is not known."""
    return f"data.{split}, {100 * done // total} %" if total else f"data.{split}, {done // 2**20:,} MiB"


def _lines(checked: Checked) -> dict[str, list[str]]:
    found = {"error": [], "warning": []}  # type: dict[str, list[str]]
    for finding in checked.report.findings:
        found[finding.severity] += [line for line in finding_lines([finding], checked.place) if line]
    return {"errors": found["error"], "warnings": [*found["warning"], *(f"note: {n}" for n in checked.report.notes)]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
