"""A check in a process of its own, before anything of a run is started: it reads the recipe and leaves JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.plan.launch import RECIPE_FILE
from ptcli.plan.model import Step
from ptcli.run.processes import Processes, adopt_orphans
from ptcli.run.signals import Signals

if TYPE_CHECKING:
    from ptcli.plan.model import Plan
    from ptcli.run.panel import View

TICK = 0.05
"""Seconds between two looks at the child."""
PROGRESS = "progress"
"""File beside the result in which a child may say how far it is."""


class ChildDied(Exception):
    """The child left no result. The message is the last thing that it said."""


def run_check(plan: Plan, module: str, activity: str, view: View) -> dict[str, Any]:
    """What `python -m MODULE RECIPE RESULT` writes to RESULT, in the trainer's environment.

    Raises:
        ChildDied: when it wrote nothing that is JSON.
        Interrupted: on a signal; nothing is left behind.
    """
    with tempfile.TemporaryDirectory(prefix="ptcli-check-") as folder:
        return _run(plan, module, activity, view, Path(folder))


def _run(plan: Plan, module: str, activity: str, view: View, folder: Path) -> dict[str, Any]:
    recipe, result, log = folder / RECIPE_FILE, folder / "result.json", folder / "child.log"
    recipe.write_text(plan.files[RECIPE_FILE], encoding="utf-8")
    argv = (sys.executable, "-m", module, str(recipe), str(result))
    trainer = next(step for step in plan.steps if step.name == "trainer")
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        group = processes.start(Step("check", 0, argv, trainer.env, trainer.gpus), log)
        while group.poll() is None:
            signals.check()
            processes.record()
            view.show(f"{activity}{_progress(folder)}")
            time.sleep(TICK)
    try:
        return dict(json.loads(result.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ChildDied(last[0] if last else "the child died") from None


def _progress(folder: Path) -> str:
    try:
        return f": {(folder / PROGRESS).read_text(encoding='utf-8')}"
    except (OSError, ValueError):
        return ""
