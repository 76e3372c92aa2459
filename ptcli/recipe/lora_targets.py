"""LoRA targets against the modules that a local model has, from its safetensors headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.local_models import linear_parameters, local_modules, read_model_config
from ptcli.recipe.model import Recipe
from ptcli.recipe.suggest import nearest

_OTHER_LAYERS = ("ln_tuning", "beft")
"""PEFT types that train something else than linear layers: norms, biases."""


def check_targets(recipe: Recipe) -> list[Problem]:
    """`peft.target_modules` against the module names in the model's safetensors headers, as PEFT matches them."""
    targets = (recipe.peft or {}).get("target_modules")
    if targets is None or targets == "all-linear":
        return []
    shapes = local_modules(recipe.model.path)
    if not shapes:
        return []
    if (recipe.peft or {}).get("type") in _OTHER_LAYERS:
        shapes = dict.fromkeys(shapes, (1, 1))
    if isinstance(targets, str):
        return _check_pattern(targets, shapes, recipe)
    key: KeyPath = ("peft", "target_modules")
    named = [(index, str(target)) for index, target in enumerate(targets)]
    if _has_other_names_in_memory(recipe):
        named = [(index, target) for index, target in named if "." not in target]
    return [p for index, target in named for p in _check_target(target, shapes, (*key, index))]


def _has_other_names_in_memory(recipe: Recipe) -> bool:
    """True for a model of text and images: its modules' paths are other ones in memory than in its files."""
    return "vision_config" in (read_model_config(recipe.model.path, recipe.model.revision) or {})


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
    if any(map(expression.fullmatch, shapes)) or _has_other_names_in_memory(recipe):
        return []
    if not _check_target(pattern, shapes, key):
        return [Problem(f"`{pattern}` is a pattern, and matches no whole module name", f"write [{pattern}]", key)]
    example = next(linear_parameters(shapes), "")
    return [Problem(f"the pattern `{pattern}` matches no module of the model", f"names look like {example}", key)]
