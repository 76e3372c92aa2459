"""The streaming merge: row blocks of each tensor are read, changed and written in place, one worker a file.

Nothing is held but a block or two a worker and the pair A and B of the tensor at hand, so memory does not grow with
the model. What the adapter leaves alone is copied by the kernel. The arithmetic is PEFT's (`peft.tuners.lora.layer`,
0.21.2, its default merge): the change is computed and added in float32, and rounded once to the weight's dtype.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ptcli.errors import WorkError
from ptcli.merge.headers import build_header, read_metadata
from ptcli.merge.libtorch import Dtype, LibTorch, load
from ptcli.merge.libtorch import Tensor as Numbers
from ptcli.merge.machine import worker_count
from ptcli.merge.model import (
    AddBias,
    AddLora,
    MergePlan,
    Operation,
    Output,
    Progress,
    Replace,
    ReplaceRows,
    Shard,
    Tensor,
    tensors_of,
)

BLOCK = 512 << 10
"""Bytes of a weight that are worked on at once. With their float32 form they stay in the processor's cache; for more,
MKL takes fresh memory for each product, and the kernel looks for large pages: up to nine times the cost of a write."""
_COPIED = 32 << 20
"""Bytes that the kernel copies between two looks at whether to stop."""
_KEPT = 2
"""Tensors of the adapter that a worker keeps, of those that belong to several of the base's."""
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Stopped(Exception):
    """Another worker failed, or a person asked to stop."""


def stream(
    plan: MergePlan, folder: Path, progress: Progress, torch: LibTorch | None = None, *, niceness: int = 0
) -> None:
    """Write every shard of a plan into `folder`. Raises WorkError; the folder is then not whole.

    `niceness`: how far other processes of ours come first.
    """
    torch = torch or load()
    threads, done = torch.get_num_threads(), _Done(plan.nbytes, progress)
    torch.set_num_threads(1)
    try:
        check_finite(plan, torch)
        _run(plan.shards, folder, done, torch, niceness)
    finally:
        torch.set_num_threads(threads)


def _run(shards: tuple[Shard, ...], folder: Path, done: _Done, torch: LibTorch, niceness: int) -> None:
    """A worker for each core, a file for each worker while there are as many: writes of two to one file wait for its
    lock in the kernel. One torch thread a worker: OpenMP's spin where there are more of them than cores."""
    cores = worker_count()
    parts = [part for shard in shards for part in _begin(shard, folder, max(1, cores // len(shards)))]
    parts.sort(key=lambda part: -part.nbytes)
    memory: SimpleQueue[_Memory] = SimpleQueue()
    for _ in range(min(cores, len(parts))):
        memory.put(_Memory(torch))
    with ThreadPoolExecutor(memory.qsize(), initializer=_begin_thread, initargs=(torch, niceness)) as pool:
        jobs = [pool.submit(_write_part, part, done, memory) for part in parts]
        try:
            finished, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            done.stop.set()
    errors = [error for job in finished if (error := job.exception()) and not isinstance(error, Stopped)]
    if errors:
        raise errors[0]


def _begin_thread(torch: LibTorch, niceness: int) -> None:
    torch.set_num_threads(1)
    if niceness:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)  # of this thread, on Linux


class _Done:
    """Bytes written by all workers, and whether they shall go on."""

    def __init__(self, total: int, progress: Progress):
        self.stop = threading.Event()
        self._total, self._progress = total, progress
        self._bytes, self._lock = 0, threading.Lock()

    def add(self, nbytes: int) -> None:
        if self.stop.is_set():
            raise Stopped
        with self._lock:
            self._bytes += nbytes
            self._progress("merging", self._bytes, self._total)


# --- a file ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Tensors of a file that one worker writes, one after the other."""

    path: Path
    place: int
    """Byte of the file at which the first begins."""
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.outputs)


def _begin(shard: Shard, folder: Path, ways: int) -> Iterator[_Part]:
    """Write the header of a file, and divide its tensors into so many parts of about the same size, or fewer."""
    path, header = folder / shard.name, _header(shard)
    with _written(path):
        path.write_bytes(header)
    groups: dict[int, list[Output]] = {}
    before = 0
    for output in shard.tensors:
        groups.setdefault(before * ways // max(1, shard.nbytes), []).append(output)
        before += output.nbytes
    place = len(header)
    for group in groups.values():
        yield _Part(path, place, tuple(group))
        place += sum(each.nbytes for each in group)


def _header(shard: Shard) -> bytes:
    """The first bytes of a file, up to its first tensor: those of the base's, where nothing in it moves."""
    if shard.like is None:
        metadata = next((read_metadata(each.source.file) for each in shard.tensors if each.source), {})
        return build_header(shard.tensors, {"format": "pt"} | metadata)
    with shard.like.open("rb") as file:
        return file.read(min(each.source.start for each in shard.tensors if each.source))


def _write_part(part: _Part, done: _Done, spare: SimpleQueue[_Memory]) -> None:
    memory = spare.get()
    try:
        with _written(part.path), Files() as files, _opened(part.path) as out:
            worker, place = _Worker(files, out, done, memory), part.place
            for output in part.outputs:
                worker.write(output, place)
                place += output.nbytes
            worker.flush()
    finally:
        spare.put(memory)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    out = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield out
    finally:
        os.close(out)


class Files:
    """Open files to read from, by path. A context manager that closes them."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def __getitem__(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]

    def fill(self, buffer: memoryview, path: Path, start: int) -> None:
        """Read as many bytes as the buffer has. Raises WorkError when the file ends before."""
        while buffer:
            count = os.preadv(self[path], [buffer], start)
            if not count:
                raise WorkError(f"{path} became shorter while it was read")
            buffer, start = buffer[count:], start + count


def _write_all(out: int, buffer: memoryview, place: int) -> None:
    while buffer:
        count = os.pwrite(out, buffer, place)
        buffer, place = buffer[count:], place + count


class _Block:
    """Memory that is used again and again: fresh memory would be page faults, which cost more than the sums."""

    def __init__(self, torch: LibTorch) -> None:
        self._torch = torch
        self._bytes = bytearray()

    def take(self, nbytes: int) -> memoryview:
        if len(self._bytes) < nbytes:
            self._bytes = bytearray(nbytes)
        return memoryview(self._bytes)[:nbytes]

    def tensor(self, shape: tuple[int, ...], dtype: Dtype) -> Numbers:
        count = math.prod(shape)
        return self._torch.frombuffer(self.take(count * dtype.itemsize), dtype=dtype, count=count).view(shape)


def _bytes_of(block: Numbers) -> memoryview:
    """The memory of numbers without gaps."""
    nbytes = block.numel() * block.dtype.itemsize
    return memoryview((ctypes.c_char * nbytes).from_address(block.data_ptr())).cast("B")


class _Memory:
    """All that a worker holds, from file to file."""

    def __init__(self, torch: LibTorch) -> None:
        self.torch = torch
        self.raw, self.cast, self.wide = _Block(torch), _Block(torch), _Block(torch)
        self.change, self.rounded = _Block(torch), _Block(torch)
        self.a, self.b = _Block(torch), _Block(torch)
        self.exact: dict[tuple[object, ...], bool] = {}
        """What `_Worker._fused` has found out."""


class _Worker:
    """Writes the tensors of one file. Places are bytes from its start."""

    def __init__(self, files: Files, out: int, done: _Done, memory: _Memory):
        self._files, self._out, self._done, self._torch = files, out, done, memory.torch
        self._dtypes = _dtypes(memory.torch)
        self._adapter = _Adapter(files, memory)
        self._raw, self._cast, self._wide = memory.raw, memory.cast, memory.wide
        self._change, self._rounded = memory.change, memory.rounded
        self._waiting: tuple[Path, int, int, int] | None = None
        """A range to copy, which the next one may make longer: file, its start, place, bytes."""
        self._exact = memory.exact

    def write(self, output: Output, place: int) -> None:
        source = output.source
        if source is not None and not output.operations and source.dtype == output.dtype:
            self._copy(source.file, source.start, place, source.nbytes)
        elif output.nbytes:
            self._merge(output, place)

    # copies

    def _copy(self, file: Path, start: int, place: int, nbytes: int) -> None:
        if self._waiting:
            last, first, begin, count = self._waiting
            if (last, first + count, begin + count) == (file, start, place):
                self._waiting = (last, first, begin, count + nbytes)
                return
        self.flush()
        self._waiting = (file, start, place, nbytes)

    def flush(self) -> None:
        """Copy the range that is waiting."""
        if not self._waiting:
            return
        file, start, place, nbytes = self._waiting
        self._waiting = None
        while nbytes:
            count = self._copy_some(file, start, place, min(nbytes, _COPIED))
            start, place, nbytes = start + count, place + count, nbytes - count
            self._done.add(count)

    def _copy_some(self, file: Path, start: int, place: int, nbytes: int) -> int:
        try:
            count = os.copy_file_range(self._files[file], self._out, nbytes, start, place)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            count = 0
        if count:
            return count
        buffer = self._raw.take(min(nbytes, BLOCK))  # another file system, or a kernel that cannot
        self._files.fill(buffer, file, start)
        _write_all(self._out, buffer, place)
        return len(buffer)

    # sums

    def _merge(self, output: Output, place: int) -> None:
        """Write a changed tensor by blocks of its rows. One of fewer than two dimensions is a row for each element."""
        height = output.shape[0] if output.shape else 1
        width = math.prod(output.shape[1:])
        factors = [self._adapter.factors(each) if isinstance(each, AddLora) else None for each in output.operations]
        dtype = (output.source or _replacement(output)).dtype
        rows = max(1, BLOCK // max(1, width * self._dtypes[dtype].itemsize))
        for first in range(0, height, rows):
            span = (first, min(first + rows, height))
            block = self._load(output, span, width)
            for operation, pair in zip(output.operations, factors, strict=True):
                self._apply(operation, pair, block, span)
            self._check(output, block)
            place += self._store(block, output.dtype, place)

    def _load(self, output: Output, span: tuple[int, int], width: int) -> Numbers:
        """Rows of the base's tensor; of what replaces it, where that is so."""
        first, last = span
        whole = next((each.by for each in output.operations if isinstance(each, Replace)), None)
        wanted = self._dtypes[(output.source or _replacement(output)).dtype]
        tensor = whole or output.source
        assert tensor is not None
        block = self._read(tensor, first, last, width)
        return block if block.dtype == wanted else self._converted(block, wanted)

    def _read(self, tensor: Tensor, first: int, last: int, width: int) -> Numbers:
        dtype = self._dtypes[tensor.dtype]
        block = self._raw.tensor((last - first, width), dtype)
        nbytes = block.numel() * dtype.itemsize
        self._files.fill(self._raw.take(nbytes), tensor.file, tensor.start + first * width * dtype.itemsize)
        return block

    def _converted(self, block: Numbers, dtype: Dtype) -> Numbers:
        return self._cast.tensor(tuple(block.shape), dtype).copy_(block)

    def _apply(self, operation: Operation, factors: _Factors | None, block: Numbers, span: tuple[int, int]) -> None:
        if isinstance(operation, AddLora) and factors is not None:
            self._add(operation, factors, block, span)
        elif isinstance(operation, AddBias):
            bias = self._adapter.whole(operation.bias)[slice(*span)]
            block.add_(bias.mul_(operation.scale).view(block.shape))
        elif isinstance(operation, ReplaceRows):
            self._replace_rows(operation, block, span)

    def _add(self, lora: AddLora, factors: _Factors, block: Numbers, span: tuple[int, int]) -> None:
        wide = block
        if block.dtype != self._torch.float32:
            wide = self._wide.tensor(tuple(block.shape), self._torch.float32).copy_(block)
        if lora.transposed or lora.rounded or not self._fused(lora, factors, wide, span):
            wide.add_(self._changed(lora, factors, span, block.dtype))
        else:
            self._torch.addmm(wide, factors.b[slice(*span)], factors.a, alpha=lora.scale, out=wide)
        if wide is not block:
            block.copy_(wide)

    def _changed(self, lora: AddLora, factors: _Factors, span: tuple[int, int], dtype: Dtype) -> Numbers:
        """scale x B A for some rows, as PEFT computes it: the product first, and then times the scale."""
        if lora.transposed:
            a = factors.a[:, slice(*span)]
            change = self._change.tensor((factors.b.shape[0], a.shape[1]), self._torch.float32)
            change = self._torch.mm(factors.b, a, out=change).mul_(lora.scale).t()
        else:
            b = factors.b[slice(*span)]
            change = self._change.tensor((b.shape[0], factors.a.shape[1]), self._torch.float32)
            change = self._torch.mm(b, factors.a, out=change).mul_(lora.scale)
        return self._rounded.tensor(tuple(change.shape), dtype).copy_(change) if lora.rounded else change

    def _fused(self, lora: AddLora, factors: _Factors, wide: Numbers, span: tuple[int, int]) -> bool:
        """Whether product, scale and sum may be one call: for a scale that is a power of two, times which is exact.

        Whether this processor's BLAS then gives the same bits is tried once for each shape.
        """
        if math.frexp(lora.scale)[0] != 0.5:
            return False
        key = (*wide.shape, factors.a.shape[0], lora.scale)
        if key not in self._exact:
            one, other = (_Block(self._torch).tensor(tuple(wide.shape), wide.dtype).copy_(wide) for _ in range(2))
            one.add_(self._changed(lora, factors, span, wide.dtype))
            self._torch.addmm(other, factors.b[slice(*span)], factors.a, alpha=lora.scale, out=other)
            self._exact[key] = _bytes_of(one).tobytes() == _bytes_of(other).tobytes()
        return self._exact[key]

    def _replace_rows(self, operation: ReplaceRows, block: Numbers, span: tuple[int, int]) -> None:
        first, last = span
        chosen = [(index, row - first) for index, row in enumerate(operation.rows) if first <= row < last]
        if chosen:
            whole = self._adapter.whole(operation.by)
            rows = whole.view((len(operation.rows), whole.numel() // len(operation.rows)))
            for index, row in chosen:
                block[row].copy_(rows[index])

    def _check(self, output: Output, block: Numbers) -> None:
        """float16 ends at 65504, beyond which a sound adapter and a sound base make an infinity."""
        if block.dtype == self._torch.float16 and not _is_finite(block, self._torch):
            raise WorkError(
                f"{output.name} would hold numbers that are too large for float16; merge with --dtype bfloat16"
            )

    def _store(self, block: Numbers, dtype: str, place: int) -> int:
        if block.dtype != self._dtypes[dtype]:
            block = self._wide.tensor(tuple(block.shape), self._dtypes[dtype]).copy_(block)
        buffer = _bytes_of(block)
        _write_all(self._out, buffer, place)
        self._done.add(len(buffer))
        return len(buffer)


def _replacement(output: Output) -> Tensor:
    return next(each.by for each in output.operations if isinstance(each, Replace))


# --- the adapter -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Factors:
    """A and B of one tensor, in float32: PEFT casts half-precision adapters when it loads them."""

    a: Numbers
    b: Numbers


class _Adapter:
    """Reads A and B as they are needed."""

    def __init__(self, files: Files, memory: _Memory):
        self._files, self._memory, self._torch = files, memory, memory.torch
        self._dtypes = _dtypes(memory.torch)
        self._of_experts: dict[str, Numbers] = {}

    def factors(self, lora: AddLora) -> _Factors:
        """A and B of one tensor, which are good until the next are asked for."""
        a = self._read(lora.a, self._memory.a)
        if lora.expert is None:
            return _Factors(a, self._read(lora.b, self._memory.b))
        b = self._shared(lora.b)
        count = lora.expert.count
        of_each = b.view((b.shape[0], b.shape[1] // count, count))
        return _Factors(a, of_each[lora.expert.first :, :, lora.expert.index])

    def _read(self, tensor: Tensor, block: _Block) -> Numbers:
        wide = block.tensor(tensor.shape, self._torch.float32)
        if tensor.dtype == "F32":
            self._files.fill(block.take(tensor.nbytes), tensor.file, tensor.start)
            return wide
        self._files.fill(self._memory.raw.take(tensor.nbytes), tensor.file, tensor.start)
        return wide.copy_(self._memory.raw.tensor(tensor.shape, self._dtypes[tensor.dtype]))

    def _shared(self, tensor: Tensor) -> Numbers:
        """B of all experts of a layer, which is wanted for each of them, two of a layer by turns."""
        if tensor.name not in self._of_experts:
            while len(self._of_experts) >= _KEPT:
                del self._of_experts[next(iter(self._of_experts))]
            self._of_experts[tensor.name] = self._read(tensor, _Block(self._torch))
        return self._of_experts[tensor.name]

    def whole(self, tensor: Tensor) -> Numbers:
        """All of a tensor, in its own type and in memory of its own."""
        block = _Block(self._torch)
        self._files.fill(block.take(tensor.nbytes), tensor.file, tensor.start)
        return block.tensor(tensor.shape, self._dtypes[tensor.dtype])


def check_finite(plan: MergePlan, torch: LibTorch) -> None:
    """Raises WorkError for an adapter that holds a NaN or an infinity, before anything is written."""
    dtypes = _dtypes(torch)
    with Files() as files:
        block = _Block(torch)
        for tensor in _tensors_of(plan):
            dtype = dtypes[tensor.dtype]
            for start in range(0, tensor.nbytes, BLOCK):
                nbytes = min(BLOCK, tensor.nbytes - start)
                part = block.tensor((nbytes // dtype.itemsize,), dtype)
                files.fill(block.take(nbytes), tensor.file, tensor.start + start)
                if not _is_finite(part, torch):
                    raise WorkError(f"the adapter is broken: {tensor.name} holds NaN or infinity ({tensor.file})")


def _is_finite(block: Numbers, torch: LibTorch) -> bool:
    """By the extremes, which are NaN where anything is."""
    return all(math.isfinite(each) for each in torch.aminmax(block))


def _dtypes(torch: LibTorch) -> Mapping[str, Dtype]:
    """By safetensors' names."""
    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def _tensors_of(plan: MergePlan) -> Iterator[Tensor]:
    """Every tensor of the adapter that goes into the model, once."""
    seen = set()
    for operation in (each for output in plan.outputs for each in output.operations):
        for tensor in tensors_of(operation):
            if (tensor.name, tensor.start) not in seen:
                seen.add((tensor.name, tensor.start))
                yield tensor
