"""ptcli's cache: folders that are whole as soon as they are there, named by what they were made of.

    $PTCLI_CACHE, else $XDG_CACHE_HOME/ptcli, else ~/.cache/ptcli
        rows/KEY/        rows after the transforms of a recipe's entry
        prepared/KEY/    rows as tokens

Nothing in it is needed: whatever is gone is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptcli.errors import WorkError

MOST_BYTES = 100 * 2**30
"""Folders that were not used for longest go first when the cache is larger."""
MOST_DAYS = 30
"""A folder that was not used for so long goes."""
_DAY = 86_400
_RECENT = _DAY
"""Seconds since its last use for which a folder stays, whatever the size: a run may be reading it."""


def cache_folder() -> Path:
    """Where the cache is. It need not be there."""
    own, shared = os.environ.get("PTCLI_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser().absolute()
    if shared:
        return Path(shared).expanduser().absolute() / "ptcli"
    try:
        return Path.home() / ".cache" / "ptcli"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"ptcli-{os.getuid()}"


def key_of(parts: Mapping[str, Any]) -> str:
    """A name for what is made of `parts`, which are JSON values: 32 hex digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def find(kind: str, key: str) -> Path | None:
    """The folder of that kind and key, marked as used now; None when there is none."""
    folder = cache_folder() / kind / key
    if not folder.is_dir():
        return None
    with suppress(OSError):
        os.utime(folder)
    return folder


def make(kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """The folder of that kind and key. Where there is none, `write` fills an empty folder, which becomes it.

    Whoever is ready first wins. Raises WorkError when the cache cannot be written, and whatever `write` raises.
    """
    folder = find(kind, key)
    if folder is not None:
        return folder
    folder = cache_folder() / kind / key
    written = folder.with_name(f".{key}.{socket.gethostname()}.{os.getpid()}")
    try:
        written.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"the cache {cache_folder()} cannot be written: {error.strerror}; set PTCLI_CACHE") from error
    try:
        write(written)
        _publish(written, folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    prune()
    return folder


def _publish(written: Path, folder: Path) -> None:
    try:
        written.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def drop(folder: Path) -> None:
    """Remove a folder of the cache that turned out not to be what its key says."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.dropped")
    with suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def prune(now: float | None = None) -> None:
    """Remove what was not used for long, and what is beyond the size that the cache may have."""
    now = time.time() if now is None else now
    room = MOST_BYTES
    for used, size, folder in sorted(_folders(), reverse=True):
        room -= size
        if now - used > MOST_DAYS * _DAY or (room < 0 and now - used > _RECENT):
            shutil.rmtree(folder, ignore_errors=True)


def _folders() -> Iterator[tuple[float, int, Path]]:
    """Last use, bytes and place of every folder, those included that a killed process left half written."""
    with suppress(OSError):
        for kind in cache_folder().iterdir():
            for folder in kind.iterdir() if kind.is_dir() else ():
                with suppress(OSError):
                    yield folder.stat().st_mtime, _size(folder), folder


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
