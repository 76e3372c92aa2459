"""What an adapter's config says that it changes, against what it has tensors for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.merge.adapter import Adapter
from ptcli.merge.base import Base
from ptcli.merge.names import Names


def lacking(adapter: Adapter, base: Base, names: Names, modules: list[str]) -> list[str]:
    """Modules of the base that the adapter's config targets, and that the adapter has no tensors for.

    A kind of module (a name without its numbers) that is absent as a whole is lacking only when its target has nothing
    else: the vision tower of a model that was trained for text is not.
    """
    trained = {(names.find(f"{module}.weight") or module).removesuffix(".weight") for module in modules}
    kinds = {_kind(module) for module in trained}
    listed = adapter.config.get("target_modules")
    listed = listed if isinstance(listed, list) else []
    bare = [each for each in listed if not any(_matches(module, [each]) for module in trained | set(modules))]
    absent = (module for module in _targeted_in(base, adapter.config) if module not in trained)
    return [module for module in absent if _kind(module) in kinds or _matches(module, bare)]


def _targeted_in(base: Base, config: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in base.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(tensor.shape) == 2 and _targeted(module, config, base.config):
            yield module


def _kind(module: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", module)


def _targeted(module: str, config: Mapping[str, Any], base_config: Mapping[str, Any]) -> bool:
    """Whether PEFT's config means the module (`peft.tuners.tuners_utils.check_target_module_exists`)."""
    if _matches(module, config.get("exclude_modules")) or not _matches(module, config.get("target_modules")):
        return False
    layer = re.match(r".*\.[^.]*\.(\d+)\.", module)
    chosen = config.get("layers_to_transform")
    if chosen is not None and not isinstance(config.get("target_modules"), str):
        return layer is not None and int(layer[1]) in (chosen if isinstance(chosen, list) else [chosen])
    count = base_config.get("num_hidden_layers")
    return layer is None or not isinstance(count, int) or int(layer[1]) < count


def _matches(module: str, given: Any) -> bool:
    if isinstance(given, str):
        return re.fullmatch(given, module) is not None
    return any(module == each or module.endswith(f".{each}") for each in given or ())
