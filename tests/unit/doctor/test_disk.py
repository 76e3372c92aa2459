"""Room on file systems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ptcli.doctor.checks.disk import FileSystem, Place, judge_disk, places, read_disk
from ptcli.doctor.needs import Needs, Repository
from ptcli.run.disk import Need

GB = 10**9
OUTPUT = Place("output_dir", Path("/data/runs"), 1 * GB, 20 * GB)
CACHE = Place("Hugging Face cache", Path("/data/hf"), 2 * GB, 10 * GB)
BOTH = FileSystem(Path("/data"), (OUTPUT, CACHE), 100 * GB, 1000)


def judge(**changes: object) -> tuple[str, str, str]:
    (finding,) = judge_disk((replace(BOTH, **changes),), Needs())  # type: ignore[arg-type]
    return finding.state, finding.message, finding.fix


@pytest.mark.parametrize(("free", "state"), [(0, "fail"), (2.9, "fail"), (3, "warn"), (29.9, "warn"), (30, "pass")])
def test_what_the_places_on_one_file_system_need_adds_up(free: float, state: str) -> None:
    assert judge(free=int(free * GB))[0] == state


def test_a_full_disk_is_named_with_what_goes_there() -> None:
    state, message, fix = judge(free=0)
    assert state == "fail"
    assert message == "only 0 MB free at /data (output_dir, Hugging Face cache); a run needs 3.0 GB at least"
    assert "output_dir=/elsewhere, HF_HOME=/elsewhere" in fix


def test_no_inodes_and_no_permission_are_a_full_disk_too() -> None:
    assert judge(inodes=0)[:2] == (
        "fail",
        "no more files can be made at /data (output_dir, Hugging Face cache): no inodes left",
    )
    assert judge(writable=False)[0] == "fail"
    assert judge(inodes=None)[0] == "pass"


def test_a_recipe_wants_room_for_what_it_writes(tmp_path: Path) -> None:
    needs = Needs("r.yaml", output_dir=tmp_path / "not/there/yet", writes=Need(10**15, 10**16, None))
    (system,) = [system for system in read_disk(needs) if system.places[0].name == "output_dir"]
    assert system.at == tmp_path
    (finding,) = judge_disk((system,), needs)
    assert finding.state == "fail"
    assert f"at {tmp_path} (output_dir" in finding.message
    assert "a run needs 1000000." in finding.message


def test_the_cache_matters_to_who_downloads() -> None:
    local = Needs("r.yaml")
    assert [place.name for place in places(local)] == ["output_dir", "temporary files"]
    hub = replace(local, downloads=(Repository("models", "a/b", None, ("model", "path")),))
    assert [place.name for place in places(hub)] == ["output_dir", "Hugging Face cache", "temporary files"]
    assert len(places(Needs())) == 3
