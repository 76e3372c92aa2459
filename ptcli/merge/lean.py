"""Imports that a merge can do without."""

from __future__ import annotations

import sys


def skip_bitsandbytes() -> None:
    """Have PEFT think that bitsandbytes is not installed, which it imports otherwise: 1.5 s of processor time.

    Nothing is merged into quantised weights. For a process that does nothing else, since PEFT asks only once.
    """
    if "peft" not in sys.modules:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
