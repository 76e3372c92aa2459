"""What a merge will read, compute and write, from configs and safetensors headers alone: in milliseconds, no torch.

Every tensor of the adapter is used exactly once, or there is no plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ptcli.errors import Problem, RequestError
from ptcli.merge.adapter import Adapter, read_adapter
from ptcli.merge.base import Base, read_base
from ptcli.merge.identity import compare
from ptcli.merge.machine import worker_count
from ptcli.merge.model import ITEM_BYTES, AddLora, MergePlan, Operation, Output, Shard, Tensor
from ptcli.merge.names import Names, is_head, is_input
from ptcli.merge.operations import Consumed, consume
from ptcli.merge.targets import lacking
from ptcli.merge.tying import Untied, untie

DTYPES: Mapping[str, str] = {
    "bfloat16": "BF16", "bf16": "BF16", "float16": "F16", "fp16": "F16", "half": "F16", "float32": "F32", "fp32": "F32",
}  # fmt: skip
"""What --dtype may say, as safetensors writes it."""
_TORCH: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_FLOATS = ("F64", "F32", "F16", "BF16")
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?i?B)?", re.IGNORECASE)
_STREAM_MEMORY, _WORKER_MEMORY = 160 << 20, 8 << 20
"""Bytes: Python and libtorch, and the blocks of a worker (measured)."""
_PEFT_MEMORY = 700 << 20
"""Bytes: Python, torch, transformers and PEFT, before a model is loaded."""


def plan_merge(
    adapter: str,
    *,
    base: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    allow_missing: bool = False,
    download: bool = False,
) -> MergePlan:
    """Plan the merge of an adapter (a folder, a run directory, `RUN@500`) into its base.

    `base`: a folder or hub id instead of what the adapter's config names; with `download`, fetched when it is not here.

    Raises RequestError, with all that is wrong, when there is no such merge.
    """
    problems: list[Problem] = []
    asked = _collect(problems, lambda: _Asked(parse_dtype(dtype), parse_size(max_shard_size), allow_missing))
    found = _collect(problems, lambda: read_adapter(adapter, download=download))
    if found is None or asked is None:
        raise RequestError(problems)
    path, revision = _base_of(found, base)
    return _plan(found, read_base(path, revision, download=download), asked)


@dataclass(frozen=True)
class _Asked:
    dtype: str | None
    """As safetensors writes it."""
    max_shard_bytes: int | None
    allow_missing: bool


def _collect(problems: list[Problem], work: Any) -> Any:
    try:
        return work()
    except RequestError as error:
        problems += error.problems
        return None


def parse_dtype(given: str | None) -> str | None:
    if given is None:
        return None
    if given.lower() not in DTYPES:
        raise RequestError(
            Problem(f"--dtype {given} is none to merge into", f"it is one of {', '.join(_TORCH.values())}")
        )
    return DTYPES[given.lower()]


def parse_size(given: str | None) -> int | None:
    """`5GB` is 5e9 bytes and `5GiB` 5 x 2^30, as transformers reads them."""
    if given is None:
        return None
    match = _SIZE.fullmatch(given.strip())
    unit = (match["unit"] or "B").upper() if match else ""
    size = float(match["number"]) * (1024 if "I" in unit else 1000) ** "BKMGT".index(unit[0]) if match else 0
    if size < 1:
        raise RequestError(Problem(f"--max-shard-size {given} is no size", "write it as 5GB or 500MB"))
    return int(size)


def _base_of(adapter: Adapter, given: str | None) -> tuple[str, str | None]:
    named, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if given is not None:
        return given, revision if given == named else None
    if not isinstance(named, str) or not named:
        message = f"{adapter.folder} does not say what its base is"
        raise RequestError(Problem(message, "give it with --base PATH"))
    return named, revision


def _plan(adapter: Adapter, base: Base, asked: _Asked) -> MergePlan:
    names = Names(base.config, base.tensors)
    found = _consume(adapter, base, names, asked)
    found.problems += _vocabularies(base, found, names)
    other, told = compare(adapter.folder, adapter.config, base.name, base.tensors) if not base.original else (None, "")
    if found.problems or other:
        raise RequestError([*_few(found.problems), *([other] if other else [])])
    _refuse_twice(adapter, found)
    reason = adapter.handover or ("its weights are pickled (.bin)" if not base.tensors else "")
    reason = reason or (found.handover[0] if found.handover else "")
    untied = Untied(found.operations)
    if not found.added:  # with a head that gives scores, there is no pair
        untied = untie(base, found.operations, names, adapter.config)
    rows = {shape[0] for shape in found.shapes.values()}
    done = Untied({}) if reason else untied
    shards = _shards(base, _outputs(base, done, found, asked), asked) if base.tensors else ()
    plan = MergePlan(
        mode="handover" if reason else "stream",
        reason=reason,
        adapter=adapter.folder,
        adapter_config=adapter.config,
        base=base.folder,
        base_name=base.name,
        base_revision=base.revision,
        base_config=base.config,
        dtype=_TORCH[asked.dtype] if asked.dtype else None,
        shards=shards,
        config_changes={**untied.config_changes, **({"vocab_size": max(rows)} if rows else {})},
        notes=tuple(filter(None, (*base.notes, told, *untied.notes))),
        max_shard_bytes=asked.max_shard_bytes,
        allow_missing=asked.allow_missing,
    )
    return replace(plan, memory=_memory(plan, base))


def _consume(adapter: Adapter, base: Base, names: Names, asked: _Asked) -> Consumed:
    """What is done to which tensor; nothing of it for an adapter or a base whose names only PEFT knows."""
    config = adapter.config
    if not (str(config.get("peft_type")).lower() == "lora" and adapter.tensors and base.tensors):
        return Consumed()
    found = consume(adapter, base, names)
    absent = [] if found.problems or found.handover else lacking(adapter, base, names, found.modules)
    if absent and not asked.allow_missing:
        shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        message = f"the adapter is not whole: its config targets {shown}, for which it has no tensors"
        found.problems.append(Problem(message, "save it again, or merge what there is with --allow-missing"))
    if not found.operations and not found.problems and not found.handover:
        found.problems.append(Problem(f"{adapter.folder} holds no tensors: there is nothing to merge"))
    return found


def _refuse_twice(adapter: Adapter, found: Consumed) -> None:
    """PEFT 0.21.2 adds the change of tied embeddings that were trained as one twice; streamed, it is added once."""
    if not adapter.config.get("ensure_weight_tying") or not (adapter.handover or found.handover):
        return
    modules = (key.partition(".lora_") for key in adapter.tensors)
    if any(lora and (is_input(module) or is_head(module)) for module, lora, _ in modules):
        message = f"{adapter.folder} trains tied embeddings as one (`ensure_weight_tying`), and is for PEFT to merge"
        raise RequestError(Problem(message, "PEFT would add their change twice: serve it with PEFT"))


def _vocabularies(base: Base, found: Consumed, names: Names) -> list[Problem]:
    """Embeddings and head that would have different numbers of rows."""
    ends = [name for name in (names.inputs(), names.head()) if name]
    rows = {name: (found.shapes.get(name) or base.tensors[name].shape)[0] for name in ends}
    if len(set(rows.values())) < 2 or not found.shapes:
        return []
    told = " and ".join(f"{name} {count} rows" for name, count in rows.items())
    return [Problem(f"the adapter has another vocabulary than the base, and only in one place: {told}")]


def _few(problems: list[Problem]) -> list[Problem]:
    """The first problems; a wrong base has one for each layer."""
    if len(problems) <= 4:
        return problems
    return [*problems[:3], Problem(f"and {len(problems) - 3} more such tensors")]


# --- outputs ---------------------------------------------------------------------------------------------------------


def _outputs(base: Base, untied: Untied, found: Consumed, asked: _Asked) -> list[Output]:
    """The tensors of the merged model, in the order of the base's files. One that gives scores has no other head."""
    kept = (tensor for name, tensor in base.tensors.items()
            if not (found.added and is_head(name.removesuffix(".weight"))))  # fmt: skip
    outputs = [
        _output(tensor, untied.operations.get(tensor.name, ()), found.shapes.get(tensor.name), asked) for tensor in kept
    ]
    return [*outputs, *(replace(head, dtype=_cast(head.dtype, asked)) for head in (*untied.added, *found.added))]


def _output(tensor: Tensor, operations: Iterable[Operation], shape: tuple[int, ...] | None, asked: _Asked) -> Output:
    return Output(tensor.name, _cast(tensor.dtype, asked), shape or tensor.shape, tensor, tuple(operations))


def _cast(dtype: str, asked: _Asked) -> str:
    return asked.dtype if asked.dtype and dtype in _FLOATS else dtype


# --- files -----------------------------------------------------------------------------------------------------------


def _shards(base: Base, outputs: list[Output], asked: _Asked) -> tuple[Shard, ...]:
    """The base's files as they are; new ones where a tensor is added, or their size is asked for."""
    if asked.max_shard_bytes is not None:
        return cut_files(outputs, asked.max_shard_bytes)
    by_file: dict[str, list[Output]] = {path.name: [] for path in base.files}
    last = base.files[-1].name
    for each in outputs:
        mine = each.source.file.name if each.source and each.name in base.tensors else last
        by_file[mine].append(each)
    files = {path.name: path for path in base.files}
    renamed = _standard_names(list(by_file))
    return tuple(
        Shard(renamed[name], tuple(tensors), files[name]) if _same_header(tensors, name, base) else
        Shard(renamed[name], tuple(_aligned(tensors)))
        for name, tensors in by_file.items()
    )  # fmt: skip


def _standard_names(names: list[str]) -> dict[str, str]:
    """File names that every reader finds: a single file is `model.safetensors`, several are named by the index."""
    return {names[0]: "model.safetensors"} if len(names) == 1 else {name: name for name in names}


def _same_header(tensors: list[Output], file: str, base: Base) -> bool:
    before = sum(1 for each in base.tensors.values() if each.file.name == file)
    return len(tensors) == before and all(
        each.source is not None
        and each.source.file.name == file
        and (each.name, each.dtype, each.shape) == (each.source.name, each.source.dtype, each.source.shape)
        for each in tensors
    )


def _aligned(tensors: Iterable[Output]) -> Iterator[Output]:
    """Wide elements first, as safetensors orders them, so that each tensor begins at a multiple of its element."""
    return iter(sorted(tensors, key=lambda each: -ITEM_BYTES[each.dtype]))


def cut_files(outputs: list[Output], limit: int) -> tuple[Shard, ...]:
    """Files of at most `limit` bytes, in the order of the tensors; a larger tensor gets one of its own."""
    files: list[list[Output]] = [[]]
    for each in outputs:
        if files[-1] and sum(other.nbytes for other in files[-1]) + each.nbytes > limit:
            files.append([])
        files[-1].append(each)
    if len(files) == 1:
        return (Shard("model.safetensors", tuple(_aligned(files[0]))),)
    return tuple(
        Shard(f"model-{number:05}-of-{len(files):05}.safetensors", tuple(_aligned(tensors)))
        for number, tensors in enumerate(files, 1)
    )


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory(plan: MergePlan, base: Base) -> int:
    """Bytes, about: a worker of a stream holds blocks and a pair A and B, PEFT the model and a change in float32."""
    if plan.mode == "stream":
        pairs = [prod(each.a.shape) + prod(each.b.shape)
                 for output in plan.outputs for each in output.operations if isinstance(each, AddLora)]  # fmt: skip
        return _STREAM_MEMORY + worker_count() * (_WORKER_MEMORY + 4 * max(pairs, default=0))
    files = {each.file: each.file.stat().st_size for each in base.tensors.values()} if base.tensors else {
        path: path.stat().st_size for path in base.folder.glob("*.bin")}  # fmt: skip
    largest = max((prod(each.shape) for each in base.tensors.values()), default=0)
    adapter = sum(path.stat().st_size for path in plan.adapter.glob("adapter_model.*"))
    return _PEFT_MEMORY + sum(files.values()) + 2 * 4 * largest + 2 * adapter
