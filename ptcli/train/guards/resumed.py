"""Whether a run that goes on is where it was: the first figure that is logged against the last ones before.

C10 of the field's reports: a checkpoint whose weights are not loaded (lerobot#3459: an adapter wrapped again), or are
loaded in part (peft#1453), trains on from the start without a word. Pure, like the other decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from ptcli.recipe.model import ResumedLossGuard
from ptcli.train.guards import measures
from ptcli.train.guards.decisions import Finding, explain
from ptcli.train.guards.measures import Logs

_COMPARED = 20
"""Changes from one logged step to the next that tell how much is noise."""
_ENOUGH = 10
"""Logged steps below which nobody can tell."""
_FACTOR = 2.0
"""Times the largest of those changes that is no longer noise. With 20 of them, and losses that differ by a factor of
2.7 from one step to the next (log-normal), fewer than 1 in 100 resumed runs would be warned of for nothing."""


class ResumedLoss:
    """Judges once. A fall is what training is for, and as steep as can be where an epoch begins: only what is worse,
    a higher loss or a lower reward, is told of. An online method is judged by its reward: its loss is about 0 however
    good it is."""

    def __init__(self, guard: ResumedLossGuard, history: Sequence[Logs], step: int, *, online: bool):
        """`history`: what was logged before, with its `step`, as a checkpoint's trainer_state.json has it; `step`:
        finished steps."""
        self._guard, self._step = guard, step
        self._name, self._before = "", list[tuple[float, float]]()
        for name in (*measures.REWARD, "loss") if online else ("loss",):
            known = [(row["step"], value) for row in history if (value := measures.number(row, name)) is not None]
            if len(known) >= _ENOUGH:
                self._name, self._before = name, known[-_COMPARED - 1 :]
                break

    def judge(self, logs: Logs, step: int) -> Finding | None:
        """What was found at this logged step, if it is the first one with the figure."""
        value = measures.number(logs, self._name)
        if value is None or not self._before:
            return None
        (*_, (_, last)), noise = self._before, self._noise(step)
        self._before = []
        rise = last - value if self._name in measures.REWARD else value - last
        if not noise or rise <= max(noise, self._guard.threshold * abs(last)):
            return None
        what = "reward" if self._name in measures.REWARD else "loss"
        seen = (
            f"the first {what} after going on from step {self._step} is {value:.4g}, and the last one before was "
            f"{last:.4g}; from one logged step to the next it changed by {noise / _FACTOR:.2g} at most"
        )
        return Finding(value, explain(seen, _CAUSES, _CHANGE))

    def _noise(self, step: int) -> float:
        """The largest change that is none. The mean of few steps varies more than that of many: between two saves there
        may be no whole number of logged steps."""
        steps = median(later[0] - earlier[0] for earlier, later in pairwise(self._before))
        largest = max(abs(later[1] - earlier[1]) for earlier, later in pairwise(self._before))
        return _FACTOR * largest * math.sqrt(max(1.0, steps / max(1, step - self._step)))


_CAUSES = (
    "weights that were not loaded as they were saved (another base model, adapter or precision; a checkpoint that was "
    "edited or copied in part), rows of another kind than before, or a reward or beta that was changed"
)
_CHANGE = (
    "compare model, data and package versions (stack.json) with those of the run before, go on from an earlier "
    "checkpoint with --resume-from; if the next logged steps are as they were before, this was chance"
)
