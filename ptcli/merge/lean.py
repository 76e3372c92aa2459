"""Imports that a merge can do without, and the rest of them quickly."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_TRANSFORM = "torch._dynamo._trace_wrapped_higher_order_op"


def skip_bitsandbytes() -> None:
    """Have PEFT think that bitsandbytes is not installed, which it imports otherwise: 1.5 s of processor time.

    Nothing is merged into quantised weights. For a process that does nothing else, since PEFT asks only once.
    """
    if "peft" not in sys.modules:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def skip_triton() -> None:
    """Have torch think that triton is not installed, for which it compiles: 0.1 s and 70 MB. Nothing is compiled."""
    if "torch" not in sys.modules:
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


def skip_distributed() -> None:
    """Have transformers find torch built without `torch.distributed`, which loads its tensors and FSDP otherwise."""
    import torch.distributed

    torch.distributed.is_available = lambda: False


def skip_compiler() -> None:
    """Have transformers decorate its functions without importing torch's compiler: with what is distributed 0.7 s of
    processor time and 75 MB. Whoever asks for any more of the compiler gets the compiler."""
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = _Compiler(_COMPILER)
        transform = ModuleType(_TRANSFORM)
        transform.TransformGetItemToIndex = _Transform  # type: ignore[attr-defined]
        sys.modules[_TRANSFORM] = transform


class _Compiler(ModuleType):
    """`torch._dynamo` as far as decorators need it where nothing is compiled."""

    @staticmethod
    def assume_constant_result(function: Callable) -> Callable:
        return function

    @staticmethod
    def allow_in_graph(function: Any) -> Any:
        return function

    @staticmethod
    def disable(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
        return function if function is not None else lambda decorated: decorated

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what submodules are imported by
            raise AttributeError(name)
        return getattr(_really(_COMPILER), name)


class _Transform:
    """`TransformGetItemToIndex`, imported when one is made."""

    def __new__(cls) -> Any:
        return _really(_TRANSFORM).TransformGetItemToIndex()


def _really(name: str) -> ModuleType:
    for module in (_COMPILER, _TRANSFORM):
        if not hasattr(sys.modules.get(module), "__file__"):  # which what stands in for it has not
            sys.modules.pop(module, None)
    return import_module(name)


@contextmanager
def imported_quickly() -> Iterator[None]:
    """No garbage is collected while modules are imported, which make none: a quarter of the time of PEFT's."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # nor are they looked at again
