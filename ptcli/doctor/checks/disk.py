"""Room on the file systems that a run writes to."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs
from ptcli.recipe.local_models import hub_cache

MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class Place:
    """Something that a run writes to."""

    name: str
    path: Path
    least: int
    """Bytes without which nothing works."""
    usual: int
    """Bytes below which it is soon full."""


@dataclass(frozen=True)
class FileSystem:
    """A file system, and the places on it."""

    at: Path
    """The nearest folder of the first place that is there."""
    places: tuple[Place, ...]
    free: int
    """Bytes that this user may write."""
    inodes: int | None = None
    """Files that can still be made; None where they are not counted."""
    writable: bool = True


def places(needs: Needs) -> tuple[Place, ...]:
    """Where a run writes, and how much at least."""
    temporary = Place("temporary files", _temporary(), 100 * MB, 1 * GB)
    least, most = (needs.writes.least, needs.writes.most) if needs.writes else (0, 1 * GB if needs.recipe else 20 * GB)
    output = Place("output_dir", needs.output_dir, max(least, 100 * MB), max(most, 100 * MB))
    if needs.recipe is not None and not needs.downloads:
        return output, temporary
    return output, Place("Hugging Face cache", hub_cache(), 1 * GB, 10 * GB), temporary


def _temporary() -> Path:
    """As it is set: `tempfile.gettempdir` goes to the next one where it cannot write, other programs do not."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


def read_disk(needs: Needs) -> tuple[FileSystem, ...]:
    """The file systems of these places, each once."""
    found: dict[int, list[tuple[Path, Place]]] = {}
    for place in places(needs):
        folder = _nearest(place.path)
        found.setdefault(os.stat(folder).st_dev, []).append((folder, place))
    return tuple(_file_system(group) for group in found.values())


def judge_disk(systems: tuple[FileSystem, ...], needs: Needs) -> list[Finding]:
    """What several places on one file system need adds up."""
    return [finding for system in systems for finding in _judge(system)]


def _judge(system: FileSystem) -> Iterator[Finding]:
    least, usual = (sum(getattr(place, name) for place in system.places) for name in ("least", "usual"))
    names = ", ".join(place.name for place in system.places)
    told = f"{_size(system.free)} free at {system.at} ({names})"
    fix = f"du -xh --max-depth=2 {shlex.quote(str(system.at))} | sort -h | tail, and delete; or {_elsewhere(system)}"
    if not system.writable:
        yield Finding("disk", "fail", f"{system.at} cannot be written ({names})", f"{_elsewhere(system)}, or chown it")
    elif system.inodes == 0:
        yield Finding("disk", "fail", f"no more files can be made at {system.at} ({names}): no inodes left", fix)
    elif system.free < least:
        yield Finding("disk", "fail", f"only {told}; a run needs {_size(least)} at least", fix)
    elif system.free < usual:
        yield Finding("disk", "warn", f"{told}: less than {_size(usual)} is soon full", fix)
    else:
        yield Finding("disk", "pass", told)


def _elsewhere(system: FileSystem) -> str:
    ways = {
        "output_dir": "output_dir=/elsewhere",
        "Hugging Face cache": "HF_HOME=/elsewhere",
        "temporary files": "TMPDIR=/elsewhere",
    }
    return ", ".join(ways[place.name] for place in system.places)


def _file_system(group: list[tuple[Path, Place]]) -> FileSystem:
    folders = [folder for folder, _ in group]
    room = os.statvfs(folders[0])
    return FileSystem(
        at=folders[0],
        places=tuple(place for _, place in group),
        free=shutil.disk_usage(folders[0]).free,
        inodes=room.f_favail if room.f_files else None,
        writable=all(os.access(folder, os.W_OK | os.X_OK) for folder in folders),
    )


def _nearest(path: Path) -> Path:
    """The folder itself, or the one in which it will be made."""
    return next(each for each in (path, *path.parents, Path("/")) if each.is_dir())


def _size(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / MB:.0f} MB"
