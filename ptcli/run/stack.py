"""`stack.json`: what a run ran on, so that it can be told why two runs differ. Imports none of the packages."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ptcli.merge.identity import identify
from ptcli.plan.model import Plan
from ptcli.recipe.model import DataEntry, DataSpec

_PACKAGES = (
    "ptcli", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy",
    "vllm", "deepspeed", "bitsandbytes", "liger-kernel", "kernels", "flash-attn", "triton", "math-verify",
)  # fmt: skip
_HASHED_BYTES = 1 << 30
"""Larger sets of files are told by size and time: reading them would hold up the start."""
_GIT_TIMEOUT = 5


def read_stack(plan: Plan) -> dict[str, Any]:
    """Package versions, Python, platform, git commit, GPUs, and fingerprints of model and datasets of a run about to
    start."""
    return {
        "smoke": plan.smoke,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "git": _git_commit(),
        "gpus": {step.name: list(step.gpus) for step in plan.steps},
        "models": {"model": identify(plan.recipe.model.path, plan.recipe.model.revision)},
        "data": [_fingerprint(entry) for entry in _entries(plan.recipe.data)],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> dict[str, Any] | None:
    """Commit of the working directory, and whether files that git knows differ from it; None outside of git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _entries(data: DataSpec) -> Iterator[DataEntry]:
    yield from data.train
    if isinstance(data.eval, list):
        yield from data.eval
    elif isinstance(data.eval, dict):
        for entries in data.eval.values():
            yield from entries


def _fingerprint(entry: DataEntry) -> dict[str, Any]:
    """What pins the data of an entry: files with their hashes, or a hub dataset's name, revision and split."""
    fingerprint: dict[str, Any] = {"path": entry.path, "split": entry.split}
    fingerprint |= {key: value for key in ("name", "revision") if (value := getattr(entry, key))}
    files = _files(entry.path)
    if files:
        hashed = sum(path.stat().st_size for path in files) <= _HASHED_BYTES
        fingerprint["files"] = {str(path): _digest(path, hashed) for path in files}
    return fingerprint


def _files(path: str) -> list[Path]:
    """The local files behind a path; empty for a hub dataset."""
    if path.startswith("builtin:"):
        from ptcli.builtin import data_path

        path = str(data_path(path.removeprefix("builtin:")))
    place = Path(path)
    found = place.rglob("*") if place.is_dir() else map(Path, glob(path, recursive=True)) if place.is_absolute() else ()
    return sorted(p for p in found if p.is_file())


def _digest(path: Path, hashed: bool) -> dict[str, Any]:
    stat = path.stat()
    if not hashed:
        return {"bytes": stat.st_size, "modified": stat.st_mtime}
    with path.open("rb") as file:
        return {"bytes": stat.st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
