"""Class names of a model's architecture, from the text of transformers' own modules: nothing is imported."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
_LAYERS = re.compile(r"^    _no_split_modules = \[([^\]]*)\]", re.MULTILINE)
_PARTS = ("text_config", "vision_config", "audio_config")


@dataclass(frozen=True)
class LayerClasses:
    """Names of classes of a model."""

    all: frozenset[str]
    layers: tuple[str, ...]
    """Those that transformers keeps in one piece, which are its layers."""


def layer_classes(config: Mapping[str, Any] | None) -> LayerClasses | None:
    """Of the model that a config.json describes; None when that is unknown, or its code is not transformers'."""
    config = config or {}
    if not config.get("model_type") or "auto_map" in config:
        return None
    nested = [config[part] for part in _PARTS if isinstance(config.get(part), Mapping)]
    found = [_read(str(part.get("model_type", ""))) for part in (config, *nested)]
    if found[0] is None:
        return None
    known = [each for each in found if each is not None]
    layers = dict.fromkeys(name for each in known for name in each.layers)
    return LayerClasses(frozenset().union(*(each.all for each in known)), tuple(layers))


@cache
def _read(model_type: str) -> LayerClasses | None:
    for path in _files(model_type):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        layers = re.findall(r"\w+", " ".join(_LAYERS.findall(text)))
        return LayerClasses(frozenset(_CLASS.findall(text)), tuple(dict.fromkeys(layers)))
    return None


def _files(model_type: str) -> Iterator[Path]:
    """Where its module may be: `gemma3_text` is a part of `gemma3`."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or not re.fullmatch(r"[\w-]+", model_type):
        return
    name = model_type.replace("-", "_")
    for stem in dict.fromkeys((name, re.sub(r"_(text|vision)(_model)?$", "", name))):
        yield Path(spec.origin).parent / "models" / stem / f"modeling_{stem}.py"
