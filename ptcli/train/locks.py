"""Locks that a killed run left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def clear_stale_build_locks(folder: Path | None = None) -> list[Path]:
    """Remove the build locks of torch extensions that nobody holds; the locks removed.

    DeepSpeed compiles its operators at first use. A run that is ended meanwhile leaves the lock file, and every later
    one waits for it for ever. Whoever builds keeps the file open (`torch.utils.file_baton`), so a lock that no process
    has open is stale.
    """
    locks = list((folder or _extensions_folder()).glob("**/lock"))
    held = set(_open_files()) if locks else set()
    stale = [lock for lock in locks if str(lock.resolve()) not in held]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def _extensions_folder() -> Path:
    """Where `torch.utils.cpp_extension` builds."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


def _open_files() -> Iterator[str]:
    """Every file that a process of this user has open."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            links = list(folder.iterdir())
        except OSError:
            continue
        for link in links:
            try:
                yield os.readlink(link)
            except OSError:
                continue
