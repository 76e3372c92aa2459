"""The model as it is when training starts, where no path names it: an adapter merged into its base, or random weights.

Such a model is written to `start/` in the run directory and is a folder like any other from then on. TRL loads its
references from the policy's path, a new adapter is saved with the path of its base, and a quantised policy is
quantised while it is loaded: all of them would silently take the unmerged base otherwise.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

from transformers import set_seed

from ptcli.methods import METHODS, Head
from ptcli.recipe.adapter_folders import TASKS, adapter_folder
from ptcli.recipe.local_models import adapter_config
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.train.models import load_model
from ptcli.train.processors import load_processor

FOLDER = "start"
TICK = 0.2
"""Seconds between two looks for the folder that another process writes."""


def with_start(recipe: Recipe) -> Recipe:
    """The recipe with a model that can be loaded by its path; the same one where it could before.

    Called on every rank before anything is distributed: the first of each machine writes, the others wait for it.
    """
    if not needs_start(recipe.model):
        return recipe
    folder = Path(recipe.output_dir).absolute() / FOLDER
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _write_once(recipe, folder)
    while not folder.exists():
        time.sleep(TICK)
    given = {"path": str(folder), "adapter": None, "revision": None, "from_": "weights"}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=given)})


def needs_start(spec: ModelSpec) -> bool:
    """True when the model to train is not what lies at its path, nor at that of its base."""
    return spec.from_ == "config" or (spec.adapter == "merge" and adapter_folder(spec) is not None)


def _write_once(recipe: Recipe, folder: Path) -> None:
    """Written beside and then moved, so that the folder is whole as soon as it is there.

    On a file system that several machines share, the first of each writes; who is ready first wins.
    """
    if folder.exists():
        return
    written = folder.with_name(f".{FOLDER}.{socket.gethostname()}.{os.getpid()}")
    set_seed(recipe.seed)  # random weights are those of the recipe
    whole = recipe.model.model_copy(update={"quantization": None})
    load_model(whole, _head(recipe)).save_pretrained(written)
    load_processor(recipe.model, generates=False).save_pretrained(written)
    try:
        written.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(written)


def _head(recipe: Recipe) -> Head:
    """The head to merge with: the adapter's own. One of a language model may become the start of a reward model."""
    folder = adapter_folder(recipe.model)
    task = (adapter_config(folder) or {}).get("task_type") if folder else TASKS[METHODS[recipe.method].head]
    return next((head for head, name in TASKS.items() if name == task), "causal_lm")
