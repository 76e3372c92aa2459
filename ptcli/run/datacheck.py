"""A run's data before server and trainer: checked, and where that saves anybody a wait, tokenized; each in a child.

What is wrong with the data ends the run with exit code 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptcli.errors import Problem, RequestError, WorkError
from ptcli.run.child import ChildDied, run_check

if TYPE_CHECKING:
    from ptcli.plan.model import Plan
    from ptcli.recipe.loading import SourceMap
    from ptcli.run.panel import View

ACCEPT = "mend the data, or accept a rule by name with data.allow; ptcli validate-data shows more"


def check_data(plan: Plan, sources: SourceMap, *, view: View) -> None:
    """Check the rows against the method, and say what is worth a warning.

    Raises:
        RequestError: for data that are not there.
        WorkError: when the data have errors, each in a line of its own.
        Interrupted: on a signal; nothing is left behind.
    """
    try:
        found = run_check(plan, "ptcli.data.child", "checking the data", view)
    except ChildDied as death:
        raise WorkError(f"the data could not be checked: {death}") from None
    if found["problems"]:
        problems = [Problem(each["message"], each["fix"], tuple(each["key"])) for each in found["problems"]]
        raise RequestError([sources.locate(problem) for problem in problems])
    for line in found["warnings"]:
        view.say(line)
    if found["errors"]:
        view.close()
        raise WorkError("\n".join(["the data would train something else than is meant", *found["errors"], ACCEPT]))


def tokenize_data(plan: Plan, *, view: View) -> None:
    """Tokenize the rows once for all ranks, into the cache, where more than one would wait for another to do it.

    Raises:
        WorkError: for rows that TRL cannot prepare.
        Interrupted: on a signal; nothing is left behind.
    """
    from ptcli.train.prepared import worth_preparing

    if not worth_preparing(plan.recipe):
        return
    try:
        error = run_check(plan, "ptcli.train.prepared", "tokenizing the data", view)["error"]
    except ChildDied as death:
        view.say(f"warning: the rows could not be tokenized ahead, so each machine does it by itself: {death}")
        return
    if error:
        raise WorkError(f"the data cannot be tokenized: {error}")
