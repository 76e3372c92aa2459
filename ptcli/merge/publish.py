"""A folder that appears whole or not at all: written beside its place, on the disk before it gets its name.

A power cut, a kill or a full disk leaves the place as it was before. What a killed merge left beside it is removed by
the next one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from ptcli.errors import Problem, RequestError, WorkError

_SPARE = 64 << 20
"""Bytes for tokenizer, configs and the file system itself."""
_SYNC_EVERY = 0.2
"""Seconds."""
_AT_FDCWD, _EXCHANGE = -100, 2
_MODEL_SIGNS = ("config.json",)
_RUN_SIGNS = ("recipe.resolved.yaml", "status.json", "adapter_config.json")


def check_place(out: Path, nbytes: int, *, force: bool, read: tuple[Path, ...] = ()) -> None:
    """Raise RequestError when a folder of `nbytes` cannot be put at `out`. `read`: folders it must not replace."""
    nearest = next(path for path in (out.parent, *out.parent.parents) if os.path.lexists(path))
    problem = _occupied(out, force=force) or _too_near(out, read) if os.path.lexists(out) else None
    if problem:
        pass
    elif not nearest.is_dir():
        problem = Problem(f"{nearest} is a file, not a folder", "choose another --out")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problem = Problem(f"{nearest} is not writable", "choose another --out")
    elif (free := shutil.disk_usage(nearest).free) < nbytes + _SPARE:
        told = f"the merged model takes about {gigabytes(nbytes + _SPARE)}, and {nearest} has {gigabytes(free)} free"
        problem = Problem(told, "make room, or choose another --out")
    if problem:
        raise RequestError(problem)


def gigabytes(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e7 else f"{nbytes / 1e6:.2f} MB"


def _occupied(out: Path, *, force: bool) -> Problem | None:
    if not force:
        return Problem(f"{out} exists", "choose another --out, or have it replaced with --force")
    if not out.is_dir():
        return Problem(f"{out} is no folder that --force could replace", "choose another --out")
    signs = {each.name for each in out.iterdir()}
    if any(sign in signs for sign in _RUN_SIGNS) or (signs and not any(sign in signs for sign in _MODEL_SIGNS)):
        return Problem(f"{out} does not look like a model, so --force does not replace it", "choose another --out")
    return None


def _too_near(out: Path, read: tuple[Path, ...]) -> Problem | None:
    place = out.resolve()
    inside = next((each for each in (*read, Path.cwd()) if each.resolve().is_relative_to(place)), None)
    return Problem(f"{inside} is in {out}, which would be replaced", "choose another --out") if inside else None


@contextmanager
def published(out: Path, nbytes: int, *, force: bool = False, read: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A new folder to write to. When the block ends it is at `out`; when it raises, nothing is.

    Raises:
        RequestError: the folder cannot be put there (see `check_place`); nothing was written.
        WorkError: the disk refuses.
    """
    out = out.parent.resolve() / out.name if not out.is_symlink() else out.resolve()
    check_place(out, nbytes, force=force, read=read)
    made = [path for path in (out.parent, *out.parent.parents) if not path.exists()]
    draft = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.merging-", dir=out.parent))
        with _held(draft):
            yield draft
            sync_tree(draft)
            _put(draft, out, force=force)
    except OSError as error:
        raise WorkError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if draft is not None:
            _remove(draft)  # after an exchange, what was at `out` before
        for path in made:
            with suppress(OSError):
                path.rmdir()  # only those that are empty


@contextmanager
def _held(draft: Path) -> Iterator[None]:
    """A lock on the folder tells other merges that somebody is writing to it."""
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o755)  # mkdtemp makes it private
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(out: Path) -> None:
    """Remove what killed merges to the same place left."""
    for left in out.parent.glob(f".{out.name}.merging-*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(descriptor)


@contextmanager
def synced_meanwhile(folder: Path) -> Iterator[None]:
    """Have the disk write what is there while other work goes on, so that little is left to wait for in the end.

    Whether it could is asked at the end (`sync_tree`), and not here.
    """
    ended = Event()

    def work() -> None:
        with suppress(OSError):
            while not ended.wait(_SYNC_EVERY):
                sync_tree(folder)

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def sync_tree(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in (*files, "."):
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _put(draft: Path, out: Path, *, force: bool) -> None:
    """Give the folder its name; where there is another, in one step with it."""
    if force and out.exists():
        try:
            _rename(draft, out, _EXCHANGE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.merging-", dir=out.parent)) / "old"
            os.rename(out, aside)  # a file system that cannot exchange two folders
            os.rename(draft, out)
            _remove(aside.parent)
    else:
        os.rename(draft, out)
    descriptor = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
