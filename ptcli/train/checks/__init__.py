"""Checks before a run that need the heavy libraries or the user's code. Each is a function from recipe to findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ptcli.errors import Problem


@dataclass(frozen=True)
class Finding:
    """Something that a check found."""

    problem: Problem
    """With the recipe's key; its place in the file is found by whoever knows the sources."""
    severity: Literal["error", "warning"] = "error"
