"""Work that may never come back (a name server, a dead network drive), and must not hold up the rest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def in_background(work: Callable[..., T], *arguments: object) -> Future[T]:
    """Start the work in a thread that the interpreter does not wait for at its end, unlike those of a pool."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
