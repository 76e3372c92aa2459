"""What a stream needs of torch, from libtorch's C interface: loading the library takes a fifth of importing torch.

The interface (`torch/csrc/inductor/aoti_torch/c/shim.h`) is what compiled models link to, and is kept stable for them.
Names and meanings are torch's, and the kernels behind them are the same, so that the results are, to the last bit.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import cast

_INT, _LONG, _FLOAT = ctypes.c_int32, ctypes.c_int64, ctypes.c_double
_HANDLE, _NEW_HANDLE, _LONGS = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(_LONG)
_FUNCTIONS = {
    "create_tensor_from_blob": (ctypes.c_void_p, _LONG, _LONGS, _LONGS, _LONG, _INT, _INT, _INT, _NEW_HANDLE),
    "delete_tensor_object": (_HANDLE,),
    "copy_": (_HANDLE, _HANDLE, _INT),
    "item_float64": (_HANDLE, ctypes.POINTER(_FLOAT)),
    "cpu_mm_out": (_HANDLE, _HANDLE, _HANDLE),
    "cpu_addmm_out": (_HANDLE, _HANDLE, _HANDLE, _HANDLE, _FLOAT, _FLOAT),
    "cpu_mul_Scalar": (_HANDLE, _FLOAT, _NEW_HANDLE),
    "cpu_add_Tensor": (_HANDLE, _HANDLE, _FLOAT, _NEW_HANDLE),
    "call_dispatcher": (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64)),
}  # fmt: skip
"""Functions, and what they take. Each returns 0 when it went well, and gives new tensors by their handles."""
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_SET_THREADS, _GET_THREADS = "_ZN2at15set_num_threadsEi", "_ZN2at15get_num_threadsEv"
"""`at::set_num_threads` and `at::get_num_threads`, which have no name in C."""
_CPU = 0


def load() -> LibTorch:
    """As much of torch as `LibTorch` has; torch itself where it is imported already, or its library is another."""
    if "torch" not in sys.modules:
        try:
            return LibTorch(find_library())
        except (OSError, AttributeError):
            pass
    import torch

    return cast(LibTorch, torch)


def find_library() -> Path:
    """Where libtorch is, without importing torch. Raises OSError when it is not installed."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise FileNotFoundError("torch is not installed")
    return Path(found.origin).parent / "lib" / "libtorch_cpu.so"


@dataclass(frozen=True)
class Dtype:
    """A type of numbers."""

    code: int
    itemsize: int


class LibTorch:
    """The part of the module `torch` that a stream uses.

    Raises OSError or AttributeError when the library cannot be loaded or lacks anything.
    """

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self._functions = {name: self._function(name, types) for name, types in _FUNCTIONS.items()}
        self._set_threads, self._get_threads = self._library[_SET_THREADS], self._library[_GET_THREADS]
        dtypes = {
            name: Dtype(getattr(self._library, f"aoti_torch_dtype_{name}")(), size)
            for name, size in _ITEM_BYTES.items()
        }
        self.float64, self.float32 = dtypes["float64"], dtypes["float32"]
        self.float16, self.bfloat16 = dtypes["float16"], dtypes["bfloat16"]

    def _function(self, name: str, types: Sequence[type]) -> ctypes._NamedFuncPointer:
        function = getattr(self._library, f"aoti_torch_{name}")
        function.argtypes, function.restype = types, _INT
        return function

    def call(self, name: str, *arguments: object) -> None:
        if self._functions[name](*arguments):
            raise RuntimeError(f"libtorch failed in {name}")  # it has said why

    def new(self, name: str, *arguments: object) -> _Handle:
        """What a function gives that makes a tensor."""
        handle = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(handle))
        return _Handle(self, handle)

    def dispatch(self, operator: str, overload: str, *tensors: Tensor) -> _Handle:
        """What an operator gives that takes tensors alone. It keeps the handles that it is given."""
        given = [each.describe() for each in tensors]
        stack = (ctypes.c_uint64 * len(given))(*[each.give() for each in given])
        self.call("call_dispatcher", f"aten::{operator}".encode(), overload.encode(), stack)
        return _Handle(self, ctypes.c_void_p(stack[0]))

    def get_num_threads(self) -> int:
        return int(self._get_threads())

    def set_num_threads(self, count: int) -> None:
        self._set_threads(_INT(count))

    def frombuffer(self, buffer: bytearray | memoryview, *, dtype: Dtype, count: int) -> Tensor:
        start = ctypes.c_char.from_buffer(buffer) if count else ctypes.c_char()
        return Tensor(self, start, ctypes.addressof(start), dtype, (count,), (1,))

    def mm(self, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        self.call("cpu_mm_out", out.handle, a.handle, b.handle)
        return out

    def addmm(self, input: Tensor, a: Tensor, b: Tensor, *, alpha: float, out: Tensor) -> Tensor:
        self.call("cpu_addmm_out", out.handle, input.handle, a.handle, b.handle, 1.0, alpha)
        return out

    def aminmax(self, tensor: Tensor) -> tuple[float, float]:
        """The extremes; NaN where the tensor holds one."""
        return self.dispatch("min", "", tensor).item(), self.dispatch("max", "", tensor).item()


class _Handle:
    """A tensor of libtorch's, which is let go with this."""

    def __init__(self, torch: LibTorch, handle: ctypes.c_void_p):
        self._torch, self.value = torch, handle

    def __del__(self) -> None:
        if self.value:
            self._torch.call("delete_tensor_object", self.value)

    def give(self) -> int:
        """The handle, for another to let go."""
        value, self.value = self.value.value, ctypes.c_void_p()
        return value or 0

    def item(self) -> float:
        number = ctypes.c_double()
        self._torch.call("item_float64", self.value, ctypes.byref(number))
        return number.value


class Tensor:
    """Numbers in memory that somebody else holds."""

    def __init__(
        self,
        torch: LibTorch,
        start: object,
        address: int,
        dtype: Dtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ):
        self._torch, self._start, self._address, self._strides = torch, start, address, strides
        self.dtype, self.shape = dtype, shape
        self._handle: _Handle | None = None

    @property
    def handle(self) -> ctypes.c_void_p:
        if self._handle is None:
            self._handle = self.describe()
        return self._handle.value

    def describe(self) -> _Handle:
        """A tensor of libtorch's that is these numbers."""
        longs = _LONG * len(self.shape)
        where = (self._address, len(self.shape), longs(*self.shape), longs(*self._strides), 0)
        return self._torch.new("create_tensor_from_blob", *where, self.dtype.code, _CPU, 0)

    def data_ptr(self) -> int:
        return self._address

    def numel(self) -> int:
        return prod(self.shape)

    # views

    def view(self, shape: tuple[int, ...]) -> Tensor:
        """For numbers without gaps."""
        strides = tuple(prod(shape[place + 1 :]) for place in range(len(shape)))
        return self._like(0, shape, strides)

    def t(self) -> Tensor:
        return self._like(0, self.shape[::-1], self._strides[::-1])

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> Tensor:
        offset, shape, strides = 0, [], []
        given = index if isinstance(index, tuple) else (index,)
        for each, extent, stride in zip(given, self.shape, self._strides, strict=False):
            if isinstance(each, int):
                offset += range(extent)[each] * stride
            else:
                chosen = range(extent)[each]
                offset += chosen.start * stride
                shape.append(len(chosen))
                strides.append(stride * chosen.step)
        rest = len(given)
        return self._like(offset, (*shape, *self.shape[rest:]), (*strides, *self._strides[rest:]))

    def _like(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        address = self._address + offset * self.dtype.itemsize
        return Tensor(self._torch, self._start, address, self.dtype, shape, strides)

    # sums

    def copy_(self, source: Tensor) -> Tensor:
        self._torch.call("copy_", self.handle, source.handle, 0)
        return self

    def mul_(self, factor: float) -> Tensor:
        product = self._torch.new("cpu_mul_Scalar", self.handle, factor)
        self._torch.call("copy_", self.handle, product.value, 0)
        return self

    def add_(self, other: Tensor) -> Tensor:
        total = self._torch.new("cpu_add_Tensor", self.handle, other.handle, 1.0)
        self._torch.call("copy_", self.handle, total.value, 0)
        return self
