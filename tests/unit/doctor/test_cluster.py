"""Slurm, accelerate's own settings, compilers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ptcli.doctor.checks.cluster import Slurm, judge_accelerate, judge_slurm, read_accelerate, read_slurm
from ptcli.doctor.checks.toolchain import Toolchain, judge_toolchain, read_toolchain
from ptcli.doctor.needs import Needs

JOB = Needs("r.yaml", slurm=True, partition="a100")
NONE = Slurm(missing=("sbatch", "sinfo", "squeue"))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts programs, by their text, on an otherwise empty PATH."""

    def put(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            os.chmod(tmp_path / name, 0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return put


@pytest.mark.parametrize(
    ("slurm", "needs", "state"),
    [
        (NONE, Needs(), "pass"),
        (NONE, JOB, "fail"),
        (Slurm(missing=("squeue",)), Needs(), "warn"),
        (Slurm(error="sinfo does not answer"), Needs(), "warn"),
        (Slurm(error="sinfo does not answer"), JOB, "fail"),
        (Slurm(partitions=("cpu",)), JOB, "fail"),
        (Slurm(partitions=("cpu", "a100")), JOB, "pass"),
        (Slurm(partitions=("cpu",)), Needs(), "pass"),
    ],
)
def test_slurm_matters_to_a_recipe_that_asks_for_it(slurm: Slurm, needs: Needs, state: str) -> None:
    (finding,) = judge_slurm(slurm, needs)
    assert finding.state == state
    assert bool(finding.fix) == (state != "pass")


def test_the_partitions_that_are_up_are_read(programs) -> None:
    programs(sbatch="", squeue="", sinfo="echo 'a100 up'; echo 'old down'; echo 'a100 up'")
    assert read_slurm(Needs()) == Slurm(partitions=("a100",))


def test_an_error_of_sinfo_is_told_by_its_last_line(programs) -> None:
    programs(sbatch="", squeue="", sinfo="echo 'sinfo: error: x' >&2; echo 'sinfo: fatal: no controller' >&2; exit 1")
    assert read_slurm(Needs()) == Slurm(error="sinfo: fatal: no controller")


def test_a_machine_without_slurm(programs) -> None:
    programs()
    assert read_slurm(Needs()) == NONE


def test_accelerates_own_settings_are_said_to_be_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert judge_accelerate(read_accelerate(Needs()), Needs()) == []
    path = tmp_path / "accelerate/default_config.yaml"
    path.parent.mkdir()
    path.write_text("distributed_type: FSDP\n")
    (finding,) = judge_accelerate(read_accelerate(Needs()), Needs())
    assert (finding.state, finding.message.split(" is ")[0]) == ("pass", str(path))


def test_compilers_matter_to_who_compiles(programs) -> None:
    programs()
    assert judge_toolchain(Toolchain(), Needs()) == []
    compiling = Needs("r.yaml", compiles=True)
    assert read_toolchain(compiling).compiler == ""
    assert [each.state for each in judge_toolchain(Toolchain(), compiling)] == ["fail", "fail"]
    assert [each.state for each in judge_toolchain(Toolchain("/usr/bin/g++", "/bin/ninja"), compiling)] == ["pass"]
