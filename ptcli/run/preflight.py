"""The checks that need the heavy libraries or the user's own code, made in a child before anything is started.

Rewards are imported and called on real rows, adapters are put on a model without weights: `ptcli.train.preflight`. What
is wrong there is wrong with the request (exit 2), since nothing of the run exists yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptcli.errors import Problem, RequestError
from ptcli.recipe.adapters import known_from_files
from ptcli.run.child import ChildDied, run_check

if TYPE_CHECKING:
    from ptcli.plan.model import Plan
    from ptcli.recipe.loading import SourceMap
    from ptcli.run.panel import View


def preflight(plan: Plan, sources: SourceMap, *, view: View) -> None:
    """Make the checks, and say what is worth a warning.

    Raises:
        RequestError: with every problem found, each at its place in the recipe.
        Interrupted: on a signal; nothing is left behind.
    """
    if not is_worth_it(plan):
        return
    try:
        found = run_check(plan, "ptcli.train.preflight", "checking rewards and adapter", view)
    except ChildDied as death:
        view.say(f"warning: the checks before the start could not be finished: {death}")
        return
    for warning in found["warnings"]:
        view.say(f"warning: {warning}")
    problems = [Problem(each["message"], each["fix"], tuple(each["key"])) for each in found["problems"]]
    if problems:
        raise RequestError([sources.locate(problem) for problem in problems])


def is_worth_it(plan: Plan) -> bool:
    """False for a recipe that names no code, and no adapter that needs more than files to check.

    Those of a smoke run's own model were not looked at: the recipe was checked with the model that it names.
    """
    recipe = plan.recipe
    return bool(recipe.rewards) or (recipe.peft is not None and (plan.smoke or not known_from_files(recipe)))
