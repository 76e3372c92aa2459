"""Jobs done by forked processes, their results in the order of the jobs."""

from __future__ import annotations

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

_work: Callable[[Any], Any] | None = None
"""What the workers do: set before they are forked, so that it need not be picklable."""


def in_order(work: Callable[[_Job], _Result], jobs: Iterator[_Job], workers: int) -> Iterator[tuple[_Job, _Result]]:
    """`work` done on every job by so many processes, in this one where there are none; few jobs are ahead at a time.

    Raises:
        WorkError: when a worker was killed.
    """
    if not workers:
        yield from ((job, work(job)) for job in jobs)
        return
    global _work
    _work = work
    pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin)
    try:
        yield from _with_pool(pool, jobs, 2 * workers)
    except BrokenProcessPool as error:
        raise WorkError("a process that read the data was killed, perhaps for want of memory") from error
    finally:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()  # what is not done by now is not wanted any more
        pool.shutdown(wait=True, cancel_futures=True)


def _with_pool(pool: ProcessPoolExecutor, jobs: Iterator[_Job], ahead: int) -> Iterator[tuple[_Job, Any]]:
    waiting: deque[tuple[_Job, Future[Any]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(_do, job)))
        if len(waiting) >= ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _begin() -> None:
    """The parent alone hears Ctrl-C, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _do(job: Any) -> Any:
    assert _work is not None
    return _work(job)
