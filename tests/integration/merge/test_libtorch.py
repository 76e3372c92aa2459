"""Sums by libtorch's C interface are torch's, to the bit; and what is wrong with them is an error."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ptcli.merge.libtorch import LibTorch, find_library


@pytest.fixture(scope="module")
def lean() -> LibTorch:
    return LibTorch(find_library())


def memory_of(tensor: torch.Tensor) -> bytearray:
    return bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def both(lean: LibTorch, tensor: torch.Tensor) -> tuple[bytearray, Any]:
    """The same numbers for the C interface, and the memory in which they are."""
    memory = memory_of(tensor)
    dtype = getattr(lean, str(tensor.dtype).removeprefix("torch."))
    return memory, lean.frombuffer(memory, dtype=dtype, count=tensor.numel()).view(tuple(tensor.shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_sums(dtype: torch.dtype, lean: LibTorch) -> None:
    torch.manual_seed(3)
    one, other = torch.randn(6, 8).to(dtype), torch.randn(6, 8)
    memory, mine = both(lean, one)
    mine.mul_(0.7).add_(both(lean, other)[1])
    assert memory == memory_of(one.mul_(0.7).add_(other))


def test_products_of_views(lean: LibTorch) -> None:
    torch.manual_seed(3)
    a, b, target = torch.randn(4, 10), torch.randn(9, 4, 3), torch.randn(5, 6)
    memory, out = both(lean, target)
    mine_a, mine_b = both(lean, a)[1], both(lean, b)[1]
    lean.addmm(out, mine_b[2:7, :, 1], mine_a[:, 4:], alpha=0.5, out=out)
    assert memory == memory_of(torch.addmm(target, b[2:7, :, 1], a[:, 4:], alpha=0.5))
    lean.mm(mine_b[2:7, :, 1], mine_a[:, 4:], out=out)
    assert memory == memory_of(b[2:7, :, 1] @ a[:, 4:])
    out[-1].copy_(mine_a.t()[2:8, 3])
    assert memory[-24:] == memory_of(a.t()[2:8, 3])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_extremes(wrong: float, lean: LibTorch) -> None:
    values = torch.arange(64, dtype=torch.bfloat16)
    assert lean.aminmax(both(lean, values)[1]) == (0, 63)
    values[40] = wrong
    assert not all(math.isfinite(each) for each in lean.aminmax(both(lean, values)[1]))


def test_what_libtorch_refuses_is_an_error(lean: LibTorch) -> None:
    out = both(lean, torch.zeros(2, 2))[1]
    with pytest.raises(RuntimeError, match="libtorch failed in cpu_mm_out"):
        lean.mm(both(lean, torch.zeros(2, 3))[1], both(lean, torch.zeros(2, 3))[1], out=out)


def test_a_library_that_is_another(tmp_path: Path) -> None:
    code = f"""
import sys, pathlib
from ptcli.merge import libtorch
libtorch.find_library = lambda: pathlib.Path({str(tmp_path)!r}, "libtorch_cpu.so")
print(libtorch.load() is sys.modules["torch"])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_torch_is_not_imported_for_a_stream() -> None:
    code = "import sys; from ptcli.merge.libtorch import load; print(type(load()).__name__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["LibTorch", "False"]
