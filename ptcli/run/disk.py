"""Room on disk for checkpoints: what one takes, computed before the start, and looked at again before each save.

Bytes of a checkpoint, for W weights of which T are trained, in formats of w bytes (transformers 5.17, DeepSpeed 0.19):

                        weights            optimizer
    single, DDP         w W                2 w T: Adam's two moments have the parameters' format
    FSDP                w W + w W          2 w T; the weights are written a second time, to go on from
    ZeRO                w W (+ w W)        12 T: a float32 copy and two float32 moments; below ZeRO-3 the weights twice
    adapter             w T in the place of w W, twice as above

Without the optimizer (`save_only_model`) the first w W is all. Tokenizer and configs are counted with 32 MiB.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ptcli.errors import Problem, WorkError
from ptcli.plan.arguments import argument
from ptcli.plan.memory.trainer import count_weights
from ptcli.plan.model import Plan
from ptcli.recipe.model import Recipe
from ptcli.run.checkpoints import Kind, list_checkpoints
from ptcli.run.sameness import plan_kind, zero_stage

_BESIDES = 32 << 20
"""Tokenizer, configs, the trainer's state and random states."""
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
_ADAM = re.compile(r"adamw?(_torch(_fused|_npu_fused)?|_apex_fused|_hf)?$")
"""Names of `optim` with two moments for each weight. Of others nothing is counted: what is said is the least."""
_FULL = 4
"""Bytes of a weight, or of a moment, in DeepSpeed's optimizer."""
_KEPT_AT_LEAST = 2
"""Checkpoints that there is to be room for where their number is not limited."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a run writes."""

    checkpoint: int
    final: int
    """The model or adapter at the end."""


def estimate(
    parameters: int,
    trained: int,
    *,
    adapter: bool,
    width: int,
    kind: Kind,
    stage: int = 0,
    save_only_model: bool = False,
    moments: int = 2,
) -> Sizes:
    """What a checkpoint and the final model take at least. `width`: bytes of a weight; `stage` of ZeRO; `moments` of
    the optimizer."""
    saved = width * (trained if adapter else parameters)
    final = saved + _BESIDES
    if save_only_model:
        return Sizes(final, final)
    again = saved if kind == "fsdp" or (kind == "deepspeed" and stage < 3) else 0
    optimizer = _FULL * (1 + moments) if kind == "deepspeed" else moments * width
    return Sizes(final + again + optimizer * trained, final)


@dataclass(frozen=True)
class Need:
    """What a run will take, and what it must have to begin."""

    least: int
    """One checkpoint and the final model."""
    most: int
    """All that are kept at once."""
    count: int | None
    """Checkpoints that are kept at once; None: all of them, and how many is unknown."""


def need(sizes: Sizes, *, limit: int | None, saves: int | None, there: int = 0) -> Need:
    """`limit`: save_total_limit, where a new checkpoint is written before an old one goes. `saves`: checkpoints to
    come, if known; 0 for a run that saves none. `there`: bytes of checkpoints that will go as new ones come."""
    if saves == 0:
        return Need(sizes.final, sizes.final, 0)
    kept = limit + 1 if limit else None
    count = min(kept, saves) if kept and saves else kept or saves
    least = sizes.checkpoint + sizes.final
    most = (count or _KEPT_AT_LEAST) * sizes.checkpoint + sizes.final
    return Need(least, max(least, most - (there if limit else 0)), count)


def check_disk(plan: Plan, free: int | None = None) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """Problems and notes of a plan whose checkpoints may not fit. `free`: bytes, instead of those of the disk."""
    sizes = sizes_of(plan)
    if sizes is None:
        return (), ()
    there = sum(map(measure, list_checkpoints(plan.output_dir)))
    limit = argument(plan.recipe, "save_total_limit")
    wanted = need(sizes, limit=limit, saves=count_saves(plan.recipe), there=there)
    free = free_bytes(plan.output_dir) if free is None else free
    place = f"{plan.output_dir} has {spell(free)} of room"
    if free < wanted.least:
        what = "the final model takes" if wanted.count == 0 else "a checkpoint and the final model take"
        return (Problem(f"{place}, and {what} {spell(wanted.least)}", _FIX, ("output_dir",)),), ()
    if free >= wanted.most:
        return (), ()
    kept = f"{wanted.count} checkpoints" if wanted.count else f"{_KEPT_AT_LEAST} checkpoints, and more are kept,"
    each = f"{kept} of {spell(sizes.checkpoint)} and the final model take {spell(wanted.most)}"
    return (), (f"{place}; {each}: the run ends when there is no room for the next one ({_FIX})",)


def sizes_of(plan: Plan) -> Sizes | None:
    """Bytes that a plan's checkpoint and final model take; None where the size of the model is unknown."""
    recipe = plan.recipe
    counted = count_weights(recipe)
    if counted is None:
        return None
    return estimate(
        *counted,
        adapter=recipe.trains_adapter,
        width=_WIDTHS.get(recipe.model.dtype or "", 4),
        kind=plan_kind(plan),
        stage=zero_stage(plan),
        save_only_model=bool(argument(recipe, "save_only_model", False)),
        moments=2 if _ADAM.match(str(argument(recipe, "optim", "adamw_torch"))) else 0,
    )


def count_saves(recipe: Recipe) -> int | None:
    """Checkpoints that a run will write; None where that depends on its rows."""
    if str(argument(recipe, "save_strategy", "steps")) == "no":
        return 0
    steps, every = argument(recipe, "max_steps", -1), argument(recipe, "save_steps", 500)
    if str(argument(recipe, "save_strategy", "steps")) != "steps" or steps <= 0 or every <= 0:
        return None
    return math.ceil(steps / (every if every >= 1 else max(1, math.ceil(steps * every))))


class Room:
    """The look before each save of one run."""

    def __init__(self, least: int = 0):
        """`least`: bytes that a checkpoint takes at least, until one was measured."""
        self._needed = least

    def check(self, checkpoint: Path) -> None:
        """Raise WorkError where there is no room for the checkpoint that is about to be written."""
        kept = "earlier checkpoints are kept: free some room, and go on with --resume"
        _require(checkpoint.name, self._needed, checkpoint.parent, free_bytes(checkpoint), kept)

    def learn(self, taken: int) -> None:
        """What a checkpoint really took."""
        self._needed = taken


def check_final(run: Path, needed: int) -> None:
    """The look before the last save: raise WorkError where the run directory has no room for a model of `needed` bytes.

    It takes the place of a model that is there already.
    """
    free = free_bytes(run) + sum(file.stat().st_size for file in run.glob("*model*.safetensors"))
    kept = "the checkpoints are kept: free some room, and go on with --resume"
    lost = "no checkpoint is there to go on from: free some room, and train again"
    _require("the final model", needed, run, free, kept if list_checkpoints(run) else lost)


def _require(what: str, needed: int, run: Path, free: int, way_on: str) -> None:
    if free < needed:
        raise WorkError(f"no room for {what}: it takes {spell(needed)}, and {run} has {spell(free)}; {way_on}")


def measure(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def free_bytes(path: Path) -> int:
    """Bytes that may be written where `path` is, or is to be."""
    nearest = next(each for each in (path, *path.parents) if os.path.exists(each))
    return shutil.disk_usage(nearest).free


def spell(count: int) -> str:
    """`3.2 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


_FIX = "free some, choose another output_dir, or set training.save_total_limit or training.save_only_model"
