"""The models that a recipe names: folders, run directories, checkpoints, adapters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.files import near_builtin, near_sibling, unreadable
from ptcli.recipe.local_models import (
    ADAPTER_CONFIG,
    BadWeights,
    checkpoint_of,
    is_local,
    read_header,
    read_json,
    resolve_model_path,
    weight_files,
)
from ptcli.recipe.model import ModelSpec
from ptcli.recipe.templates import check_template

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check_model(spec: ModelSpec, key: KeyPath, *, tokenizer: bool | None = None) -> Iterator[Problem]:
    """Problems of one model section. `tokenizer`: whether its folder must have one; by default only `model` must."""
    if spec.chat_template is not None:
        yield from check_template(spec.chat_template, (*key, "chat_template"))
    tokenizer = key == ("model",) if tokenizer is None else tokenizer
    yield from check_model_path(spec.path, (*key, "path"), tokenizer=tokenizer, weights=spec.from_ == "weights")


def check_model_path(path: str, key: KeyPath, *, tokenizer: bool, weights: bool = True) -> list[Problem]:
    if path.startswith("builtin:"):
        from ptcli.builtin import MODELS

        if path.removeprefix("builtin:") not in MODELS:
            return [Problem(f"there is no model {path}", near_builtin(path, MODELS), key)]
        return []
    run = checkpoint_of(path)
    if run:
        missing = _missing_checkpoint(Path(run[0]), run[1], key)
        if missing:
            return [missing]
    folder = Path(resolve_model_path(path))
    return _check_folder(folder, key, tokenizer=tokenizer, weights=weights) if is_local(str(folder)) else []


def _checkpoints(run: Path) -> list[int]:
    steps = (each.name.removeprefix("checkpoint-") for each in run.glob("checkpoint-*"))
    return sorted(int(step) for step in steps if step.isdecimal())


def _missing_checkpoint(run: Path, step: int, key: KeyPath) -> Problem | None:
    if not os.path.isdir(run):
        return Problem(f"there is no run directory {run}", near_sibling(run), key)
    if os.path.isdir(run / f"checkpoint-{step}"):
        return None
    there = _checkpoints(run)
    fix = f"it has {', '.join(map(str, there))}" if there else "it has no checkpoints"
    return Problem(f"{run} has no checkpoint of step {step}", fix, key)


def _check_folder(folder: Path, key: KeyPath, *, tokenizer: bool, weights: bool) -> list[Problem]:
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            return [Problem(f"{folder} is a file, not the folder of a model", _file_fix(folder), key)]
        return [Problem(f"there is no model folder {folder}", near_sibling(folder), key)]
    if os.path.exists(folder / ADAPTER_CONFIG):
        return []  # see ptcli.recipe.adapter_folders
    found = [_config_problem(folder, key)] if not read_json(folder / "config.json") else []
    if found:
        return found
    wrong = _weight_problems(folder) if weights else ()
    problems = [Problem(f"{folder}: {message}", fix, key) for message, fix in wrong]
    if tokenizer and not any(os.path.exists(folder / name) for name in _TOKENIZERS):
        problems.append(
            Problem(f"{folder} has no tokenizer", "put tokenizer.json and tokenizer_config.json there", key)
        )
    return problems


def _file_fix(path: Path) -> str:
    return f"name the function: `{path}:FUNCTION`" if path.suffix == ".py" else "give the folder"


def _config_problem(folder: Path, key: KeyPath) -> Problem:
    """Why a folder without a usable config.json is not a model."""
    config = folder / "config.json"
    if os.path.exists(config):
        return Problem(f"{config} {unreadable(config) or 'is not a JSON mapping'}", "", key)
    steps = _checkpoints(folder)
    if steps:
        fix = f"name one of its checkpoints: {folder}@{steps[-1]}"
        return Problem(f"{folder} is a run directory without a final model", fix, key)
    if any(folder.glob("*.gguf")):
        return Problem(f"{folder} holds GGUF files, which cannot be trained", "give the safetensors model", key)
    return Problem(f"{folder} is not a model: it has no config.json", "", key)


def _weight_problems(folder: Path) -> Iterator[tuple[str, str]]:
    files = weight_files(folder)
    if not files:
        yield "there are no weights (model.safetensors)", ""
    missing = [path.name for path in files if not os.path.exists(path)]
    if missing:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield f"weights are missing: {missing[0]}{rest}", "copy or download the model again"
    for path in files:
        if os.path.exists(path) and path.suffix == ".safetensors":
            try:
                read_header(path)
            except BadWeights as error:
                yield f"{path.name} {error}", ""
