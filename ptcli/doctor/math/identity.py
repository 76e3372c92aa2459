"""An identity: a formula of a paper, and a function that measures how far the library is from it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ptcli.doctor.report import Outcome

LOSS = 1e-5
"""Tolerance of a loss: float32 sums are within a tenth of it, and a wrong term is not."""


class Unexercised(Exception):
    """The batch did not reach the branch that the identity is about, so that agreement would show nothing."""


@dataclass(frozen=True)
class Identity:
    """A formula and the function that measures it. The fields are those of `Outcome`."""

    id: str
    statement: str
    source: str
    methods: tuple[str, ...]
    tolerance: float
    measure: Callable[[], float]
    """Largest deviation between what the library computes and the formula; may raise anything."""

    def check(self) -> Outcome:
        """Measure it. Whatever is raised is a failure of this identity and of no other."""
        began = time.monotonic()
        deviation, error = None, ""
        try:
            deviation = float(self.measure())
            if not math.isfinite(deviation):
                deviation, error = None, f"the deviation is {deviation}"
        except Exception as problem:
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
        seconds = round(time.monotonic() - began, 2)
        about = (self.id, self.statement, self.source, self.methods, self.tolerance)
        return Outcome(*about, deviation=deviation, error=error, seconds=seconds)


def identity(
    name: str, statement: str, *, source: str, methods: tuple[str, ...] = (), tolerance: float = LOSS
) -> Callable[[Callable[[], float]], Identity]:
    """Make an Identity of the function below it."""
    return lambda measure: Identity(name, statement, source, methods, tolerance, measure)
