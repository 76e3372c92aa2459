"""Jobs done by forked processes, their results in the order of the jobs."""

from __future__ import annotations

import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from ptcli.errors import WorkError

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 32 << 20
"""Bytes of freed memory that a worker keeps: getting them anew from the system for every block takes longer than the
work that is done in them."""
_work: Callable[[Any], Any] | None = None
"""What the workers do: set before they are forked, so that it need not be picklable."""


def _never(job: object) -> bool:
    return False


def in_order(
    work: Callable[[_Job], _Result],
    jobs: Iterator[_Job],
    workers: int,
    alone: Callable[[_Job], bool] = _never,
) -> Iterator[tuple[_Job, _Result]]:
    """`work` done on every job by so many processes, in this one where there are none; few jobs are ahead at a time.

    `alone`: jobs that are done in this process, one at a time, because they need much memory.

    Raises:
        WorkError: when a worker was killed, and when there is no memory.
    """
    global _work
    try:
        if not workers:
            yield from ((job, work(job)) for job in jobs)
            return
        _work = work
        pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin, initargs=(os.getpid(),))
        try:
            yield from _with_pool(pool, work, jobs, 2 * workers, alone)
        finally:
            _end(pool)
    except BrokenProcessPool as error:
        raise WorkError("a process that read the data was killed, perhaps for want of memory") from error
    except MemoryError as error:
        raise WorkError("there is not enough memory to read the data") from error


def _end(pool: ProcessPoolExecutor) -> None:
    """End the workers at once: what is not done by now is not wanted any more."""
    results = getattr(pool, "_result_queue", None)
    if results is not None:
        # Only workers write to it. One that is killed in the middle of a result leaves half of it in the pipe, and the
        # pool would wait for the other half for ever if this process held the pipe's writing end open.
        results._writer.close()
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)


def _with_pool(
    pool: ProcessPoolExecutor,
    work: Callable[[Any], Any],
    jobs: Iterator[_Job],
    ahead: int,
    alone: Callable[[_Job], bool],
) -> Iterator[tuple[_Job, Any]]:
    waiting: deque[tuple[_Job, Future[Any]]] = deque()
    for job in jobs:
        waiting.append((job, _done(work, job) if alone(job) else pool.submit(_do, job)))
        if len(waiting) >= ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _done(work: Callable[[Any], Any], job: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(work(job))
    return future


def _begin(parent: int) -> None:
    """The parent alone hears Ctrl-C, and ends its workers; none of them outlives it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    library = ctypes.CDLL(None)
    mallopt = getattr(library, "mallopt", None)
    if mallopt:  # glibc
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
    prctl = getattr(library, "prctl", None)
    if prctl:  # Linux
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _do(job: Any) -> Any:
    assert _work is not None
    return _work(job)
