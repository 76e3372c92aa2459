"""LoRA targets against the modules that a local model has, from its safetensors headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.recipe.local_models import is_local, linear_parameters, module_shapes, read_model_config, resolve_model_path
from ptcli.recipe.model import Recipe
from ptcli.recipe.suggest import nearest


def check_targets(recipe: Recipe) -> list[Problem]:
    """`peft.target_modules` against the module names in the model's safetensors headers, as PEFT matches them."""
    targets = (recipe.peft or {}).get("target_modules")
    if targets is None or targets == "all-linear":
        return []
    shapes = _local_modules(recipe.model.path)
    if not shapes:
        return []
    if isinstance(targets, str):
        return _check_pattern(targets, shapes, recipe)
    key: KeyPath = ("peft", "target_modules")
    return [p for index, target in enumerate(targets) for p in _check_target(str(target), shapes, (*key, index))]


def _local_modules(path: str) -> Mapping[str, tuple[int, ...]]:
    try:
        folder = Path(resolve_model_path(path))
    except RequestError:
        return {}
    return module_shapes(folder) if is_local(str(folder)) else {}


def _last_names(shapes: Mapping[str, Any]) -> list[str]:
    """Last parts of the names of the modules that an adapter can be put on."""
    return sorted({name.rpartition(".")[2] for name in linear_parameters(shapes)})


def _check_target(target: str, shapes: Mapping[str, tuple[int, ...]], key: KeyPath) -> list[Problem]:
    matching = [name for name in shapes if name == target or name.endswith(f".{target}")]
    if any(len(shapes[name]) >= 2 for name in matching):
        return []
    names = _last_names(shapes)
    if matching:
        return [Problem(f"`{target}` is not a linear layer", f"the model has {', '.join(names)}", key)]
    near = nearest(target, names)
    fix = f"did you mean `{near}`?" if near else f"the model has {', '.join(names)}"
    return [Problem(f"no module of the model is called `{target}`", fix, key)]


def _check_pattern(pattern: str, shapes: Mapping[str, tuple[int, ...]], recipe: Recipe) -> list[Problem]:
    """PEFT takes a text as a regular expression of the whole module name, so that `q_proj` alone matches nothing."""
    key: KeyPath = ("peft", "target_modules")
    try:
        expression = re.compile(pattern)
    except re.error as error:
        return [Problem(f"`{pattern}` is not a regular expression: {error}", "or write a list of names", key)]
    config = read_model_config(recipe.model.path) or {}
    # A model of text and images has other names in memory than in its files.
    if any(map(expression.fullmatch, shapes)) or "vision_config" in config:
        return []
    if not _check_target(pattern, shapes, key):
        return [Problem(f"`{pattern}` is a pattern, and matches no whole module name", f"write [{pattern}]", key)]
    example = next(linear_parameters(shapes), "")
    return [Problem(f"the pattern `{pattern}` matches no module of the model", f"names look like {example}", key)]
