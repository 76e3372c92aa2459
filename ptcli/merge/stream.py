"""The streaming merge: row blocks of each tensor are read, changed and written in place, one worker a file.

Nothing is held but a block or two a worker and the pair A and B of the tensor at hand, so memory does not grow with
the model. What the adapter leaves alone is copied by the kernel. The arithmetic is PEFT's (`peft.tuners.lora.layer`,
0.21.2, its default merge): the change is computed and added in float32, and rounded once to the weight's dtype.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from ptcli.errors import WorkError
from ptcli.merge.headers import build_header, read_metadata
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
from ptcli.merge.plan import worker_count

BLOCK = 2 << 20
"""Bytes of a weight that are worked on at once: with their float32 form they stay in the processor's cache."""
_COPIED = 32 << 20
"""Bytes that the kernel copies between two looks at whether to stop."""
_KEPT = 2
"""Tensors of the adapter that a worker keeps, of those that belong to several of the base's."""
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Stopped(Exception):
    """Another worker failed, or a person asked to stop."""


def stream(plan: MergePlan, folder: Path, progress: Progress) -> None:
    """Write every shard of a plan into `folder`, down to the disk. Raises WorkError; the folder is then not whole."""
    threads, done = torch.get_num_threads(), _Done(plan.nbytes, progress)
    torch.set_num_threads(1)
    try:
        check_finite(plan)
        _run(plan.shards, folder, done)
    finally:
        torch.set_num_threads(threads)


def _run(shards: tuple[Shard, ...], folder: Path, done: _Done) -> None:
    """A worker for each core, a file for each worker while there are as many: writes of two to one file wait for its
    lock in the kernel. One torch thread a worker: OpenMP's spin where there are more of them than cores."""
    cores = worker_count()
    parts = [part for shard in shards for part in _begin(shard, folder, max(1, cores // len(shards)))]
    parts.sort(key=lambda part: -part.nbytes)
    memory: SimpleQueue[_Memory] = SimpleQueue()
    for _ in range(min(cores, len(parts))):
        memory.put(_Memory())
    with ThreadPoolExecutor(memory.qsize(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = [pool.submit(_write_part, part, done, memory) for part in parts]
        try:
            finished, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            done.stop.set()
    errors = [error for job in finished if (error := job.exception()) and not isinstance(error, Stopped)]
    if errors:
        raise errors[0]


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
            os.fsync(out)
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

    def __init__(self) -> None:
        self._bytes = bytearray()

    def take(self, nbytes: int) -> memoryview:
        if len(self._bytes) < nbytes:
            self._bytes = bytearray(nbytes)
        return memoryview(self._bytes)[:nbytes]

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = math.prod(shape)
        return torch.frombuffer(self.take(count * dtype.itemsize), dtype=dtype, count=count).view(shape)


class _Memory:
    """All that a worker holds, from file to file."""

    def __init__(self) -> None:
        self.raw, self.wide, self.change, self.cast = _Block(), _Block(), _Block(), _Block()
        self.a, self.b = _Block(), _Block()
        self.exact: dict[tuple[object, ...], bool] = {}
        """What `_Worker._fused` has found out."""


class _Worker:
    """Writes the tensors of one file. Places are bytes from its start."""

    def __init__(self, files: Files, out: int, done: _Done, memory: _Memory):
        self._files, self._out, self._done = files, out, done
        self._adapter = _Adapter(files, memory)
        self._raw, self._wide, self._change, self._cast = memory.raw, memory.wide, memory.change, memory.cast
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
        rows = max(1, BLOCK // max(1, width * _DTYPES[dtype].itemsize))
        for first in range(0, height, rows):
            span = (first, min(first + rows, height))
            block = self._load(output, span, width)
            for operation, pair in zip(output.operations, factors, strict=True):
                self._apply(operation, pair, block, span)
            self._check(output, block)
            place += self._store(block, output.dtype, place)

    def _load(self, output: Output, span: tuple[int, int], width: int) -> torch.Tensor:
        """Rows of the base's tensor; of what replaces it, where that is so."""
        first, last = span
        whole = next((each.by for each in output.operations if isinstance(each, Replace)), None)
        wanted = _DTYPES[(output.source or _replacement(output)).dtype]
        tensor = whole or output.source
        assert tensor is not None
        block = self._read(tensor, first, last, width)
        return block if block.dtype == wanted else self._converted(block, wanted)

    def _read(self, tensor: Tensor, first: int, last: int, width: int) -> torch.Tensor:
        dtype = _DTYPES[tensor.dtype]
        block = self._raw.tensor((last - first, width), dtype)
        nbytes = block.numel() * dtype.itemsize
        self._files.fill(self._raw.take(nbytes), tensor.file, tensor.start + first * width * dtype.itemsize)
        return block

    def _converted(self, block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._cast.tensor(tuple(block.shape), dtype).copy_(block)

    def _apply(
        self, operation: Operation, factors: _Factors | None, block: torch.Tensor, span: tuple[int, int]
    ) -> None:
        if isinstance(operation, AddLora) and factors is not None:
            self._add(operation, factors, block, span)
        elif isinstance(operation, AddBias):
            bias = _whole(operation.bias, self._files)[slice(*span)]
            block += (bias * operation.scale).view(block.shape)
        elif isinstance(operation, ReplaceRows):
            self._replace_rows(operation, block, span)

    def _add(self, lora: AddLora, factors: _Factors, block: torch.Tensor, span: tuple[int, int]) -> None:
        wide = block
        if block.dtype != torch.float32:
            wide = self._wide.tensor(tuple(block.shape), torch.float32).copy_(block)
        if lora.transposed or lora.rounded or not self._fused(lora, factors, wide, span):
            wide += self._changed(lora, factors, span, block.dtype)
        else:
            torch.addmm(wide, factors.b[slice(*span)], factors.a, alpha=lora.scale, out=wide)
        if wide is not block:
            block.copy_(wide)

    def _changed(self, lora: AddLora, factors: _Factors, span: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """scale x B A for some rows, as PEFT computes it: the product first, and then times the scale."""
        if lora.transposed:
            a = factors.a[:, slice(*span)]
            change = self._change.tensor((factors.b.shape[0], a.shape[1]), torch.float32)
            change = torch.mm(factors.b, a, out=change).mul_(lora.scale).t()
        else:
            b = factors.b[slice(*span)]
            change = self._change.tensor((b.shape[0], factors.a.shape[1]), torch.float32)
            change = torch.mm(b, factors.a, out=change).mul_(lora.scale)
        return change.to(dtype) if lora.rounded else change

    def _fused(self, lora: AddLora, factors: _Factors, wide: torch.Tensor, span: tuple[int, int]) -> bool:
        """Whether product, scale and sum may be one call: for a scale that is a power of two, times which is exact.

        Whether this processor's BLAS then gives the same bits is tried once for each shape.
        """
        if math.frexp(lora.scale)[0] != 0.5:
            return False
        key = (*wide.shape, factors.a.shape[0], lora.scale)
        if key not in self._exact:
            plain = wide + self._changed(lora, factors, span, torch.float32)
            fused = torch.addmm(wide, factors.b[slice(*span)], factors.a, alpha=lora.scale)
            self._exact[key] = torch.equal(plain, fused)
        return self._exact[key]

    def _replace_rows(self, operation: ReplaceRows, block: torch.Tensor, span: tuple[int, int]) -> None:
        first, last = span
        chosen = [(index, row - first) for index, row in enumerate(operation.rows) if first <= row < last]
        if chosen:
            rows = _whole(operation.by, self._files).view(len(operation.rows), -1)
            for index, row in chosen:
                block[row] = rows[index].to(block.dtype)

    def _check(self, output: Output, block: torch.Tensor) -> None:
        """float16 ends at 65504, beyond which a sound adapter and a sound base make an infinity."""
        if block.dtype == torch.float16 and not _is_finite(block):
            raise WorkError(
                f"{output.name} would hold numbers that are too large for float16; merge with --dtype bfloat16"
            )

    def _store(self, block: torch.Tensor, dtype: str, place: int) -> int:
        if block.dtype != _DTYPES[dtype]:
            block = self._wide.tensor(tuple(block.shape), _DTYPES[dtype]).copy_(block)
        buffer = memoryview(block.view(-1).view(torch.uint8).numpy()).cast("B")
        _write_all(self._out, buffer, place)
        self._done.add(len(buffer))
        return len(buffer)


def _replacement(output: Output) -> Tensor:
    return next(each.by for each in output.operations if isinstance(each, Replace))


# --- the adapter -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Factors:
    """A and B of one tensor, in float32: PEFT casts half-precision adapters when it loads them."""

    a: torch.Tensor
    b: torch.Tensor


class _Adapter:
    """Reads A and B as they are needed."""

    def __init__(self, files: Files, memory: _Memory):
        self._files, self._memory = files, memory
        self._of_experts: dict[str, torch.Tensor] = {}

    def factors(self, lora: AddLora) -> _Factors:
        """A and B of one tensor, which are good until the next are asked for."""
        a = self._read(lora.a, self._memory.a)
        if lora.expert is None:
            return _Factors(a, self._read(lora.b, self._memory.b))
        b = self._shared(lora.b)
        return _Factors(a, b.view(b.shape[0], -1, lora.expert.count)[lora.expert.first :, :, lora.expert.index])

    def _read(self, tensor: Tensor, block: _Block) -> torch.Tensor:
        wide = block.tensor(tensor.shape, torch.float32)
        if tensor.dtype == "F32":
            self._files.fill(block.take(tensor.nbytes), tensor.file, tensor.start)
            return wide
        self._files.fill(self._memory.raw.take(tensor.nbytes), tensor.file, tensor.start)
        return wide.copy_(self._memory.raw.tensor(tensor.shape, _DTYPES[tensor.dtype]))

    def _shared(self, tensor: Tensor) -> torch.Tensor:
        """B of all experts of a layer, which is wanted for each of them, two of a layer by turns."""
        if tensor.name not in self._of_experts:
            while len(self._of_experts) >= _KEPT:
                del self._of_experts[next(iter(self._of_experts))]
            self._of_experts[tensor.name] = _whole(tensor, self._files).float()
        return self._of_experts[tensor.name]


def _whole(tensor: Tensor, files: Files) -> torch.Tensor:
    """A tensor of the adapter, all of it."""
    data = bytearray(tensor.nbytes)
    files.fill(memoryview(data), tensor.file, tensor.start)
    return torch.frombuffer(data, dtype=_DTYPES[tensor.dtype]).view(tensor.shape)


def check_finite(plan: MergePlan) -> None:
    """Raises WorkError for an adapter that holds a NaN or an infinity, before anything is written."""
    with Files() as files:
        block = _Block()
        for tensor in _tensors_of(plan):
            size = _DTYPES[tensor.dtype].itemsize
            for start in range(0, tensor.nbytes, BLOCK):
                nbytes = min(BLOCK, tensor.nbytes - start)
                part = block.tensor((nbytes // size,), _DTYPES[tensor.dtype])
                files.fill(block.take(nbytes), tensor.file, tensor.start + start)
                if not _is_finite(part):
                    raise WorkError(f"the adapter is broken: {tensor.name} holds NaN or infinity ({tensor.file})")


def _is_finite(block: torch.Tensor) -> bool:
    """A sum is not finite when one of its parts is not, and cheap; one that overflows is looked at again."""
    return bool(torch.isfinite(block.sum(dtype=torch.float32))) or bool(torch.isfinite(block).all())


def _tensors_of(plan: MergePlan) -> Iterator[Tensor]:
    """Every tensor of the adapter that goes into the model, once."""
    seen = set()
    for operation in (each for output in plan.outputs for each in output.operations):
        for tensor in tensors_of(operation):
            if (tensor.name, tensor.start) not in seen:
                seen.add((tensor.name, tensor.start))
                yield tensor
