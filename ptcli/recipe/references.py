"""Everything that a recipe names outside itself, looked up without importing user code, torch or transformers.

What is on the hub is not looked up: a recipe can be checked offline.
"""

from __future__ import annotations

import ast
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.recipe.code import USE, NotFound, find_module, find_object, has_module
from ptcli.recipe.data_files import data_format
from ptcli.recipe.local_models import (
    POINTER,
    BadWeights,
    checkpoint_of,
    is_local,
    read_header,
    read_json,
    read_model_config,
    resolve_model_path,
    weight_files,
)
from ptcli.recipe.lora_targets import check_targets
from ptcli.recipe.model import CallbackSpec, DataEntry, ModelSpec, Recipe, RewardSpec
from ptcli.recipe.suggest import nearest

__all__ = ["check_references", "read_model_config", "resolve_model_path"]


def check_references(recipe: Recipe) -> list[Problem]:
    """A problem for each file, folder, model, function or LoRA target that the recipe names and that is not there."""
    problems: list[Problem] = []
    for name in ("model", "ref_model", "reward_model", "value_model", "teacher"):
        spec = getattr(recipe, name)
        if spec is not None:
            problems += _check_model(spec, (name,))
    for key, entry in _data_entries(recipe):
        problems += _check_data(entry, (*key, "path"))
    passed = METHODS[recipe.method].reward_arguments
    for index, reward in enumerate(recipe.rewards):
        problems += _check_reward(reward, ("rewards", index, "use"), passed)
    for index, callback in enumerate(recipe.callbacks):
        problems += _check_callback(callback, ("callbacks", index, "use"))
    return problems + check_targets(recipe)


def _data_entries(recipe: Recipe) -> Iterator[tuple[KeyPath, DataEntry]]:
    for index, entry in enumerate(recipe.data.train):
        yield ("data", "train", index), entry
    groups = recipe.data.eval
    if isinstance(groups, list):
        groups = {"": groups}
    if isinstance(groups, dict):
        for name, entries in groups.items():
            for index, entry in enumerate(entries):
                yield ("data", "eval", *([name] if name else []), index), entry


def _unreadable(path: Path) -> str:
    """Why a file cannot be used, whatever is in it; "" when it can."""
    try:
        if not path.stat().st_size:
            return "is empty"
        with path.open("rb") as file:
            return (
                "is a Git LFS pointer, not the file: run `git lfs pull`" if file.read(len(POINTER)) == POINTER else ""
            )
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _near_sibling(path: Path) -> str:
    """A question that names a file beside a missing `path` that has nearly its name; "" without one."""
    try:
        near = nearest(path.name, [each.name for each in path.parent.iterdir()])
    except OSError:
        return ""
    return f"did you mean {path.parent / near}?" if near else ""


def _near_builtin(name: str, known: Iterable[str]) -> str:
    known = [f"builtin:{each}" for each in known]
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"there is {', '.join(known)}"


# --- models ----------------------------------------------------------------------------------------------------------

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_ADAPTERS = "adapters as a model are not built yet"


def _check_model(spec: ModelSpec, key: KeyPath, *, tokenizer: bool | None = None) -> Iterator[Problem]:
    """Problems of one model section. `tokenizer`: whether its folder must have one; by default only `model` must."""
    if spec.chat_template is not None:
        yield from _check_template(spec.chat_template, (*key, "chat_template"))
    if spec.adapter is not None:
        yield Problem(f"`{key[0]}.adapter`: {_ADAPTERS}", "merge the adapter into its base first", (*key, "adapter"))
    yield from _check_model_path(
        spec.path, (*key, "path"), tokenizer=key == ("model",) if tokenizer is None else tokenizer
    )


def _check_model_path(path: str, key: KeyPath, *, tokenizer: bool) -> list[Problem]:
    if path.startswith("builtin:"):
        from ptcli.builtin import MODELS

        if path.removeprefix("builtin:") not in MODELS:
            return [Problem(f"there is no model {path}", _near_builtin(path, MODELS), key)]
        return []
    run = checkpoint_of(path)
    if run:
        missing = _missing_checkpoint(Path(run[0]), run[1], key)
        if missing:
            return [missing]
    folder = Path(resolve_model_path(path))
    return _check_folder(folder, key, tokenizer=tokenizer) if is_local(str(folder)) else []


def _checkpoints(run: Path) -> list[int]:
    steps = (each.name.removeprefix("checkpoint-") for each in run.glob("checkpoint-*"))
    return sorted(int(step) for step in steps if step.isdecimal())


def _missing_checkpoint(run: Path, step: int, key: KeyPath) -> Problem | None:
    if not os.path.isdir(run):
        return Problem(f"there is no run directory {run}", _near_sibling(run), key)
    if os.path.isdir(run / f"checkpoint-{step}"):
        return None
    there = _checkpoints(run)
    fix = f"it has {', '.join(map(str, there))}" if there else "it has no checkpoints"
    return Problem(f"{run} has no checkpoint of step {step}", fix, key)


def _check_folder(folder: Path, key: KeyPath, *, tokenizer: bool) -> list[Problem]:
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            return [Problem(f"{folder} is a file, not the folder of a model", _file_fix(folder), key)]
        return [Problem(f"there is no model folder {folder}", _near_sibling(folder), key)]
    if os.path.exists(folder / "adapter_config.json") and not os.path.exists(folder / "config.json"):
        return [Problem(f"{folder} is a PEFT adapter: {_ADAPTERS}", "merge it into its base first", key)]
    found = [_config_problem(folder, key)] if not read_json(folder / "config.json") else []
    if found:
        return found
    problems = [Problem(f"{folder}: {message}", fix, key) for message, fix in _weight_problems(folder)]
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
        return Problem(f"{config} {_unreadable(config) or 'is not a JSON mapping'}", "", key)
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


# --- chat templates --------------------------------------------------------------------------------------------------


def _check_template(template: str, key: KeyPath) -> list[Problem]:
    path = Path(template)
    if path.is_absolute() or os.path.isfile(path):
        if os.path.isfile(path):
            why = _unreadable(path)
            return [Problem(f"the chat template {path} {why}", "", key)] if why else []
        return [Problem(f"there is no chat template {path}", _near_sibling(path), key)]
    shipped = _shipped_templates()
    if not shipped or template.removesuffix(".jinja") in shipped:
        return []
    near = nearest(template.removesuffix(".jinja"), shipped)
    fix = f"did you mean `{near}`?" if near else f"TRL has {', '.join(shipped)}; a file is a path that ends in .jinja"
    return [Problem(f"there is no chat template `{template}`", fix, key)]


def _shipped_templates() -> list[str]:
    """Names of the templates that TRL ships; empty when TRL is not there."""
    try:
        source = find_module("trl")
    except NotFound:
        return []
    return sorted(path.stem for path in source.parent.glob("chat_templates/*.jinja")) if source else []


# --- data ------------------------------------------------------------------------------------------------------------

_FORMATS_FIX = "data are JSON, JSONL, Parquet, CSV or Arrow files"
_MAX_LISTED = 10_000
"""Entries of a folder that are looked at before it is taken to hold data."""


def _check_data(entry: DataEntry, key: KeyPath) -> list[Problem]:
    path = entry.path
    if path.startswith("builtin:"):
        from ptcli.builtin import DATASETS

        if path.removeprefix("builtin:") not in DATASETS:
            return [Problem(f"there is no data set {path}", _near_builtin(path, DATASETS), key)]
        return _check_split(entry, key)
    if os.path.isdir(path):
        return _check_data_folder(Path(path), key)
    if os.path.isfile(path):
        return _check_files([Path(path)], key) or _check_split(entry, key)
    if glob.has_magic(path):
        files = [Path(each) for each in sorted(glob.glob(path, recursive=True)) if os.path.isfile(each)]
        if not files:
            return [Problem(f"no file matches {path}", "", key)]
        return _check_files(files, key) or _check_split(entry, key)
    if os.path.isabs(path):
        return [Problem(f"there is no file or folder {path}", _near_sibling(Path(path)), key)]
    return []


def _check_files(files: list[Path], key: KeyPath) -> list[Problem]:
    unknown = [path for path in files if not data_format(path)]
    if unknown:
        return [Problem(f"{unknown[0]} has no suffix of a data file", _FORMATS_FIX, key)]
    formats = sorted({data_format(path) for path in files})
    if len(formats) > 1:
        return [Problem(f"the files of one entry are {' and '.join(formats)}", "give each format its own entry", key)]
    return [Problem(f"{path} {why}", "", key) for path in files if (why := _unreadable(path))]


def _check_data_folder(folder: Path, key: KeyPath) -> list[Problem]:
    saved = ("state.json", "dataset_dict.json")  # what `save_to_disk` writes
    names = [Path(base, name) for base, _, files in os.walk(folder) for name in files[:_MAX_LISTED]]
    if any(path.name in saved or data_format(path) for path in names[:_MAX_LISTED]):
        return []
    what = "has no data files" if names else "is empty"
    return [Problem(f"the folder {folder} {what}", _FORMATS_FIX, key)]


def _check_split(entry: DataEntry, key: KeyPath) -> list[Problem]:
    """Files have one split, whose name `datasets` always makes "train"."""
    names = [part.partition("[")[0] for part in entry.split.split("+")]
    if all(name in ("train", "all") for name in names):
        return []
    message = f"{entry.path} is read as the one split `train`; there is no `{entry.split}`"
    return [Problem(message, "leave `split` out, or slice it: `train[:1000]`", (*key[:-1], "split"))]


# --- code ------------------------------------------------------------------------------------------------------------


def _check_reward(reward: RewardSpec, key: KeyPath, passed: Sequence[str]) -> list[Problem]:
    """Problems of one reward, whose function gets the arguments `passed` from the trainer."""
    if reward.use.startswith("builtin:") or ":" not in reward.use:
        return _check_reward_model(reward.use, key)
    try:
        node = find_object(reward.use).node
    except NotFound as error:
        return [Problem(error.message, error.fix, key)]
    if isinstance(node, ast.ClassDef | ast.Constant):
        what = "a class" if isinstance(node, ast.ClassDef) else "a constant"
        return [Problem(f"{reward.use} is {what}, not a function", "", key)]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
        return _check_signature(node, reward, key, passed)
    return []


def _check_reward_model(use: str, key: KeyPath) -> list[Problem]:
    """A reward without a colon: a model, unless it is a function with a dot in the place of its colon."""
    module, dot, name = use.rpartition(".")
    if dot and "/" not in use and use.isascii() and has_module(use.split(".")[0]):
        return [Problem(f"{use} is neither a function nor a model", f"write `{module}:{name}`", key)]
    if use in _shipped_rewards():
        return [Problem(f"{use} is a function of TRL, not a model", f"write `trl.rewards:{use}`", key)]
    return _check_model_path(use, key, tokenizer=True)


def _shipped_rewards() -> list[str]:
    """Names of the reward functions that TRL ships, which its own scripts take without a module."""
    try:
        source = find_module("trl.rewards")
    except NotFound:
        return []
    return re.findall(r"\b(?:get_)?\w+_(?:reward|punishment)\b", source.read_text(encoding="utf-8")) if source else []


def _check_signature(
    node: ast.FunctionDef | ast.AsyncFunctionDef, reward: RewardSpec, key: KeyPath, passed: Sequence[str]
) -> list[Problem]:
    """TRL calls a reward with keywords only; what the function cannot take ends the run at its first step."""
    arguments = node.args
    if arguments.posonlyargs:
        message = f"{reward.use} takes `{arguments.posonlyargs[0].arg}` by position only, and TRL passes keywords"
        return [Problem(message, "remove the `/` from its signature", key)]
    if arguments.kwarg:
        return []
    taken = {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}
    unknown = [name for name in reward.args if name not in taken]
    if unknown:
        return [Problem(f"{reward.use} takes no argument `{unknown[0]}`", "", (*key[:-1], "args", unknown[0]))]
    missing = [name for name in passed if name not in taken]
    if not missing:
        return []
    message = f"{reward.use} does not take `{missing[0]}`, which TRL passes to every reward function"
    return [Problem(message, "add `**kwargs` to its signature", key)]


def _check_callback(callback: CallbackSpec, key: KeyPath) -> list[Problem]:
    if not USE.fullmatch(callback.use):
        return [Problem(f"{callback.use!r} does not name a class", "write `file.py:Class`", key)]
    try:
        node = find_object(callback.use).node
    except NotFound as error:
        return [Problem(error.message, error.fix, key)]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Constant):
        return [Problem(f"{callback.use} is not a class", "name a subclass of transformers.TrainerCallback", key)]
    return []
