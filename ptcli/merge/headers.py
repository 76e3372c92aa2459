"""safetensors headers, read strictly: what a header says must be true of the file before any byte is trusted."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ptcli.merge.model import ITEM_BYTES, Output, Tensor
from ptcli.recipe.local_models import BadWeights, read_json_header

_ALIGNMENT = 8
"""safetensors pads a header to a multiple of it, so that the tensors are aligned."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, in the order in which they lie. Raises BadWeights when the header lies."""
    header, start, size = read_json_header(path)
    tensors = [_tensor(name, entry, path, start) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda each: (each.start, each.nbytes))
    _check_places(tensors, start, size)
    return {each.name: each for each in tensors}


def read_metadata(path: Path) -> dict[str, str]:
    """`__metadata__` of a safetensors file; empty without one."""
    found = read_json_header(path)[0].get("__metadata__")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, Mapping) else {}


def build_header(tensors: Iterable[Output], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a safetensors file: length, and JSON padded with blanks."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for each in tensors:
        begin, end = end, end + each.nbytes
        entries[each.name] = {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _tensor(name: str, entry: Any, path: Path, start: int) -> Tensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        counts = (*shape, begin, end)
        if any(type(each) is not int or each < 0 for each in counts):
            raise TypeError
        size = ITEM_BYTES.get(dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"is not a safetensors file: its header does not describe {name}") from error
    if size is None:
        raise BadWeights(f"has a dtype that is not known here: {name} is {dtype}")
    if end - begin != size * prod(shape):
        told = f"{name} is {dtype} {list(shape)} in {end - begin} bytes"
        raise BadWeights(f"has a header that cannot be true: {told}, which would take {size * prod(shape)}")
    return Tensor(name, dtype, shape, path, start + begin, end - begin)


def _check_places(tensors: list[Tensor], start: int, size: int) -> None:
    """Each tensor begins where the one before it ends, and the last ends with the file."""
    place = start
    for each in tensors:
        if each.start != place:
            what = "overlaps the tensor before it" if each.start < place else "leaves a hole before it"
            raise BadWeights(f"has a header that cannot be true: {each.name} {what}")
        place += each.nbytes
    if place > size:
        raise BadWeights(f"is cut off: {place - size} bytes are missing")
    if place < size:
        raise BadWeights(f"has a header that cannot be true: {size - place} bytes of the file belong to no tensor")
