"""The structure of a merged folder: tensors, shapes, numbers, index."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open

from ptcli.errors import WorkError
from ptcli.merge.headers import read_tensors
from ptcli.merge.model import MergePlan, Output, Progress, Tensor
from ptcli.recipe.local_models import BadWeights, read_json, weight_files

INDEX = "model.safetensors.index.json"
_WORKERS = 2
BLOCK = 1 << 20
"""Elements that are looked at together."""


def check_structure(plan: MergePlan, folder: Path) -> None:
    """Raise WorkError, with all that is wrong, unless the folder holds the tensors that the plan says."""
    files = weight_files(folder)
    found = _read(files)
    _refuse([*_names(plan, {each.name: each for each in plan.outputs}, found), *_index(folder, files, found)])


def check_numbers(plan: MergePlan, folder: Path, progress: Progress, sound: Collection[str] = ()) -> None:
    """Raise WorkError when a tensor that was computed is not finite, or none differs from the base's.

    `sound`: tensors that are known to be finite.
    """
    expected = {each.name: each for each in plan.outputs}
    _refuse(list(_numbers(expected, _read(weight_files(folder)), progress, sound)))


def _read(files: list[Path]) -> dict[str, Tensor]:
    try:
        return {name: tensor for path in files for name, tensor in read_tensors(path).items()}
    except BadWeights as error:
        raise WorkError(f"the merged weights cannot be read: a file {error}") from error


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise WorkError("the merged model is not what it should be: " + "; ".join(wrong))


def _names(plan: MergePlan, expected: Mapping[str, Output], found: Mapping[str, Tensor]) -> Iterator[str]:
    """What is missing, too much, or of another shape. PEFT names a handed-over model's tensors by itself."""
    head_may_go = bool(plan.base_config.get("tie_word_embeddings"))
    for name in expected.keys() - found.keys():
        if not (plan.mode == "handover" and head_may_go and name.startswith("lm_head.")):
            yield f"{name} is missing"
    if plan.mode == "stream":
        yield from (f"{name} is not of the base" for name in found.keys() - expected.keys())
    for name in expected.keys() & found.keys():
        if expected[name].shape != found[name].shape:
            yield f"{name} has the shape {list(found[name].shape)}, not {list(expected[name].shape)}"


def _index(folder: Path, files: list[Path], found: Mapping[str, Tensor]) -> Iterator[str]:
    index = read_json(folder / INDEX)
    if index is None:
        if len(files) > 1:
            yield f"several files of weights and no {INDEX}"
        return
    if index.get("weight_map") != {name: tensor.file.name for name, tensor in found.items()}:
        yield f"{INDEX} names other tensors or files than are there"
    told, size = (index.get("metadata") or {}).get("total_size"), sum(tensor.nbytes for tensor in found.values())
    if told != size:
        yield f"{INDEX} says {told} bytes, and there are {size}"


def _numbers(
    expected: Mapping[str, Output], found: Mapping[str, Tensor], progress: Progress, sound: Collection[str]
) -> Iterator[str]:
    """What is not finite among the tensors that were computed; and whether any differs from the base's."""
    computed = [each for each in expected.values() if each.name in found and (each.operations or not each.source)]
    computed = computed or [each for each in expected.values() if each.name in found]
    unseen = [each for each in computed if each.name not in sound]
    total, done = sum(each.nbytes for each in unseen), 0
    with ThreadPoolExecutor(_WORKERS) as pool:
        finite = pool.map(lambda each: _is_finite(_mapped(found[each.name])), unseen)
        for output, is_sound in zip(unseen, finite, strict=True):
            if not is_sound:
                yield f"{output.name} has values that are not finite"
            done += output.nbytes
            progress("looking at the tensors", done, total)
    if not any(_differs(_mapped(found[each.name]), each.source) for each in computed):
        yield (
            "no tensor differs from the base's: the adapter changes nothing, or less than the type can hold "
            "(was it trained? would --dtype float32 hold it?)"
        )


def _mapped(tensor: Tensor) -> torch.Tensor:
    """The tensor as it lies in its file, which stays mapped as long as the tensor is kept."""
    with safe_open(tensor.file, framework="pt") as file:
        return file.get_tensor(tensor.name).flatten()


def _differs(tensor: torch.Tensor, source: Tensor | None) -> bool:
    if source is None:
        return True
    before = _mapped(source)
    if before.shape != tensor.shape:
        return True
    pairs = zip(tensor.split(BLOCK), before.split(BLOCK), strict=True)
    return any(not new.equal(old.to(new.dtype)) for new, old in pairs)


def _is_finite(tensor: torch.Tensor) -> bool:
    """By the extremes, which are NaN where anything is, in one pass that makes nothing."""
    if not tensor.is_floating_point():
        return True
    return all(bool(torch.stack(torch.aminmax(block)).isfinite().all()) for block in tensor.split(BLOCK))
