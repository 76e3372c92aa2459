"""Shared by all tests: the command line, in this process and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.smoke_runs", "tests.strategies")

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture
def ptcli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a ptcli command in this process: for what ends before any work starts."""

    def run(*arguments: object) -> Result:
        from ptcli.cli import main

        monkeypatch.setattr(sys, "argv", ["ptcli", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Result(int(code or 0), captured.out, captured.err)  # type: ignore[call-overload]

    return run


@pytest.fixture(scope="session")
def ptcli_process() -> Callable[..., Result]:
    """Runs a ptcli command as a user does."""

    def run(*arguments: object, cwd: Path = ROOT, timeout: float = 300, module: str = "ptcli") -> Result:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(autouse=True)
def _no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests mean the same on a machine with GPUs: they see none unless they say so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs keep for the next run goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTCLI_CACHE", str(tmp_path_factory.mktemp("ptcli-cache")))
        yield
