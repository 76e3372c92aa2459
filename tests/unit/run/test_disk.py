"""What checkpoints take, and whether there is room for them."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import WorkError
from ptcli.plan.build import build_plan
from ptcli.plan.model import Machine, Plan
from ptcli.run import disk
from ptcli.run.disk import Need, Room, Sizes, check_disk, check_final, count_saves, estimate, need, spell
from tests.unit.plan.conftest import make_recipe

MIB = 1 << 20
BESIDES = 32 * MIB
SIZES = Sizes(100, 10)


@pytest.mark.parametrize(
    ("options", "checkpoint", "final"),
    [
        ({"width": 4}, 4 + 8, 4),
        ({"width": 2}, 2 + 4, 2),
        ({"width": 4, "kind": "fsdp"}, 4 + 4 + 8, 4),
        ({"width": 2, "kind": "deepspeed", "stage": 2}, 2 + 2 + 12, 2),
        ({"width": 2, "kind": "deepspeed", "stage": 3}, 2 + 12, 2),
        ({"width": 4, "moments": 0}, 4, 4),
        ({"width": 2, "kind": "deepspeed", "moments": 0}, 2 + 2 + 4, 2),
        ({"width": 4, "save_only_model": True}, 4, 4),
        ({"width": 4, "kind": "deepspeed", "save_only_model": True}, 4, 4),
    ],
)
def test_bytes_of_a_parameter(options: dict[str, Any], checkpoint: int, final: int) -> None:
    given = {"adapter": False, "kind": "plain", "save_only_model": False} | options
    assert estimate(MIB, MIB, **given) == Sizes(checkpoint * MIB + BESIDES, final * MIB + BESIDES)


def test_an_adapter_takes_what_is_trained() -> None:
    sizes = estimate(1000 * MIB, MIB, adapter=True, width=4, kind="plain", save_only_model=False)
    assert sizes == Sizes(12 * MIB + BESIDES, 4 * MIB + BESIDES)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"limit": None, "saves": None}, Need(110, 210, None)),
        ({"limit": None, "saves": 12}, Need(110, 1210, 12)),
        ({"limit": 2, "saves": 12}, Need(110, 310, 3)),
        ({"limit": 2, "saves": None}, Need(110, 310, 3)),
        ({"limit": 5, "saves": 1}, Need(110, 110, 1)),
        ({"limit": None, "saves": 0}, Need(10, 10, 0)),
        ({"limit": 2, "saves": 12, "there": 150}, Need(110, 160, 3)),
        ({"limit": None, "saves": 12, "there": 150}, Need(110, 1210, 12)),
    ],
)
def test_what_a_run_takes(options: dict[str, Any], wanted: Need) -> None:
    """A new checkpoint is written before an old one goes, and old ones go only where there is a limit."""
    assert need(SIZES, **options) == wanted


@pytest.mark.parametrize(
    ("training", "saves"),
    [
        ({"max_steps": 1000}, 2),
        ({"max_steps": 1001, "save_steps": 500}, 3),
        ({"max_steps": 1000, "save_steps": 0.1}, 10),
        ({"max_steps": 1000, "save_strategy": "no"}, 0),
        ({"max_steps": 1000, "save_strategy": "epoch"}, None),
        ({"num_train_epochs": 2}, None),
    ],
)
def test_how_many_there_will_be(training: dict[str, Any], saves: int | None) -> None:
    assert count_saves(make_recipe("sft", training=training)) == saves


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Of the shipped model: some hundred thousand weights, in 20 checkpoints."""
    recipe = make_recipe("sft", training={"max_steps": 100, "save_steps": 5}, launch={"device": "cpu"})
    planned = build_plan(recipe, Machine((), 2), output_dir=tmp_path / "run").plan
    assert planned is not None
    return planned


def test_room_before_the_start(plan: Plan) -> None:
    sizes = disk.sizes_of(plan)
    assert sizes is not None
    least, most = sizes.checkpoint + sizes.final, 20 * sizes.checkpoint + sizes.final
    assert check_disk(plan, most) == ((), ())
    (problem,), notes = check_disk(plan, least - 1)
    assert "a checkpoint and the final model take" in problem.message
    assert (problem.key, notes) == (("output_dir",), ())
    problems, (note,) = check_disk(plan, least)
    assert problems == ()
    assert "20 checkpoints" in note


@pytest.mark.parametrize(("optim", "moments"), [("adamw_torch_fused", 2), ("adamw_8bit", 0), ("adafactor", 0)])
def test_of_other_optimizers_nothing_is_counted(plan: Plan, optim: str, moments: int) -> None:
    sizes = disk.sizes_of(replace(plan, recipe=make_recipe("sft", training={"optim": optim})))
    assert sizes is not None
    weights = sizes.final - BESIDES
    assert sizes.checkpoint - sizes.final == moments * weights


def test_a_model_of_unknown_size_is_not_judged(plan: Plan) -> None:
    model = plan.recipe.model.model_copy(update={"path": "nobody/knows-it"})
    assert check_disk(replace(plan, recipe=plan.recipe.model_copy(update={"model": model})), 0) == ((), ())


def test_room_before_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = namedtuple("Usage", "free")(5_000_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: free)
    room = Room(4_000_000)
    room.check(tmp_path / "checkpoint-5")
    room.learn(6_000_000)
    with pytest.raises(WorkError, match=r"no room for checkpoint-10: it takes 6\.0 MB, .* has 5\.0 MB; earlier"):
        room.check(tmp_path / "checkpoint-10")


def test_room_before_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(5_000_000))
    check_final(tmp_path, 5_000_000)
    takes = r"no room for the final model: it takes 6\.0 MB, and .* has 5\.0 MB; "
    with pytest.raises(WorkError, match=f"{takes}no checkpoint is there .* train again"):
        check_final(tmp_path, 6_000_000)
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(WorkError, match=f"{takes}the checkpoints are kept: .* go on with --resume"):
        check_final(tmp_path, 6_000_000)


def test_a_final_model_takes_the_place_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1_000_000))
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "optimizer.pt"):
        (tmp_path / name).write_bytes(bytes(2_000_000))
    check_final(tmp_path, 5_000_000)
    with pytest.raises(WorkError, match=r"it takes 5\.5 MB"):
        check_final(tmp_path, 5_500_000)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (234_000_000, "234 MB"), (3.2e12, "3.2 TB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert spell(int(count)) == text
