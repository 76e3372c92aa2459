"""The checks that need the heavy libraries or the user's own code, made in a child before anything is started.

Rewards are imported and called on real rows, adapters are put on a model without weights: `ptcli.train.preflight`. What
is wrong there is wrong with the request (exit 2), since nothing of the run exists yet.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.errors import Problem, RequestError
from ptcli.plan.model import Step
from ptcli.recipe.adapters import known_from_files
from ptcli.run.processes import Processes, adopt_orphans
from ptcli.run.signals import Signals

if TYPE_CHECKING:
    from ptcli.plan.model import Plan
    from ptcli.recipe.loading import SourceMap
    from ptcli.run.panel import View

TICK = 0.05
"""Seconds between two looks at the child."""


def preflight(plan: Plan, sources: SourceMap, *, view: View) -> None:
    """Make the checks, and say what is worth a warning.

    Raises:
        RequestError: with every problem found, each at its place in the recipe.
        Interrupted: on a signal; nothing is left behind.
    """
    if not is_worth_it(plan):
        return
    with tempfile.TemporaryDirectory(prefix="ptcli-preflight-") as folder:
        found = _run(plan, Path(folder), view)
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


def _run(plan: Plan, folder: Path, view: View) -> dict[str, Any]:
    recipe, result, log = folder / "recipe.yaml", folder / "result.json", folder / "preflight.log"
    recipe.write_text(plan.files["recipe.resolved.yaml"], encoding="utf-8")
    argv = (sys.executable, "-m", "ptcli.train.preflight", str(recipe), str(result))
    trainer = next(step for step in plan.steps if step.name == "trainer")
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        group = processes.start(Step("preflight", 0, argv, trainer.env, trainer.gpus), log)
        while group.poll() is None:
            signals.check()
            processes.record()
            view.show("checking rewards and adapter")
            time.sleep(TICK)
    try:
        return dict(json.loads(result.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        warning = f"the checks before the start could not be finished: {last[0] if last else 'the child died'}"
        return {"problems": [], "warnings": [warning]}
