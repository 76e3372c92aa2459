"""A DeepSpeed JSON file that an accelerate config names: found, read, compared with the recipe.

transformers refuses a file that says other numbers than the training arguments once the model is loaded, `"8"` for 8
with a message that shows no difference (user-pain.md R6); a file's optimizer and scheduler silently take the place of
the recipe's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
_OPTIMIZER = {
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
}
_LENGTHS = {"total_num_steps": "max_steps", "warmup_num_steps": "warmup_steps"}
"""Of the schedule, in `scheduler.params`."""
_OPTIMIZERS = {
    "adamw_torch": ("adam", "adamw"), "adamw_torch_fused": ("adam", "adamw"), "adamw_apex_fused": ("adam", "adamw"),
    "lion_32bit": ("lion",), "adagrad": ("adagrad",), "sgd": ("sgd",),
}  # fmt: skip
"""`training.optim` -> what a DeepSpeed file calls it, in small letters. Its Adam decays weights as AdamW does."""
_SCHEDULERS = {
    "constant_with_warmup": ("warmuplr",), "linear": ("warmupdecaylr",), "cosine": ("warmupcosinelr",),
}  # fmt: skip


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
    """What the file says that is neither `auto` nor, type included, what the recipe says."""
    problems = [
        _conflict(name, said, value, own, recipe, key)
        for name, (value, own) in _wanted(recipe, processes).items()
        if not agrees(said := _said(values, name), value)
    ]
    return [*problems, *_replaced(values, recipe, key), *_steps(values, recipe, key)]


def agrees(said: Any, wanted: Any) -> bool:
    """Whether a value of the file is `auto`, or equal and of the same kind: 8 is 8.0, and neither `"8"` nor true."""
    if said in ("auto", None):
        return True
    if isinstance(said, list) and isinstance(wanted, list):
        return len(said) == len(wanted) and all(map(agrees, said, wanted))
    return isinstance(said, bool) == isinstance(wanted, bool) and bool(said == wanted)


def _wanted(recipe: Recipe, processes: int) -> dict[str, tuple[Any, str]]:
    """Key of the file -> the value that it may have, and the training argument that this comes from."""
    wanted = {name: (argument(recipe, own, 1), own) for name, own in _SIZES.items()}
    per_device, accumulation = (value for value, _ in wanted.values())
    wanted["train_batch_size"] = (per_device * accumulation * processes, "per_device_train_batch_size")
    wanted["gradient_clipping"] = (argument(recipe, "max_grad_norm"), "max_grad_norm")
    wanted |= {f"{name}.enabled": (computes_in(recipe) == name, name) for name in _PRECISIONS}
    wanted |= {name: (argument(recipe, own), own) for name, own in _OPTIMIZER.items()}
    betas = [argument(recipe, "adam_beta1"), argument(recipe, "adam_beta2")]
    return wanted | {"optimizer.params.betas": (betas, "adam_beta1")}


def _replaced(values: Mapping[str, Any], recipe: Recipe, key: KeyPath) -> Iterator[Problem]:
    """An optimizer or schedule of the file's own, where the recipe asks for another. It may leave them to the file."""
    for section, own, names in (("optimizer", "optim", _OPTIMIZERS), ("scheduler", "lr_scheduler_type", _SCHEDULERS)):
        said, wanted = _said(values, f"{section}.type"), recipe.training.get(own)
        if said is None or wanted is None or str(said).lower() in names.get(str(wanted), ()):
            continue
        message = f"the DeepSpeed file has {section} {json.dumps(said)}, which would take the place of {own} {wanted}"
        yield Problem(message, f"delete its `{section}`, or leave training.{own} out", ("training", own))


def _steps(values: Mapping[str, Any], recipe: Recipe, key: KeyPath) -> Iterator[Problem]:
    """Lengths of the schedule. How many steps there are is known here only where the recipe says it."""
    total, warmup = argument(recipe, "max_steps", -1), argument(recipe, "warmup_steps", 0)
    known = {"total_num_steps": total if total > 0 else None, "warmup_num_steps": None if 0 < warmup < 1 else warmup}
    for name, own in _LENGTHS.items():
        full = f"scheduler.params.{name}"
        said, wanted = _said(values, full), known[name]
        if wanted is None and said not in ("auto", None):
            message = f"the DeepSpeed file says {full} {json.dumps(said)}, and the recipe leaves it open"
            yield Problem(message, f'write "auto" there, or set training.{own}', key)
        elif not agrees(said, wanted):
            yield _conflict(full, said, wanted, own, recipe, key)


def _said(values: Mapping[str, Any], name: str) -> Any:
    """What the file has at a place with dots; None where there is nothing."""
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def for_cpu(values: Mapping[str, Any]) -> dict[str, Any]:
    """The file as a CPU run can use it: batch sizes and the schedule's length are the recipe's, and there is no mixed
    precision."""
    sizes = {name: "auto" for name in (*_SIZES, "train_batch_size") if name in values}
    kept = {name: value for name, value in values.items() if name not in _PRECISIONS} | sizes
    length = _said(values, "scheduler.params")
    if isinstance(length, Mapping):
        autos = {name: "auto" for name in _LENGTHS if name in length}
        kept["scheduler"] = {**values["scheduler"], "params": {**length, **autos}}
    return kept


def _conflict(name: str, said: Any, wanted: Any, own: str, recipe: Recipe, key: KeyPath) -> Problem:
    message = f"the DeepSpeed file says {name} {json.dumps(said)}, and the recipe makes it {json.dumps(wanted)}"
    place = argument_key(recipe, (own,))
    return Problem(message, f'write "auto" there, or change training.{own}', place if len(place) > 1 else key)
