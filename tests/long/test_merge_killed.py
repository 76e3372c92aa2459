"""kill -9 at ten random moments of a merge: at the output path there is nothing, or the whole of the old or the new."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.integration.merge.families import make_adapter, make_base, reconfigure

pytestmark = pytest.mark.long

SEED = 5
ROWS = 800_000
"""Of four tables of 50 MB each, which take a while to write."""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a model that is mostly something else."""
    folder = tmp_path_factory.mktemp("killed")
    base = make_base("llama", folder / "base", shards="1GB")
    made = make_adapter(base, folder / "adapter", target_modules="all-linear")
    for part in range(4):
        save_file({f"more.{part}": torch.randn(ROWS, 32).half()}, base / f"model-more-{part}.safetensors")
    os.rename(base / "model.safetensors", base / "model-first.safetensors")  # shards without an index
    reconfigure(made, base_model_name_or_path=str(base))
    return made


def start(adapter: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ptcli", "merge", str(adapter), "--out", str(out), "--no-verify", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_draft(out: Path, process: subprocess.Popen[bytes]) -> float:
    """Wait until the merge begins to write; the moment."""
    while process.poll() is None and not list(out.parent.glob(f".{out.name}.merging-*")):
        time.sleep(0.001)
    return time.monotonic()


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        yield path.name, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("replaces", [False, True])
def test_killed(replaces: bool, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "models/out"
    whole = start(adapter, out)
    began = wait_for_draft(out, whole)
    assert whole.wait() == 0
    length, wanted = time.monotonic() - began, dict(contents(out))
    old = dict(wanted)
    if replaces:
        (out / "old.txt").write_text("of the model that is replaced")
        old = dict(contents(out))
    else:
        os.rename(out, tmp_path / "aside")
    moments, seen = random.Random(SEED), set()
    for _ in range(10):
        process = start(adapter, out, *(["--force"] if replaces else []))
        wait_for_draft(out, process)
        time.sleep(moments.uniform(0, 1.2 * length))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = dict(contents(out)) if out.exists() else None
        assert found in ([old, wanted] if replaces else [None, wanted])
        seen.add("new" if found == wanted else "old")
        if found == wanted:
            _put_back(out, replaces)
    assert "old" in seen, "no kill came before the end"
    assert start(adapter, out, *(["--force"] if replaces else [])).wait() == 0
    assert dict(contents(out)) == wanted
    assert [path.name for path in out.parent.iterdir()] == ["out"], "what killed merges left is removed by the next"


def _put_back(out: Path, replaces: bool) -> None:
    if replaces:
        (out / "old.txt").write_text("of the model that is replaced")
    else:
        os.rename(out, out.parents[1] / f"aside-{time.monotonic_ns()}")
