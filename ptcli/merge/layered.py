"""A model that is run without being loaded: every module's weights are mapped while it runs, and let go afterwards.

transformers builds the model and runs it, PEFT may wrap it; only where the weights come from is different. Each module
that owns weights is given them by a hook before its forward, through transformers' own renames and conversions from
checkpoint names, and placeholders of NaN otherwise: whatever is used without having been given ends in NaN, and not in
a number that looks right. Everything is computed in float32. Matrices stay mapped in the checkpoint's type, are
multiplied by blocks of rows, and each block's pages are let go when it has been read, so that what is held of a matrix
is a few megabytes. Only what has to be computed from the checkpoint's tensors first (experts of a layer put together)
is held as a whole.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from threading import Event, local
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ptcli.recipe.local_models import read_header, weight_files

NAN = float("nan")
_MAPPED = "_lies_in_a_mapped_file"
_MADVISE = ctypes.CDLL(None).madvise
_MADVISE.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_RANDOM = ("normal_", "uniform_", "kaiming_uniform_")
"""Methods of tensors, and functions of `torch.nn.init`, in which those of other names end."""
BLOCK = 1 << 20
"""Elements of a matrix that are cast at once: 4 MB in float32, which stays in the processor's cache."""


class NotLayered(Exception):
    """The model cannot be run in this way. The message says why."""


@dataclass
class Source:
    """Where a parameter comes from: tensors of the checkpoint, and what makes the parameter of them."""

    transform: Any = None
    """A WeightConverter of transformers'; None for a tensor that is the parameter."""
    tensors: list[tuple[str, str, Path]] = field(default_factory=list)
    """Key, source pattern of the transform, and file of each."""

    def load(self, target: str, model: Any) -> dict[str, Tensor]:
        """The parameters that it gives, by name; mapped from the files where nothing has to be computed."""
        if self.transform is None:
            key, _, path = self.tensors[0]
            with safe_open(path, framework="pt") as file:
                return {target: parameter_of(file.get_tensor(key), mapped=maps(path))}
        transform = deepcopy(self.transform)
        files = {path: safe_open(path, framework="pt") for path in {path for _, _, path in self.tensors}}
        mapped = set()
        for key, pattern, path in self.tensors:
            tensor = files[path].get_tensor(key)
            if maps(path):
                mapped.add(_storage(tensor))
            transform.add_tensor(target, key, pattern, tensor)
        converted = transform.convert(target, model=model, config=model.config)
        found = {name: each[0] if isinstance(each, list) else each for name, each in converted.items()}
        return {name: parameter_of(each, mapped=_storage(each) in mapped) for name, each in found.items()}


class Layered:
    """A transformers model without weights, and where in `folder` each of its parameters comes from, except the names
    in `brought`, which an adapter will bring.

    While it runs, tensors of the folder that are seen to hold finite numbers are added to `sound`.
    """

    def __init__(self, folder: Path, model: Any, brought: Collection[str] = (), sound: set[str] | None = None):
        self.model = model
        self._sound = sound
        self._sources = _sources(folder, model)
        self._tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
        self._owners = list(self._empty(brought))

    def attach(self, wrapped: nn.Module) -> nn.Module:
        """Put the hooks on `wrapped`, which is the model itself or PEFT's model around it; returns it.

        A module that PEFT wrapped is given its weights before the wrapper runs, which may read them by itself.
        """
        outer = _wrappers(wrapped)
        for module, names in self._owners:
            top = outer.get(id(module), module)
            top.register_forward_pre_hook(partial(self._give, module, names), prepend=True)
            top.register_forward_hook(partial(self._take, module, names), always_call=True)
        return wrapped

    def _empty(self, brought: Collection[str]) -> Iterator[tuple[nn.Module, dict[str, str]]]:
        """Take the weights from every module; each with its own names of them and the model's, without those that an
        adapter brings: what it does not fill in the end is NaN as well, but can be written to."""
        for path, module in self.model.named_modules():
            names = {own: f"{path}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)}
            for own, name in names.items():
                shape = getattr(module, own).shape
                setattr(
                    module, own, _placeholder(shape) if name not in brought else parameter_of(torch.full(shape, NAN))
                )
            mine = {own: name for own, name in names.items() if name not in brought}
            if mine:
                yield module, mine

    def _give(self, module: nn.Module, names: Mapping[str, str], *_: Any) -> None:
        loaded: dict[str, Tensor] = {}
        for own, name in names.items():
            target = self._target(name)
            if target not in loaded:
                loaded |= self._load(target)
            tensor = loaded.get(target)
            if tensor is not None and tensor.shape == getattr(module, own).shape:
                setattr(module, own, _as_computed(module, tensor))

    def _target(self, name: str) -> str:
        return name if name in self._sources else self._tied.get(name, name)

    def _source(self, target: str) -> Source:
        if target not in self._sources:
            raise NotLayered(f"nothing in the weights gives {target}")
        return self._sources[target]

    def _load(self, target: str) -> dict[str, Tensor]:
        return self._source(target).load(target, self.model)

    def _take(self, module: nn.Module, names: Mapping[str, str], *called: Any) -> None:
        if self._sound is not None and _shows_numbers(module, called[-1]):
            self._sound.update(key for name in names.values() for key, *_ in self._source(self._target(name)).tensors)
        for own in names:
            setattr(module, own, _placeholder(getattr(module, own).shape))


def outline(model_class: Any, config: Any) -> Any:
    """The model that `config` describes, without weights.

    While it is made, no tensors can be made in other threads. Raises NotLayered when the class cannot be built so.
    """
    try:
        with init_empty_weights(include_buffers=False), Unfilled():
            model = model_class._from_config(
                config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
            )
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise NotLayered(f"{type(error).__name__}: {error}") from error
    return model.eval().requires_grad_(False)


class Unfilled(TorchFunctionMode):
    """Leaves tensors that have no memory as they are where they would be filled with random numbers: torch does that in
    Python, for which it imports sympy first, 0.3 s of processor time."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _RANDOM:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def _placeholder(shape: torch.Size) -> nn.Parameter:
    """NaN of that shape, which takes no memory and cannot be written to."""
    return parameter_of(torch.full((), NAN).expand(shape))


def parameter_of(tensor: Tensor, *, mapped: bool = False) -> nn.Parameter:
    """`mapped`: the tensor lies in a file that is mapped for reading, so that its pages may go and come again."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    setattr(parameter, _MAPPED, mapped)
    return parameter


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Float32(TorchFunctionMode):
    """Computes in float32 with weights of another type, without a float32 copy of any of them. One for each thread."""

    def __init__(self, stop: Event | None = None, workers: Workers | None = None) -> None:
        super().__init__()
        self._stop = stop
        """Set from outside, it ends the computation with NotLayered."""
        self._workers = workers

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self._stop is not None and self._stop.is_set():
            raise NotLayered("it was stopped")
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        return result.float() if func in (F.embedding, torch.embedding) else result

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`F.linear`, the weight (out, in) cast to float32 by blocks of its rows."""
        outputs, inputs = weight.shape
        if weight.dtype == input.dtype or inputs > BLOCK:
            return F.linear(input, weight.to(input.dtype), bias)
        flat = input.reshape(-1, inputs)
        result = flat.new_empty(outputs, flat.shape[0])
        multiply = partial(_multiply, weight, flat.t(), result)
        if self._workers is None:
            multiply(0, outputs)
        else:
            self._workers.share(multiply, outputs, BLOCK // inputs)
        summed = result.t() if bias is None else result.t() + bias
        return summed.reshape(*input.shape[:-1], outputs)


class Workers:
    """Threads that share a matrix, so that no core waits for a model's one forward pass while others have nothing to
    do."""

    def __init__(self, pool: ThreadPoolExecutor, count: int):
        self._pool, self._count = pool, count

    def share(self, work: Callable[[int, int], None], rows: int, least: int) -> None:
        """Call `work(first, end)` for parts of so many rows, each of `least` or more."""
        step = max(least, -(-rows // self._count))
        jobs = [self._pool.submit(work, first, min(first + step, rows)) for first in range(0, rows, step)]
        for job in jobs:
            job.result()


_memory = local()


def _block() -> Tensor:
    """The thread's memory for a block: what is not allocated again and again is not left behind in its heap either."""
    if not hasattr(_memory, "block"):
        _memory.block = torch.empty(BLOCK)
    return cast(Tensor, _memory.block)


def _multiply(weight: Tensor, columns: Tensor, result: Tensor, first: int, end: int) -> None:
    """The rows of the product from `first` to `end`, the weight cast to float32 by blocks."""
    step, mapped = BLOCK // weight.shape[1], getattr(weight, _MAPPED, False)
    for start in range(first, end, step):
        rows = weight[start : min(start + step, end)]
        block = _block()[: rows.numel()].view(rows.shape).copy_(rows)
        if mapped:
            let_go(rows)
        torch.mm(block, columns, out=result[start : start + len(rows)])


def _as_computed(module: nn.Module, tensor: Tensor) -> Tensor:
    """Matrices and tables as they are, for `Float32` to deal with; anything else in float32."""
    stays = isinstance(module, nn.Linear | nn.Embedding) and tensor.ndim == 2
    return tensor if stays or tensor.ndim == 3 or not tensor.is_floating_point() else parameter_of(tensor.float())


@cache
def maps(path: Path) -> bool:
    """Whether safetensors maps a file, rather than reads it into memory that holds the only copy."""
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor(next(iter(file.keys())))
    wanted, name = tensor.data_ptr(), str(path.resolve())
    with suppress(OSError, ValueError), open("/proc/self/maps", encoding="utf-8") as mappings:
        for line in mappings:
            start, end = (int(each, 16) for each in line.partition(" ")[0].split("-"))
            if start <= wanted < end:
                return name in line
    return False


def let_go(tensor: Tensor) -> None:
    """Have the pages of a contiguous tensor leave this process' memory. It must lie in a file that is mapped and not
    have been written to: who reads it again reads the file again."""
    page = mmap.PAGESIZE
    start = tensor.data_ptr() // page * page
    _MADVISE(start, tensor.data_ptr() + tensor.nbytes - start, mmap.MADV_DONTNEED)  # what it returns changes nothing


def _shows_numbers(module: nn.Module, output: Any) -> bool:
    """Whether an output says that all of a module's weights are finite: each number of a matrix has a part in it, and
    infinity times nothing is not a number."""
    return type(module) is nn.Linear and isinstance(output, Tensor) and bool(output.isfinite().all())


def _wrappers(model: nn.Module) -> dict[int, nn.Module]:
    """For each module inside a PEFT layer: the outermost such layer around it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    outer: dict[int, nn.Module] = {}
    for module in model.modules():  # parents come first
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            for inner in module.modules():
                outer.setdefault(id(inner), outer.get(id(module), module))
    return outer


def _sources(folder: Path, model: Any) -> dict[str, Source]:
    """Parameter name -> its source, as `transformers.core_model_loading` matches them."""
    known, prefix = model.state_dict(), model.base_model_prefix
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    of_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    found: dict[str, Source] = {}
    for key, path in _keys(folder):
        target, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if target not in known and key in known:
            target, pattern = rename_source_key(key, [], [], prefix, known)
        if target not in known:
            continue  # as transformers does: a head that is not wanted, or a buffer that older versions saved
        found.setdefault(target, Source(of_pattern[pattern] if pattern else None)).tensors.append(
            (key, pattern or key, path)
        )
    return found


def _keys(folder: Path) -> list[tuple[str, Path]]:
    """Every tensor of a folder and its file, experts by number as transformers wants them."""
    from transformers.core_model_loading import dot_natural_key

    keys = [(key, path) for path in weight_files(folder) for key in read_header(path)]
    return sorted(keys, key=lambda pair: dot_natural_key(pair[0]))
