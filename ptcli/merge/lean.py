"""Imports that a merge can do without, and the rest of them quickly."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_TRANSFORM = "torch._dynamo._trace_wrapped_higher_order_op"
_OPERATORS = "torch._meta_registrations"
_IMPORTS = "transformers.utils.import_utils"


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


def skip_python_operators() -> None:
    """Have torch do without the operators on tensors without memory that are written in Python, 0.2 s of processor
    time: transformers makes its models by those that are not. No `torch.Generator` can be made without them."""
    if "torch" not in sys.modules:
        sys.modules.setdefault(_OPERATORS, _Operators(_OPERATORS))


class _Operators(ModuleType):
    """`torch._meta_registrations`, imported when somebody asks for anything in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_really(_OPERATORS), name)


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
    for module in (_COMPILER, _TRANSFORM, _OPERATORS):
        if not hasattr(sys.modules.get(module), "__file__"):  # which what stands in for it has not
            sys.modules.pop(module, None)
    import_module(_OPERATORS)  # first, as torch does it, or the compiler imports itself in a circle
    return import_module(name)


def quicken_transformers() -> None:
    """Have transformers read what its 1500 files of models define once, not twice and not line by line, and not list
    the files of all packages that are installed: 0.5 s of processor time."""
    if _IMPORTS not in sys.modules:
        sys.meta_path.insert(0, _Quickened())


class _Quickened(MetaPathFinder):
    """Finds the module of transformers' that does so, and changes it as soon as it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _IMPORTS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _quickened(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec


def _quickened(run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def work(module: Any) -> None:
        listed, metadata.packages_distributions = metadata.packages_distributions, _Distributions
        try:
            run(module)
        finally:
            metadata.packages_distributions = listed
        read = module.fetch__all__
        module.fetch__all__ = lambda text: read(text[max(0, text.rfind("\n__all__")) :])
        module.create_import_structure_from_path = cache(module.create_import_structure_from_path.__wrapped__)

    return work


class _Distributions(Mapping[str, list[str]]):
    """What `packages_distributions` gives, put together when somebody asks for a package that is not distributed by
    its own name."""

    def __getitem__(self, name: str) -> list[str]:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return list(metadata.packages_distributions()[name])
        return [name]

    def __iter__(self) -> Iterator[str]:
        return iter(metadata.packages_distributions())

    def __len__(self) -> int:
        return len(metadata.packages_distributions())


@contextmanager
def imported_quickly() -> Iterator[None]:
    """No garbage is collected while modules are imported, which make none: a quarter of the time of PEFT's."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # nor are they looked at again
