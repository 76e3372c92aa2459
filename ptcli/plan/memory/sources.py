"""Where a model's weights are known from: its config, the headers of its files, or what its page says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ptcli.errors import RequestError
from ptcli.methods import Head
from ptcli.plan.memory.architecture import Architecture, describe_config, describe_shapes
from ptcli.plan.memory.training import Quantization, read_quantization
from ptcli.recipe.local_models import (
    BadWeights,
    find_base,
    local_folder,
    read_header,
    read_model_config,
    weight_files,
)
from ptcli.recipe.model import ModelSpec

_PUBLISHED = Path(__file__).with_name("published.json")
_LEAST = Quantization(4, double=True)
"""What is assumed of weights that come quantised in a way that is not counted here: no less than this."""


@dataclass(frozen=True)
class Model:
    """A model of a recipe."""

    architecture: Architecture
    quantization: Quantization | None
    """How its weights are held: as the recipe says, or as they come."""
    comes_quantized: bool
    """True when the files hold quantised weights."""


def find_model(spec: ModelSpec, head: Head = "causal_lm") -> Model | None:
    """A recipe's model with this head; None when its weights cannot be counted from here."""
    config = _find_config(spec.path, spec.revision)
    stored = (config or {}).get("quantization_config")
    architecture = describe_config(_changed(config, spec.init_kwargs), head)
    if architecture is None and not stored:
        architecture = _in_files(spec.path, spec.revision, config or {})
    if architecture is None:
        return None
    if isinstance(stored, Mapping):
        return Model(architecture, read_quantization(stored) or _LEAST, comes_quantized=True)
    return Model(architecture, read_quantization(spec.quantization), comes_quantized=False)


def count_parameters(path: str, revision: str | None = None) -> int | None:
    """Weights of a model, of an adapter's base: from its config, or else from the headers of its safetensors files;
    None when that is unknown."""
    found = find_model(ModelSpec(path=path, revision=revision))
    return found.architecture.parameters if found else None


def is_here(path: str, revision: str | None = None) -> bool:
    """Whether the model's own config is on this machine."""
    return read_model_config(path, revision) is not None


def published_config(path: str) -> Mapping[str, Any] | None:
    """What the hub's page of a model that the recipes name says of its sizes; None for any other."""
    return _published().get(path)


@cache
def _published() -> Mapping[str, Mapping[str, Any]]:
    rows = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    return MappingProxyType({name: row["config"] for row in rows for name in row["models"]})


def _find_config(path: str, revision: str | None) -> Mapping[str, Any] | None:
    try:
        base, _ = find_base(path, revision)
    except RequestError:
        return None
    return read_model_config(path, revision) or published_config(base)


def _changed(config: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config with what `init_kwargs` changes in it."""
    if config is None:
        return None
    return {**config, **{name: value for name, value in arguments.items() if name in config}}


def _in_files(path: str, revision: str | None, config: Mapping[str, Any]) -> Architecture | None:
    try:
        folder = local_folder(*find_base(path, revision))
        files = weight_files(folder) if folder else []
        shapes = {name: shape for file in files for name, shape in read_header(file).items()}
    except (BadWeights, RequestError):
        return None
    return describe_shapes(shapes, tied=bool(config.get("tie_word_embeddings"))) if shapes else None
