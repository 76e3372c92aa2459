"""Whether the installed TRL ships a method's trainer. Its experimental ones come and go without a deprecation.

Looked up in TRL's source, which is not imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ptcli.errors import Problem
from ptcli.methods import Method
from ptcli.recipe.code import NotFound, find_object


def trl_version() -> str:
    """Version of the installed TRL; empty when there is none."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return ""


def is_shipped(trainer: str) -> bool:
    """Whether the installed TRL has the trainer (`module:Class`)."""
    try:
        find_object(trainer, follow=False)
    except NotFound:
        return False
    return True


def not_shipped(method: Method) -> Problem | None:
    """What stands in the way of a method whose trainer the installed TRL does not have."""
    if is_shipped(method.trainer):
        return None
    installed = trl_version()
    if not installed:
        return Problem("TRL is not installed", "install ptcli with its dependencies", ("method",))
    name = method.trainer.partition(":")[2]
    message = f"{method.name} is not in the installed TRL {installed}, which has no {name}"
    if not method.last_release:
        return Problem(message, "install the TRL that ptcli pins (requirements/)", ("method",))
    fix = f"TRL {method.last_release} was the last release that had it: pip install trl=={method.last_release}"
    return Problem(message, fix, ("method",))
