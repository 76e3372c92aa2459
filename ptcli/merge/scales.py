"""By how much a LoRA change counts: alpha / r, or alpha / sqrt(r), with each module's own r and alpha."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that the adapter's config gives a module."""
    return _of_pattern(config.get("rank_pattern"), module, config.get("r", 8))


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What B A is multiplied with (`peft.tuners.lora.layer.LoraLayer.update_layer`)."""
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _of_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with (`peft.utils.other.get_pattern_key`)."""
    matching = (key for key in patterns or {} if re.match(rf"(.*\.)?({key})$", module))
    key = next(matching, None)
    return default if key is None else (patterns or {})[key]
