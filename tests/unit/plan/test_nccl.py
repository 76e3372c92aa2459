"""`launch.nccl`: to every process, and checked against what this machine has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ptcli.plan.build import build_plan
from ptcli.plan.machine import assume_machine, read_machine
from ptcli.plan.model import Machine
from ptcli.plan.nccl import Names, nccl_environment, nccl_notes, nccl_problems, watched
from ptcli.recipe.model import NcclSpec, Recipe

INTERFACES = ("lo", "eth0", "eth1", "ib0", "docker0")
ADAPTERS = ("mlx5_0", "mlx5_1", "mlx5_10")
HERE = Machine((), interfaces=INTERFACES, adapters=ADAPTERS)


def recipe(nccl: dict[str, Any], **launch: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "method": "grpo",
            "output_dir": "runs/r",
            "model": {"path": "builtin:tiny"},
            "data": {"train": [{"path": "builtin:arithmetic"}]},
            "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
            "rollouts": {"gpus": 1},
            "training": {"max_steps": 1, "num_generations": 2},
            "launch": {"nccl": nccl} | launch,
        }
    )


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth0", ["eth0"]),
        ("=eth", []),
        ("ib,eth1", ["eth1", "ib0"]),
        ("^docker,lo", ["eth0", "eth1", "ib0"]),
        ("^=eth0", ["lo", "eth1", "ib0", "docker0"]),
    ],
)
def test_names_are_read_as_nccl_reads_them(text: str, chosen: list[str]) -> None:
    assert Names.parse(text).chosen(INTERFACES) == chosen


def test_ports_of_adapters_are_not_part_of_their_names() -> None:
    assert Names.parse("=mlx5_1:1").chosen(ADAPTERS) == ["mlx5_1"]
    assert Names.parse("mlx5_1:1").chosen(ADAPTERS) == ["mlx5_1", "mlx5_10"]


def test_every_key_becomes_its_variable_and_gloo_gets_whole_names() -> None:
    spec = NcclSpec(interface="eth", ib_hca="=mlx5_0:1", gdr_level="PHB", debug="INFO")

    assert nccl_environment(spec, HERE) == {
        "NCCL_SOCKET_IFNAME": "eth",
        "NCCL_IB_HCA": "=mlx5_0:1",
        "NCCL_NET_GDR_LEVEL": "PHB",
        "NCCL_DEBUG": "INFO",
        "GLOO_SOCKET_IFNAME": "eth0,eth1",
    }
    assert nccl_environment(NcclSpec(interface="^docker"), HERE)["GLOO_SOCKET_IFNAME"] == "eth0,eth1,ib0"
    assert "GLOO_SOCKET_IFNAME" not in nccl_environment(NcclSpec(interface="^docker"), assume_machine("8"))
    assert nccl_environment(NcclSpec(gdr_level=0), HERE) == {"NCCL_NET_GDR_LEVEL": "0"}
    assert nccl_environment(NcclSpec(), HERE) == {}


def test_trainer_and_server_get_them() -> None:
    planned = build_plan(recipe({"interface": "eth0"}), assume_machine("2"), output_dir=Path("/runs/r"))

    assert planned.plan
    assert [step.env["NCCL_SOCKET_IFNAME"] for step in planned.plan.steps] == ["eth0", "eth0"]
    assert "NCCL is told: NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0" in planned.plan.notes


@pytest.mark.parametrize(
    ("nccl", "said"),
    [
        ({"interface": "eth7"}, "no network interface eth7; here are lo, eth0, eth1, ib0, docker0"),
        ({"interface": "=eth"}, "this machine has no network interface eth"),
        ({"interface": "^lo,eth,ib,docker"}, "leaves no network interface"),
        ({"interface": "eth0,,ib0"}, "names nothing"),
        ({"interface": "="}, "names nothing"),
        ({"ib_hca": "mlx4_0"}, "this machine has no InfiniBand adapter mlx4_0"),
        ({"ib_hca": ":1"}, "names nothing"),
    ],
)
def test_what_is_not_on_this_machine_is_an_error(nccl: dict[str, str], said: str) -> None:
    [problem] = nccl_problems(recipe(nccl), HERE)

    assert said in str(problem)
    assert problem.key == ("launch", "nccl", *nccl)


def test_a_machine_without_adapters_says_so_and_one_that_is_assumed_has_any() -> None:
    [problem] = nccl_problems(recipe({"ib_hca": "^mlx5_1"}), replace(HERE, adapters=()))

    assert "this machine has no InfiniBand adapter" in str(problem)
    assert nccl_problems(recipe({"ib_hca": "mlx5_0", "interface": "ens3"}), assume_machine("8")) == []
    assert nccl_problems(recipe({"ib_hca": "mlx5_0:1", "interface": "^docker"}), HERE) == []


def test_the_machine_s_own_devices_are_read() -> None:
    machine = read_machine(None, environ={"NCCL_ALGO": "Ring", "PATH": "/bin"}, devices=list)

    assert machine.interfaces
    assert "lo" in machine.interfaces
    assert machine.adapters is not None
    assert machine.nccl == {"NCCL_ALGO": "Ring"}


def test_a_variable_that_is_said_twice_is_an_error() -> None:
    [problem] = nccl_problems(recipe({"debug": "INFO"}, env={"NCCL_DEBUG": "WARN"}), HERE)

    assert str(problem) == "launch.env: NCCL_DEBUG is launch.nccl.debug, which is given, too; leave one of them out"


def test_the_caller_s_variables_give_way_and_are_told() -> None:
    environ = watched({"NCCL_DEBUG": "WARN", "NCCL_ALGO": "Ring", "HOME": "/root", "TORCH_NCCL_BLOCKING_WAIT": "1"})
    notes = nccl_notes(recipe({"debug": "INFO"}), replace(HERE, nccl=environ))

    assert notes == [
        "NCCL_DEBUG=WARN in the environment gives way to INFO, the recipe's",
        "NCCL is told: NCCL_ALGO=Ring NCCL_DEBUG=INFO TORCH_NCCL_BLOCKING_WAIT=1",
    ]
    assert nccl_notes(recipe({}), replace(HERE, nccl=environ)) == [], "nothing of it is ours, and there is one node"
    assert nccl_notes(recipe({}, nodes=2), replace(HERE, nccl=environ)) != []


@pytest.mark.parametrize("wrong", [{"debug": "info"}, {"gdr_level": "FAR"}, {"gdr_level": 6}, {"interface": ""}])
def test_values_that_nccl_would_ignore_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NcclSpec(**wrong)
