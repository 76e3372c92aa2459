"""Shared memory, limits, main memory and CPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ptcli.doctor.checks.limits import UNLIMITED, Limits, container_memory, judge_limits, read_limits
from ptcli.doctor.needs import Needs

GB = 10**9
GOOD = Limits(
    shm_free=16 * GB, files=(65536, 65536), locked=8 << 20, processes=UNLIMITED, memory=256 * GB, memory_free=200 * GB,
    cpus=32,
)  # fmt: skip
EIGHT = Needs("r.yaml", "cuda", processes=8)


def states(limits: Limits, needs: Needs, gpus: int = 0) -> dict[str, str]:
    return {each.name: each.state for each in judge_limits(limits, needs, gpus)}


def message(limits: Limits, needs: Needs, name: str, gpus: int = 0) -> str:
    return next(f"{each.message} | {each.fix}" for each in judge_limits(limits, needs, gpus) if each.name == name)


def test_a_good_machine_passes() -> None:
    assert states(GOOD, EIGHT) == dict.fromkeys(("shm", "ulimits", "memory", "cpus"), "pass")


def test_docker_gives_too_little_shared_memory() -> None:
    small = replace(GOOD, shm_free=64 << 20)
    assert states(small, EIGHT)["shm"] == "fail"
    assert "docker run --shm-size=9g" in message(small, EIGHT, "shm")
    assert states(small, Needs())["shm"] == "warn"
    assert states(replace(GOOD, shm_free=None), Needs())["shm"] == "fail"


def test_where_the_recipe_leaves_the_gpus_open_each_gets_its_share() -> None:
    needs = Needs("r.yaml", "cuda")
    assert states(replace(GOOD, shm_free=4 * GB), needs, gpus=8)["shm"] == "fail"
    assert states(replace(GOOD, shm_free=4 * GB), replace(needs, device="cpu"), gpus=8)["shm"] == "pass"


def test_few_open_files_are_a_warning_with_what_raises_them() -> None:
    few = replace(GOOD, files=(1024, 1048576), processes=1000)
    assert states(few, Needs())["ulimits"] == "warn"
    assert "ulimit -n 65536" in message(few, Needs(), "ulimits")
    assert "the hard limit is 1024" in message(replace(few, files=(1024, 1024)), Needs(), "ulimits")


def test_locked_memory_matters_where_there_is_infiniband_or_a_second_node() -> None:
    assert states(replace(GOOD, infiniband=True), Needs())["ulimits"] == "warn"
    assert states(GOOD, replace(EIGHT, nodes=2))["ulimits"] == "warn"
    assert states(replace(GOOD, infiniband=True, locked=UNLIMITED), Needs())["ulimits"] == "pass"


@pytest.mark.parametrize(("free", "state"), [(GB // 2, "fail"), (3 * GB, "warn"), (8 * GB, "pass")])
def test_main_memory(free: int, state: str) -> None:
    assert states(replace(GOOD, memory_free=free), Needs())["memory"] == state


def test_on_a_cpu_every_process_holds_the_weights() -> None:
    needs = Needs("r.yaml", "cpu", processes=4, weights=15 * GB)
    limits = replace(GOOD, memory_free=50 * GB)
    assert states(limits, needs)["memory"] == "fail"
    assert "60.0 GB" in message(limits, needs, "memory")
    assert states(limits, replace(needs, processes=2))["memory"] == "pass"


def test_more_processes_than_cpus_is_a_warning() -> None:
    assert states(replace(GOOD, cpus=4), EIGHT)["cpus"] == "warn"


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert container_memory(tmp_path) == (0, 0)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory(tmp_path) == (0, 0)
    (tmp_path / "memory.max").write_text("8589934592\n")
    (tmp_path / "memory.current").write_text("1073741824\n")
    assert container_memory(tmp_path) == (8 << 30, 1 << 30)


def test_this_machine_is_read() -> None:
    limits = read_limits(Needs())
    assert limits.cpus >= 1
    assert 0 < limits.memory_free <= limits.memory
