"""A DeepSpeed JSON file that an accelerate config names: found, read, compared with the recipe.

transformers refuses a file that says other numbers than the training arguments, once the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.plan.arguments import argument, argument_key, computes_in
from ptcli.recipe.model import Recipe

DEEPSPEED_FILE = "deepspeed.json"
"""What the file is called in the run directory."""
FILE_KEY = "deepspeed_config_file"
_IGNORED_BESIDE_IT = (
    "gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device",
    "offload_param_device", "offload_param_nvme_path", "offload_optimizer_nvme_path", "zero3_save_16bit_model",
)  # fmt: skip
"""What accelerate refuses in its own file when there is a DeepSpeed file."""
_SIZES = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
}
_PRECISIONS = ("bf16", "fp16")


def find_file(name: str, accelerate_file: Path) -> Path | None:
    """The file: from the working directory, as accelerate reads it, or else beside the accelerate config."""
    candidates = (Path(name).expanduser().absolute(), accelerate_file.absolute().parent / name)
    return next((path for path in candidates if path.is_file()), None)


def read_file(
    section: Mapping[str, Any], accelerate_file: Path, key: KeyPath
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """What the DeepSpeed file says; None when the config names none, or when it cannot be used."""
    name = section.get(FILE_KEY)
    if name is None:
        return None, []
    beside = [each for each in _IGNORED_BESIDE_IT if each in section]
    if beside:
        message = f"{accelerate_file}: {', '.join(beside)} beside {FILE_KEY}, which accelerate refuses"
        return None, [Problem(message, "say it in the DeepSpeed file alone", key)]
    path = find_file(str(name), accelerate_file)
    if path is None:
        return None, [Problem(f"{accelerate_file}: {FILE_KEY} {name} is not there", "correct the path", key)]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, [Problem(f"{path} cannot be read as JSON: {error}", "", key)]
    if not isinstance(values, dict):
        return None, [Problem(f"{path} is not a JSON object", "", key)]
    return values, []


def conflicts_inside(values: Mapping[str, Any], recipe: Recipe, processes: int, key: KeyPath) -> list[Problem]:
    """Numbers and precisions of the file that are not those of the recipe."""
    per_device, accumulation = (argument(recipe, name, 1) for name in _SIZES.values())
    wanted = {name: (argument(recipe, own, 1), own) for name, own in _SIZES.items()}
    wanted["train_batch_size"] = (per_device * accumulation * processes, "per_device_train_batch_size")
    wanted["gradient_clipping"] = (argument(recipe, "max_grad_norm"), "max_grad_norm")
    said = {name: values.get(name, "auto") for name in wanted}
    for name in _PRECISIONS:
        wanted[f"{name}.enabled"] = (computes_in(recipe) == name, name)
        said[f"{name}.enabled"] = _enabled(values, name)
    return [
        _conflict(name, said[name], value, own, recipe, key)
        for name, (value, own) in wanted.items()
        if said[name] not in ("auto", value)
    ]


def for_cpu(values: Mapping[str, Any]) -> dict[str, Any]:
    """The file as a CPU run can use it: batch sizes are the recipe's, and there is no mixed precision."""
    sizes = {name: "auto" for name in (*_SIZES, "train_batch_size") if name in values}
    return {name: value for name, value in values.items() if name not in _PRECISIONS} | sizes


def _enabled(values: Mapping[str, Any], name: str) -> Any:
    section = values.get(name)
    return section.get("enabled", "auto") if isinstance(section, Mapping) else "auto"


def _conflict(name: str, said: Any, wanted: Any, own: str, recipe: Recipe, key: KeyPath) -> Problem:
    message = f"the DeepSpeed file says {name} {json.dumps(said)}, and the recipe makes it {json.dumps(wanted)}"
    place = argument_key(recipe, (own,))
    return Problem(message, f'write "auto" there, or change training.{own}', place if len(place) > 1 else key)
