"""What follows a training that has succeeded: the merge that `after: {merge: true}` asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ptcli.errors import Problem
from ptcli.plan.model import Step
from ptcli.recipe.adapter_folders import UNMERGEABLE, adapter_folder
from ptcli.recipe.local_models import adapter_config
from ptcli.recipe.model import Recipe

FOLDER = "merged"
"""Where in the run directory the merged model goes."""


def after_step(recipe: Recipe, output_dir: Path) -> Step | None:
    """The command that merges the run's adapter. On the CPU: it is bound by the disk, and the GPUs may be busy."""
    if not recipe.after.merge:
        return None
    argv = ("ptcli", "merge", str(output_dir), "--out", str(output_dir / FOLDER), "--force")
    return Step("merge", 0, argv, {"CUDA_VISIBLE_DEVICES": ""}, ())


def after_problems(recipe: Recipe) -> Iterator[Problem]:
    """Problems of `after`: nothing to merge, or nothing that can be merged."""
    if not recipe.after.merge:
        return
    if not recipe.trains_adapter:
        message = "`after.merge` merges an adapter, and this recipe trains none: its final model is whole"
        yield Problem(message, "leave it out, or add `peft:`", ("after", "merge"))
    kind = _kind(recipe)
    if kind in UNMERGEABLE:
        message = f"an adapter of type {kind} adds to the model's input and changes no weights: there is no merge of it"
        yield Problem(message, "leave `after.merge` out", ("after", "merge"))


def _kind(recipe: Recipe) -> str:
    """The adapter's PEFT type; "" where it is not known."""
    if recipe.peft is not None:
        return str(recipe.peft.get("type", "lora")).lower()
    folder = adapter_folder(recipe.model) if recipe.model.adapter == "continue" else None
    return str(((adapter_config(folder) if folder else None) or {}).get("peft_type", "")).lower()
