"""Whole models of sharded checkpoints, tensor by tensor: of torch's distributed checkpoints (FSDP) and of ZeRO's.

What is held is one tensor and the part of it that is read. The files are pickles; they are read by an unpickler that
knows tensors and the metadata of checkpoints, and nothing that could run code, so DeepSpeed need not be installed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import ceil, prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion

from ptcli.errors import Problem, RequestError, WorkError
from ptcli.merge.headers import build_header
from ptcli.merge.model import MergePlan, Output, Progress
from ptcli.merge.plan import cut_files, parse_dtype, parse_size
from ptcli.merge.sharded import Sharded, find_model, find_sharded
from ptcli.recipe.local_models import read_json

SHARD = 5_000_000_000
"""Bytes of a file where none are asked for."""
_MEMORY = 700 << 20
"""Bytes: Python, torch and transformers."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, and how to have it."""

    name: str
    """The model's name of it."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """The type it was trained in, which is that of the whole model."""
    load: Callable[[], Tensor]


def plan_consolidation(
    sharded: Sharded, *, base: str | None = None, dtype: str | None = None, max_shard_size: str | None = None
) -> MergePlan:
    """What consolidating a checkpoint will write. `base`: the model whose config it is, where the run does not say.

    Raises:
        RequestError: parts are missing or cannot be read, or they are not those of the model.
    """
    asked, limit = parse_dtype(dtype), parse_size(max_shard_size) or SHARD
    name, folder = find_model(sharded, base)
    config = read_json(folder / "config.json")
    if config is None:
        raise RequestError(f"{folder / 'config.json'} is not a JSON mapping")
    tensors = open_tensors(sharded)
    model = _empty_model(folder, tensors)
    outputs = [_output(each, target, meta, asked) for each, pairs in _named(model, tensors) for target, meta in pairs]
    return MergePlan(
        mode="consolidate",
        reason="",
        adapter=sharded.folder,
        adapter_config={},
        base=folder,
        base_name=name,
        base_revision=None,
        base_config=config,
        dtype=dtype,
        shards=cut_files(outputs, limit),
        config_changes=_vocabulary_change(config, _rows(tensors)),
        max_shard_bytes=limit,
        memory=_MEMORY + 3 * max((each.nbytes for each in outputs), default=0),
    )


def consolidate(plan: MergePlan, folder: Path, progress: Progress) -> int:
    """Write the weights of the plan; returns how many tensors. Raises WorkError for parts that cannot be read."""
    sharded = find_sharded(str(plan.adapter))
    if sharded is None:
        raise WorkError(f"{plan.adapter} is no sharded checkpoint any more")
    tensors = open_tensors(sharded)
    model = _empty_model(plan.base, tensors)
    places = _prepare(plan, folder)
    done = 0
    for stored, _ in _named(model, tensors):
        for name, tensor in _renamed(model, stored.name, _loaded(stored)).items():
            done += _write(*places[name], tensor)
        progress("consolidating", done, plan.nbytes)
    return len(places)


def open_tensors(sharded: Sharded) -> list[Stored]:
    """The tensors of a checkpoint, none of them read yet. Raises RequestError when its parts are not all there."""
    try:
        tensors = list((_fsdp if sharded.kind == "fsdp" else _zero)(sharded.parts))
    except (OSError, pickle.UnpicklingError, RuntimeError, KeyError, ValueError, EOFError, AttributeError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise RequestError(f"the checkpoint {sharded.parts} cannot be read: {what}") from error
    if any(".lora_" in each.name or each.name.startswith("base_model.model.") for each in tensors):
        message = f"{sharded.folder} is a checkpoint of an adapter, not of a whole model"
        raise RequestError(Problem(message, "merge the adapter that the run saved at its top, or in a checkpoint"))
    return tensors


# --- torch's distributed checkpoints ---------------------------------------------------------------------------------


def _fsdp(parts: Path) -> Iterator[Stored]:
    """Tensors of the state that accelerate saves as `{"model": ...}`."""
    with (parts / ".metadata").open("rb") as file:
        metadata = _Unpickler(file).load()
    pieces: dict[str, list[tuple[tuple[int, ...], Any]]] = {}
    for index, place in metadata.storage_data.items():
        pieces.setdefault(index.fqn, []).append((tuple(index.offset or ()), place))
    _need(parts, {place.relative_path for found in pieces.values() for _, place in found})
    for key, told in metadata.state_dict_metadata.items():
        if hasattr(told, "chunks"):
            shape, dtype = tuple(told.size), told.properties.dtype
            load = _Chunks(parts, shape, dtype, tuple(pieces.get(key, ())))
            yield Stored(key.removeprefix("model."), shape, dtype, load)


@dataclass(frozen=True)
class _Chunks:
    """Puts the pieces of a tensor together."""

    parts: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[tuple[int, ...], Any], ...]

    def __call__(self) -> Tensor:
        whole, filled = torch.empty(self.shape, dtype=self.dtype), 0
        for offset, place in self.pieces:
            chunk = self._read(place)
            whole[tuple(slice(at, at + size) for at, size in zip(offset, chunk.shape, strict=True))] = chunk
            filled += chunk.numel()
        if filled != whole.numel():
            raise WorkError(f"{self.parts} holds {filled} of the {whole.numel()} numbers of a tensor")
        return whole

    def _read(self, place: Any) -> Tensor:
        if place.transform_descriptors:
            raise WorkError(f"{self.parts} is compressed or encrypted, which is not read here")
        with (self.parts / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            data = io.BytesIO(file.read(place.length))
        tensor: Tensor = torch.load(data, map_location="cpu", weights_only=True)
        return tensor


# --- ZeRO ------------------------------------------------------------------------------------------------------------


def _zero(parts: Path) -> Iterator[Stored]:
    if any(parts.glob("*mp_rank_01_*")):
        raise ValueError("its tensors are split over tensor-parallel ranks as well, which are not put together here")
    ranks = _by_rank(parts, "zero_pp_rank_*_model_states.pt")
    if ranks:
        return _zero3(parts, [_torch_load(path) for path in ranks])
    return _zero2(_torch_load(parts / "mp_rank_00_model_states.pt"))


def _zero2(state: Mapping[str, Any]) -> Iterator[Stored]:
    """ZeRO-1 and 2 split the optimizer's state; the weights are whole, mapped from the file."""
    for name, tensor in state["module"].items():
        yield Stored(name, tuple(tensor.shape), tensor.dtype, tensor.clone)


def _zero3(parts: Path, states: list[Mapping[str, Any]]) -> Iterator[Stored]:
    """ZeRO-3: each rank has a slice of every tensor, one after the other in its flat float32 groups.

    The weights are what those round to in the type that was trained in. Layout: deepspeed/utils/zero_to_fp32.py.
    """
    optim = [_torch_load(path)["optimizer_state_dict"] for path in _by_rank(parts, "*zero_pp_rank_*_optim_states.pt")]
    world = len(states)
    if len(optim) != world or optim[0]["partition_count"] != world:
        raise ValueError(
            f"{len(states)} and {len(optim)} of {optim[0]['partition_count'] if optim else '?'} ranks' files"
        )
    module, flat, start = states[0]["module"], [each["fp32_flat_groups"] for each in optim], 0
    for name, shape in (pair for group in states[0]["param_shapes"] for pair in group.items()):
        count = ceil(prod(shape) / world)
        yield Stored(
            name, tuple(shape), module[name].dtype, _Slices(flat, start, count, tuple(shape), module[name].dtype)
        )
        start += count
    for name, shape in (states[0].get("frozen_param_shapes") or {}).items():
        fragments = [[each["frozen_param_fragments"][name].flatten()] for each in states]
        count = ceil(prod(shape) / world)
        yield Stored(
            name, tuple(shape), module[name].dtype, _Slices(fragments, 0, count, tuple(shape), module[name].dtype)
        )
    for name in states[0]["buffer_names"]:
        yield Stored(name, tuple(module[name].shape), module[name].dtype, module[name].clone)


@dataclass(frozen=True)
class _Slices:
    """Puts together the slices of a tensor that the ranks have."""

    flat: list[list[Tensor]]
    """Of each rank, tensors that are one after the other."""
    start: int
    count: int
    """Elements of a slice; the last one's is padded."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        slices = [part for groups in self.flat for part in self._of(groups)]
        return torch.cat(slices)[: prod(self.shape)].view(self.shape).to(self.dtype)

    def _of(self, groups: list[Tensor]) -> Iterator[Tensor]:
        begin = 0
        for group in groups:
            first, last = max(self.start, begin), min(self.start + self.count, begin + group.numel())
            if first < last:
                yield group[first - begin : last - begin]
            begin += group.numel()


def _by_rank(parts: Path, pattern: str) -> list[Path]:
    def rank(path: Path) -> int:
        return int(path.name.partition("pp_rank_")[2].partition("_")[0])

    return sorted(parts.glob(pattern), key=rank)


# --- reading pickles -------------------------------------------------------------------------------------------------


class _Unknown:
    """Stands for an object of a class that is not let in: DeepSpeed's loss scaler and the like."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN = {
    ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch.serialization", "_get_layout"), ("torch", "Tensor"),
    ("torch", "Size"), ("torch", "device"), ("torch.nn.parameter", "Parameter"),
}  # fmt: skip
_METADATA = frozenset({
    "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "BytesStorageMetadata",
    "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING", "_StorageInfo",
})  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Makes tensors, containers and the metadata of distributed checkpoints, and of nothing else anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return getattr(import_module(module), name)
        if module == "torch":
            found = getattr(torch, name, None)
            return found if isinstance(found, torch.dtype | torch.layout) else _Unknown
        if module.startswith("torch.distributed.checkpoint.") and name in _METADATA:
            return getattr(import_module(module), name)
        return _Unknown


def _torch_load(path: Path) -> Any:
    """What torch.save wrote, its tensors mapped from the file."""
    reader = SimpleNamespace(Unpickler=_Unpickler, load=lambda file, **_: _Unpickler(file).load(), __name__="reader")
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=reader)


def _need(parts: Path, names: set[str]) -> None:
    missing = sorted(name for name in names if not (parts / name).exists())
    if missing:
        raise ValueError(f"it lacks {', '.join(missing[:3])}")


# --- names and files -------------------------------------------------------------------------------------------------


def _empty_model(folder: Path, tensors: list[Stored]) -> Any:
    """The model of the config, without weights, with as many tokens as the checkpoint has. Raises RequestError when
    the checkpoint's tensors are not the model's."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = next((name for name in config.architectures or () if hasattr(transformers, name)), None)
    if name is None:
        raise RequestError(f"transformers has no model {config.architectures} ({folder / 'config.json'})")
    config.get_text_config().vocab_size = _rows(tensors) or config.get_text_config().vocab_size
    with init_empty_weights(include_buffers=False):
        model = getattr(transformers, name)._from_config(config)
    ours = {key: tuple(each.shape) for key, each in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    found = {each.name: each.shape for each in tensors}
    wrong = [key for key in ours.keys() | found.keys() if ours.get(key) != found.get(key) and key not in tied]
    if wrong:
        shown = f"{wrong[0]}: {list(found.get(wrong[0], ()))}, and in the model {list(ours.get(wrong[0], ()))}"
        message = f"the checkpoint is not of the model in {folder}: {len(wrong)} tensors differ, as {shown}"
        raise RequestError(Problem(message, "name the model that was trained with --base PATH"))
    model._weight_conversions = [
        each for each in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(each, PrefixChange)
    ] or None
    return model


def _vocabulary_change(config: Mapping[str, Any], rows: int | None) -> dict[str, int]:
    """`vocab_size`, where tokens were added since the config was written."""
    said = (config.get("text_config") or config).get("vocab_size")
    return {} if rows is None or said in (None, rows) else {"vocab_size": rows}


def _rows(tensors: list[Stored]) -> int | None:
    """Tokens that the checkpoint's embeddings have."""
    return next((each.shape[0] for each in tensors if each.name.endswith(_EMBEDDINGS)), None)


def _named(model: Any, tensors: list[Stored]) -> Iterator[tuple[Stored, list[tuple[str, Tensor]]]]:
    """Each tensor with the names that checkpoints have for it, and empty tensors of their shapes. What is tied to
    another is left out."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for each in tensors:
        if each.name not in tied:
            meta = torch.empty(each.shape, dtype=each.dtype, device="meta")
            yield each, list(_renamed(model, each.name, meta).items())


def _renamed(model: Any, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The tensor under its name in a checkpoint; experts that are one tensor in the model are several there."""
    if not model._weight_conversions:
        return {name: tensor}
    return dict(revert_weight_conversion(model, {name: tensor}))


def _output(stored: Stored, name: str, tensor: Tensor, asked: str | None) -> Output:
    if stored.dtype not in _NAMES:
        raise RequestError(f"{stored.name} is {stored.dtype}, which is not written here")
    dtype = asked if asked and stored.dtype.is_floating_point else _NAMES[stored.dtype]
    return Output(name, dtype, tuple(tensor.shape), None)


def _loaded(stored: Stored) -> Tensor:
    try:
        return stored.load()
    except (OSError, RuntimeError, pickle.UnpicklingError, ValueError, EOFError) as error:
        raise WorkError(f"{stored.name} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _prepare(plan: MergePlan, folder: Path) -> dict[str, tuple[Path, int, torch.dtype]]:
    """Write the headers; returns where each tensor goes and as what."""
    places: dict[str, tuple[Path, int, torch.dtype]] = {}
    for shard in plan.shards:
        header = build_header(shard.tensors, {"format": "pt"})
        (folder / shard.name).write_bytes(header)
        place = len(header)
        for each in shard.tensors:
            places[each.name] = (folder / shard.name, place, _TYPES[each.dtype])
            place += each.nbytes
    return places


def _write(path: Path, place: int, dtype: torch.dtype, tensor: Tensor) -> int:
    data = tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(memoryview(data))
    return len(data)
