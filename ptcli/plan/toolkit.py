"""Which CUDA torch was built with and which one this machine compiles with, without importing torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_ANY_MINOR = (10, 11, 12)
"""CUDA versions of which DeepSpeed takes one minor version for another (its op_builder/builder.py)."""


def read_torch_cuda() -> str | None:
    """`12.8`, as torch was built; None for a build without CUDA, or without torch."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8") if folder else ""
    except OSError:
        return None
    found = re.search(r"^cuda\b.*=\s*['\"](\d+\.\d+)", text, re.MULTILINE)
    return found[1] if found else None


def read_nvcc(environ: Mapping[str, str] | None = None) -> str | None:
    """`12.8`, as the compiler says that torch and DeepSpeed would use; None without one."""
    home = cuda_home(os.environ if environ is None else environ)
    try:
        done = subprocess.run([f"{home}/bin/nvcc", "-V"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else None


def cuda_home(environ: Mapping[str, str]) -> str:
    """Where torch looks for the toolkit (`torch.utils.cpp_extension`)."""
    said = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    program = shutil.which("nvcc", path=environ.get("PATH"))
    return said or (str(Path(program).parents[1]) if program else "/usr/local/cuda")


def same_cuda(found: str, wanted: str) -> bool:
    """Whether DeepSpeed compiles with this toolkit for a torch of that version."""
    if found == wanted or os.environ.get("DS_SKIP_CUDA_CHECK") == "1":
        return True
    major = found.partition(".")[0]
    return major == wanted.partition(".")[0] and int(major) in _ANY_MINOR
