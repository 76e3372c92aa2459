"""The checkpoints of a run directory, and which of them are whole. Reads headers and sizes; imports no torch.

What is looked for is what transformers 5.17 writes, the trainer's state last:

    weights        *.safetensors with their index, or the parts of DeepSpeed or FSDP
    optimizer      optimizer.pt and scheduler.pt, `global_step*` of DeepSpeed, optimizer.bin or `optimizer_0` of FSDP
    random state   rng_state.pth, or one for each process
    trainer state  trainer_state.json

A checkpoint that was copied or moved is judged in the same way: by opening what is in it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

from ptcli.merge.headers import read_tensors
from ptcli.merge.model import Tensor
from ptcli.recipe.local_models import ADAPTER_CONFIG, BadWeights

STATE_FILE = "trainer_state.json"
Kind = Literal["plain", "deepspeed", "fsdp"]

_NAME = re.compile(r"checkpoint-(\d+)")
_INDEX = ".index.json"
_TORCH = (".pt", ".pth", ".bin")
_FSDP_WEIGHTS, _FSDP_OPTIMIZER = "pytorch_model_fsdp", "optimizer"
_PART = re.compile(rb"__\d+_\d+\.distcp")
"""How torch's distributed checkpoint names the files of its parts, in `.metadata` as on disk."""
_RANK = re.compile(r"rank_(\d+)_mp_rank_00_(optim|model)_states\.pt$")


class Torn(Exception):
    """A folder is no whole checkpoint. The message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, as far as it can be told without loading it."""

    path: Path
    step: int
    """Finished steps."""
    state: Mapping[str, Any]
    """`trainer_state.json`."""
    kind: Kind
    world: int | None
    """Processes that wrote it; None where it holds nothing of theirs."""
    weights_only: bool
    """True when the optimizer's state was not saved (`save_only_model`)."""

    @property
    def total(self) -> int | None:
        """Steps that the run was to have."""
        total = self.state.get("max_steps")
        return total if isinstance(total, int) and total > 0 else None

    @property
    def has_adapter(self) -> bool:
        return (self.path / ADAPTER_CONFIG).exists()


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run directory, the latest first."""
    found = [path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint folder is named after; -1 for another name."""
    name = _NAME.fullmatch(checkpoint.name)
    return int(name[1]) if name else -1


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at everything in a checkpoint that tells whether it is whole. Raises Torn when it is not."""
    if not path.is_dir():
        raise Torn("is not a folder" if path.exists() else "is not there")
    state = _read_state(path)
    try:
        _check_weights(path)
        kind = _kind(path)
        world = _count_processes(path)
        weights_only = kind == "plain" and world is None and not (path / "optimizer.pt").exists()
        if not weights_only:
            _CHECKS[kind](path, world)
        for file in sorted(path.rglob("*")):
            if file.suffix in _TORCH:
                _check_torch_file(file)
    except OSError as error:
        raise Torn(f"cannot be read: {error.strerror or error}") from error
    return Checkpoint(path, state["global_step"], state, kind, world, weights_only)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the safetensors files at a folder's top. Raises Torn when a header is not true of its file."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= read_tensors(file)
        except BadWeights as error:
            raise Torn(f"{file.name} {error}") from error
    return tensors


def _read_state(path: Path) -> dict[str, Any]:
    file = path / STATE_FILE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        step = state["global_step"]
    except OSError:
        raise Torn(f"has no {STATE_FILE}, which is written last") from None
    except (ValueError, TypeError, KeyError):
        raise Torn(f"has a {STATE_FILE} that is cut off") from None
    if type(step) is not int or step < 0 or step_of(path) not in (-1, step):
        raise Torn(f"has a {STATE_FILE} of step {step}")
    return dict(state)


# --- weights ---------------------------------------------------------------------------------------------------------


def _check_weights(path: Path) -> None:
    for index in path.glob(f"*{_INDEX}"):
        _check_index(index)
    for folder in {file.parent for file in path.rglob("*.safetensors")}:
        read_weights(folder)
    whole = any(path.glob("*model*.safetensors")) or any(path.glob("*model*.bin"))
    if not whole and not any(path.glob(f"{_FSDP_WEIGHTS}*")) and not any(path.glob("global_step*")):
        raise Torn("has no weights")


def _check_index(index: Path) -> None:
    try:
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Torn(f"has a {index.name} that is cut off") from None
    _require(index.parent, sorted(listed))


def _check_torch_file(file: Path) -> None:
    """torch writes zip files, whose table of contents comes last."""
    try:
        with zipfile.ZipFile(file) as content:
            complete = bool(content.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the last: damage that reads as another zip format
        complete = False
    if not complete:
        raise Torn(f"{file.name} is cut off")


# --- what else each way of training leaves ---------------------------------------------------------------------------


def _kind(path: Path) -> Kind:
    if (path / "latest").exists() or any(path.glob("global_step*")):
        return "deepspeed"
    return "fsdp" if any(path.glob(f"{_FSDP_WEIGHTS}*")) else "plain"


def _count_processes(path: Path) -> int | None:
    """Processes that left their random states. Raises Torn where one of several did not."""
    ranks = {int(file.stem.rpartition("_")[2]) for file in path.glob("rng_state_*.pth")}
    if not ranks:
        return 1 if (path / "rng_state.pth").exists() else None
    world = _recorded_processes(path) or max(ranks) + 1
    _require(path, [f"rng_state_{rank}.pth" for rank in range(world)])
    return max(world, len(ranks))


def _recorded_processes(path: Path) -> int | None:
    """What the plan beside a checkpoint says: of its own files, the last one's absence cannot be told."""
    try:
        world = json.loads((path.parent / "plan.json").read_text(encoding="utf-8"))["batch"]["world_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return world if isinstance(world, int) else None


def _check_plain(path: Path, world: int | None) -> None:
    _require(path, ["optimizer.pt", "scheduler.pt"])
    _require_random_state(world)


def _check_deepspeed(path: Path, world: int | None) -> None:
    """The folder that `latest` names has a part of the optimizer, and under ZeRO-3 of the weights, of each process."""
    _require(path, ["latest"])
    parts = path / (path / "latest").read_text(encoding="utf-8").strip()
    _require_random_state(world)
    found = {(each[2], int(each[1])) for file in parts.glob("*_states.pt") if (each := _RANK.search(file.name))}
    split = {what for what, _ in found}
    for what in sorted(split):
        missing = [rank for rank in range(world or 1) if (what, rank) not in found]
        if missing:
            raise Torn(f"has no {what}_states.pt of process {missing[0]} in {parts.name}")
    if "model" not in split and not (parts / "mp_rank_00_model_states.pt").exists():
        raise Torn(f"has no model_states.pt in {parts.name}")


def _check_fsdp(path: Path, world: int | None) -> None:
    for name in (f"{_FSDP_WEIGHTS}_0", f"{_FSDP_OPTIMIZER}_0"):
        if (path / name).is_dir():
            _check_parts(path / name)
    if not (path / f"{_FSDP_OPTIMIZER}_0").is_dir():
        _require(path, [f"{_FSDP_OPTIMIZER}.bin"])
    _require(path, ["scheduler.pt"])
    _require_random_state(world)


def _check_parts(folder: Path) -> None:
    """`.metadata`, which is written last, names every part."""
    _require(folder, [".metadata"])
    pickled = (folder / ".metadata").read_bytes()
    listed = set(_PART.findall(pickled))
    if not listed or not pickled.endswith(b"."):  # pickle's STOP
        raise Torn(f"{folder.name}/.metadata is cut off")
    _require(folder, sorted(part.decode() for part in listed))


_CHECKS = {"plain": _check_plain, "deepspeed": _check_deepspeed, "fsdp": _check_fsdp}


def _require(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        file = folder / name
        if not file.exists():
            raise Torn(f"has no {name}")
        if not file.stat().st_size:
            raise Torn(f"has an empty {name}")


def _require_random_state(world: int | None) -> None:
    if world is None:
        raise Torn("has no rng_state.pth")


# --- what was just saved ---------------------------------------------------------------------------------------------

_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Expected:
    """What weights must come to in a file, from the model in memory."""

    values: int = 0
    """In all tensors together, at least."""
    tensors: Mapping[str, int] = field(default_factory=dict)
    """Values of each tensor of an adapter, at least. Names may change where a layer's experts are saved one by one."""


def check_weights(folder: Path, expected: Expected, *, learned: bool) -> None:
    """Compare the weights at a folder's top with the model that they were saved from.

    `learned`: an adapter's second matrices are not all 0 in memory. Raises Torn where tensors are missing, empty or
    all 0. A folder without safetensors files holds its weights in parts, which are looked at elsewhere.
    """
    tensors = read_weights(folder)
    if not tensors:
        return
    empty = [name for name, tensor in tensors.items() if not tensor.nbytes]
    if empty:
        raise Torn(f"has empty tensors: {empty[0]} is one of {len(empty)} of {len(tensors)}")
    held = sum(map(_values, tensors.values()))
    if held < expected.values:
        raise Torn(f"holds {held:,} values, and the model has {expected.values:,}")
    _check_names(tensors, expected.tensors)
    if learned:
        second = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
        if all(map(_is_zero, _spread(second or list(tensors.values())))):
            raise Torn("holds nothing but zeros" if not second else "holds an adapter whose lora_B are all 0")


def _check_names(tensors: Mapping[str, Tensor], expected: Mapping[str, int]) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing and len(tensors) < len(expected):
        raise Torn(f"lacks {len(missing)} of {len(expected)} tensors of the adapter, {missing[0]} among them")
    short = [name for name, values in expected.items() if name in tensors and _values(tensors[name]) < values]
    if short:
        raise Torn(f"has a {short[0]} of {_values(tensors[short[0]])} values, and the model's has {expected[short[0]]}")


def _values(tensor: Tensor) -> int:
    return prod(tensor.shape)


def _spread(tensors: list[Tensor]) -> list[Tensor]:
    """Some of the tensors, evenly among all."""
    count = min(_SAMPLES, len(tensors))
    return [tensors[index * len(tensors) // count] for index in range(count)]


def _is_zero(tensor: Tensor) -> bool:
    """Whether a part from the middle of a tensor is 0."""
    size = min(_SAMPLE_BYTES, tensor.nbytes)
    with tensor.file.open("rb") as file:
        file.seek(tensor.start + (tensor.nbytes - size) // 2)
        return not any(file.read(size))
