from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptcli.errors import KeyPath
from ptcli.plan.gpus import split_gpus, tokens
from ptcli.plan.model import GPU, Machine


def machine(*names: str, **facts: Any) -> Machine:
    return Machine(gpus=tuple(GPU(token=name, uuid=f"GPU-uuid-{name}") for name in names), **facts)


EIGHT = machine(*"01234567")


def both(where: Machine, server: Any, trainer: Any, **options: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    split = split_gpus(where, server, trainer, **options)
    assert split.problems == ()
    return tokens(where, split.server), tokens(where, split.trainer)


@pytest.mark.parametrize(
    ("server", "trainer", "expected"),
    [
        (4, 4, ("0123", "4567")),
        (2, 3, ("01", "234")),
        (4, None, ("0123", "4567")),
        (None, None, ("", "01234567")),
        (None, 2, ("", "01")),
        ([4, 5], 2, ("45", "01")),
        (2, [6, 7], ("01", "67")),
        ([7, 0], [3], ("70", "3")),
        (["6", "GPU-uuid-2"], ["GPU-uuid-7"], ("62", "7")),
    ],
)
def test_split(server: Any, trainer: Any, expected: tuple[str, str]) -> None:
    assert both(EIGHT, server, trainer) == (tuple(expected[0]), tuple(expected[1]))


def test_indices_are_positions_among_the_visible_and_tokens_are_handed_on() -> None:
    assert both(machine("4", "5", "6", "7"), [2, 3], [0, 1]) == (("6", "7"), ("4", "5"))
    assert both(machine("GPU-b", "GPU-a"), 1, 1) == (("GPU-b",), ("GPU-a",))


def test_a_single_process_gets_one_gpu() -> None:
    assert both(EIGHT, None, None, single=True) == ((), ("0",))
    assert both(EIGHT, 2, None, single=True) == (("0", "1"), ("2",))


def test_a_server_alone_leaves_the_trainer_out() -> None:
    assert both(machine("0", "1"), 2, 4, trains=False) == (("0", "1"), ())


@pytest.mark.parametrize(
    ("server", "trainer", "key", "text"),
    [
        (9, None, ("rollouts", "gpus"), "rollouts.gpus asks for 9 GPUs, but 8 GPUs are visible"),
        (8, None, ("rollouts", "gpus"), "leaves none"),
        (6, 4, ("launch", "gpus"), "rollouts take 6 of them, which leaves 2"),
        (None, 9, ("launch", "gpus"), "launch.gpus asks for 9 GPUs, but 8 GPUs are visible"),
        (0, None, ("rollouts", "gpus"), "at least 1"),
        (None, 0, ("launch", "gpus"), "at least 1"),
        ([0, 1], [1, 2], ("launch", "gpus"), "GPU 1 is in both"),
        ([0, 0], None, ("rollouts", "gpus", 1), "named twice"),
        ([0, "GPU-uuid-0"], None, ("rollouts", "gpus", 1), "named twice"),
        ([0], [1, 8], ("launch", "gpus", 1), "GPU 8 is not there"),
        ([0], ["GPU-other"], ("launch", "gpus", 0), "GPU GPU-other is not there"),
        ([], None, ("rollouts", "gpus"), "empty list"),
        ([-1], None, ("rollouts", "gpus", 0), "GPU -1 is not there"),
        (["GPU-uuid"], None, ("rollouts", "gpus", 0), "is not there"),  # the beginning of eight UUIDs
    ],
)
def test_impossible_splits_name_their_key(server: Any, trainer: Any, key: KeyPath, text: str) -> None:
    problems = split_gpus(EIGHT, server, trainer).problems
    assert [problem.key for problem in problems] == [key]
    assert text in str(problems[0])


def test_all_that_is_wrong_is_said_at_once() -> None:
    problems = split_gpus(EIGHT, [0, 0, 9], [8]).problems
    keys = [problem.key for problem in problems]
    assert keys == [("rollouts", "gpus", 1), ("rollouts", "gpus", 2), ("launch", "gpus", 0)]


def test_the_message_says_what_hides_gpus() -> None:
    (problem,) = split_gpus(machine("3", visible="3"), None, 2).problems
    assert "1 GPU is visible (CUDA_VISIBLE_DEVICES=3)" in str(problem)


def test_uuids_of_an_assumed_machine_are_unknown() -> None:
    where = Machine(gpus=(GPU("0"), GPU("1")), assumed=True)
    (problem,) = split_gpus(where, ["GPU-a"], None).problems
    assert "use indices" in str(problem)


@pytest.mark.parametrize(("server", "trainer"), [(1, 1), (None, 2)])
def test_mig_slices_are_refused_for_a_split(server: Any, trainer: Any) -> None:
    problems = split_gpus(machine("MIG-x", "MIG-y"), server, trainer).problems
    assert len(problems) == 1
    assert "MIG" in str(problems[0])


def test_one_mig_slice_serves_a_single_process() -> None:
    assert both(machine("MIG-x"), None, None, single=True) == ((), ("MIG-x",))


def choices(count: int) -> st.SearchStrategy[Any]:
    listed = st.lists(st.integers(-1, count + 1) | st.integers(0, count).map(str), max_size=count + 1)
    return st.none() | st.integers(0, count + 2) | listed


@given(st.data(), st.lists(st.integers(0, 99), max_size=8, unique=True), st.booleans())
def test_a_split_is_disjoint_and_keeps_tokens(data: st.DataObject, pool: list[int], single: bool) -> None:
    where = machine(*map(str, pool))
    server, trainer = data.draw(choices(len(pool))), data.draw(choices(len(pool)))
    split = split_gpus(where, server, trainer, single=single)
    if split.problems:
        return
    served, trained = tokens(where, split.server), tokens(where, split.trainer)
    assert not set(served) & set(trained)
    assert len(set(served)) == len(served)
    assert len(set(trained)) == len(trained) >= 1
    assert set(served + trained) <= set(map(str, pool))
    for asked, got in ((server, served), (trainer, trained)):
        if isinstance(asked, int):
            assert len(got) == asked
        elif isinstance(asked, list):
            assert got == tuple(str(pool[int(entry)]) for entry in asked)
    if server is None:
        assert served == ()
    if trainer is None:
        assert len(trained) == (1 if single else len(pool) - len(served))
