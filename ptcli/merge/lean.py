"""Imports that a merge can do without, and the rest of them quickly."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def imported_quickly() -> Iterator[None]:
    """No garbage is collected while modules are imported, which make none: a quarter of the time of PEFT's."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # nor are they looked at again
