"""Sharded checkpoints of full fine-tunes: where one is, of which kind, and the model that its tensors belong to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from ptcli.errors import Problem, RequestError
from ptcli.plan.launch import RECIPE_FILE
from ptcli.recipe.local_models import (
    ADAPTER_CONFIG,
    find_base,
    local_folder,
    resolve_model_path,
    weight_files,
)

_FSDP = "pytorch_model_fsdp_0"
"""Folder of accelerate's in which torch's distributed checkpoint lies."""


@dataclass(frozen=True)
class Sharded:
    """A checkpoint whose tensors lie in parts, one for each process that trained."""

    kind: Literal["fsdp", "zero"]
    folder: Path
    """The checkpoint, as `RUN/checkpoint-500`."""
    parts: Path
    """Folder of the parts: of torch's distributed checkpoint, or DeepSpeed's `global_step500`."""


def find_sharded(path: str) -> Sharded | None:
    """The sharded checkpoint at a path (a folder, or `RUN@500`); None where there is none, or whole weights or an
    adapter as well. Raises RequestError for an unknown `builtin:` name."""
    folder = Path(resolve_model_path(os.path.expanduser(path)))
    if not folder.is_dir() or (folder / ADAPTER_CONFIG).exists() or _has_whole_weights(folder):
        return None
    for parts in (folder / _FSDP, folder):
        if (parts / ".metadata").exists() and any(parts.glob("*.distcp")):
            return Sharded("fsdp", folder, parts)
    for parts in _tagged(folder):
        if any(parts.glob("*_model_states.pt")):
            return Sharded("zero", folder if parts != folder else folder.parent, parts)
    return None


def find_model(sharded: Sharded, given: str | None) -> tuple[str, Path]:
    """Name and folder of the model whose config the checkpoint's tensors belong to: `given` (--base), else beside the
    tensors, at the top of the run, or what the run's recipe names. Raises RequestError when there is none."""
    for name, folder in _candidates(sharded, given):
        if folder is not None and (folder / "config.json").exists():
            return name, folder
    message = f"{sharded.folder} is a sharded checkpoint, and no config.json says of what model"
    if given is not None:
        message = f"there is no model with a config.json at {given}"
    raise RequestError(Problem(message, "name the model that was trained with --base PATH"))


def _candidates(sharded: Sharded, given: str | None) -> Iterator[tuple[str, Path | None]]:
    if given is not None:
        yield given, local_folder(resolve_model_path(os.path.expanduser(given)))
        return
    run = sharded.folder.parent
    for folder in (sharded.folder, run):
        yield str(folder), folder
    recipe = _recipe_model(run / RECIPE_FILE)
    if recipe is not None:
        base, revision = find_base(*recipe)
        yield base, local_folder(base, revision)


def _recipe_model(recipe: Path) -> tuple[str, str | None] | None:
    """`model.path` and `model.revision` of a resolved recipe."""
    try:
        model = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]
        return str(model["path"]), model.get("revision")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _has_whole_weights(folder: Path) -> bool:
    files = weight_files(folder)
    return bool(files) and all(path.exists() for path in files)


def _tagged(folder: Path) -> Iterator[Path]:
    """The folder of DeepSpeed's that `latest` names, or else the only one; the folder itself where it is one."""
    try:
        yield folder / (folder / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        yield from sorted(folder.glob("global_step*"))[-1:]
    yield folder
