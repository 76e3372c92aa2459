"""safetensors files that are cut off, or whose header lies, are found out before a byte of them is used."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ptcli.merge.headers import build_header, read_metadata, read_tensors
from ptcli.merge.model import Output
from ptcli.recipe.local_models import BadWeights

from .folders import write_tensors


def raw(path: Path, header: Any, data: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def entry(begin: int, end: int, shape: Any = (4,), dtype: Any = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# header, bytes of data, what the message says
LIES: dict[str, tuple[Any, int, str]] = {
    "cut off": ({"a": entry(0, 8), "b": entry(8, 16)}, 12, "is cut off: 4 bytes are missing"),
    "bytes that belong to nobody": ({"a": entry(0, 8)}, 12, "4 bytes of the file belong to no tensor"),
    "two tensors in one place": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b overlaps"),
    "a hole": ({"a": entry(0, 8), "b": entry(10, 18)}, 18, "b leaves a hole"),
    "shape and bytes that differ": ({"a": entry(0, 8, (5,))}, 8, "a is BF16 [5] in 8 bytes, which would take 10"),
    "an end before the start": ({"a": entry(8, 0)}, 8, "cannot be true"),
    "a negative place": ({"a": entry(-8, 0)}, 8, "does not describe a"),
    "a place that is no number": ({"a": entry(0, 8) | {"data_offsets": ["0", 8]}}, 8, "does not describe a"),
    "no places": ({"a": {"dtype": "BF16", "shape": [4]}}, 8, "does not describe a"),
    "a dtype of the future": ({"a": entry(0, 8, dtype="BF13")}, 8, "a is BF13"),
    "a shape that is none": ({"a": entry(0, 8, "x")}, 8, "does not describe a"),
    "no JSON": (b"{not json", 8, "is not JSON"),
    "no mapping": ([1, 2], 8, "does not describe tensors"),
    "a Git LFS pointer": (None, 0, "git lfs pull"),
    "empty": (None, 1, "is not a safetensors file"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found_out(name: str, tmp_path: Path) -> None:
    header, data, said = LIES[name]
    path = tmp_path / "model.safetensors"
    if header is None:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" if not data else b"")
    else:
        raw(path, header, data)
    with pytest.raises(BadWeights) as caught:
        read_tensors(path)
    assert said in str(caught.value)


def test_a_header_that_is_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(BadWeights, match="cut off"):
        read_tensors(path)


def test_tensors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = raw(tmp_path / "m.safetensors", {"b": entry(8, 16), "a": entry(0, 8), "__metadata__": {"format": "pt"}}, 16)
    tensors = read_tensors(path)
    assert list(tensors) == ["a", "b"]
    assert tensors["b"].start == tensors["a"].start + 8
    assert path.stat().st_size == tensors["b"].start + 8
    assert read_metadata(path) == {"format": "pt"}


def test_what_is_built_is_read_again(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.safetensors", {"ä": (2, 3), "scalar": (), "none": (0, 4)})
    assert {name: each.shape for name, each in read_tensors(path).items()} == {
        "ä": (2, 3),
        "scalar": (),
        "none": (0, 4),
    }
    assert (len(build_header([Output("x", "F32", (1,), None)], {})) - 8) % 8 == 0
