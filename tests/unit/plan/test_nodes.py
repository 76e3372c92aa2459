"""Which of several nodes this is, and what a plan says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ptcli.plan.build import build_plan
from ptcli.plan.machine import assume_machine
from ptcli.plan.model import Machine, Place, Plan
from ptcli.plan.nodes import count_nodes, decide_place, node_notes, rollout_node_problems
from ptcli.recipe.model import Recipe

PORTS = (8000, 51216, 29500, 29550, 29600)


def recipe(method: str = "sft", *, launch: dict[str, object] | None = None, rollouts: object = None) -> Recipe:
    rewards = [{"use": "ptcli.builtin.rewards:exact_match"}] if method == "grpo" else []
    return Recipe.model_validate(
        {
            "name": "r",
            "method": method,
            "output_dir": "runs/r",
            "model": {"path": "builtin:tiny"},
            "data": {"train": [{"path": "builtin:arithmetic"}]},
            "rewards": rewards,
            "training": {"max_steps": 2, "num_generations": 2} if method == "grpo" else {"max_steps": 2},
            "launch": {"device": "cpu"} | (launch or {}),
            "rollouts": rollouts or {},
        }
    )


def machine(place: Place | None = None) -> Machine:
    return Machine((), cpus=2, free_ports=PORTS, place=place)


def planned(recipe: Recipe, machine: Machine) -> Plan:
    result = build_plan(recipe, machine, output_dir=Path("/runs/r"))
    assert result.plan, result.problems
    return result.plan


TWO = {"nodes": 2}
APART = {"nodes": 1, "host": "10.0.0.9"}


@pytest.mark.parametrize(
    ("rank", "master", "environ", "place"),
    [
        (1, "10.0.0.1:29501", {}, Place(1, "10.0.0.1", 29501)),
        (0, "node0", {}, Place(0, "node0", 29500)),
        (1, "[fd00::1]:1234", {}, Place(1, "fd00::1", 1234)),
        (None, None, {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}, Place(1, "10.0.0.1", 4000)),
        (None, None, {"NODE_RANK": "1", "MASTER_ADDR": "fd00::1"}, Place(1, "fd00::1", 29500)),
        (0, None, {"NODE_RANK": "1", "MASTER_ADDR": "a"}, Place(0, "a", 29500)),
        (None, "a:1", {"SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2"}, Place(1, "a", 1)),
        (None, None, {}, None),
        (None, None, {"SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1"}, None),
    ],
)
def test_the_command_line_says_which_node_this_is_or_else_the_environment(
    rank: int | None, master: str | None, environ: dict[str, str], place: Place | None
) -> None:
    assert decide_place(recipe(launch=TWO), rank, master, environ) == (place, [])


@pytest.mark.parametrize(
    ("rank", "master", "said"),
    [
        (2, "a:1", "--node-rank 2: the 2 nodes are 0 to 1"),
        (-1, "a:1", "--node-rank -1: the 2 nodes are 0 to 1"),
        (0, None, "where the nodes meet is not said; add --master HOST:PORT"),
        (None, "a:1", "which of the nodes this is is not said; add --node-rank, 0 to 1"),
        (0, "a:b", "--master 'a:b' is not HOST:PORT"),
        (0, "a:1/x", "is not HOST:PORT"),
        (0, "a:70000", "is not HOST:PORT"),
        (0, "", "is not HOST:PORT"),
        (0, "0.0.0.0:1", "--master 0.0.0.0 stands for every address"),
    ],
)
def test_a_place_that_is_none_is_an_error(rank: int | None, master: str | None, said: str) -> None:
    place, problems = decide_place(recipe(launch=TWO), rank, master, {})

    assert place is None
    assert said in "\n".join(map(str, problems))


def test_one_node_needs_no_place_and_its_launcher_s_variables_mean_nothing() -> None:
    assert decide_place(recipe(), None, None, {"NODE_RANK": "0", "MASTER_ADDR": "a"}) == (None, [])
    _, [problem] = decide_place(recipe(), 0, "a:1", {})
    assert str(problem) == ("--node-rank and --master: the recipe runs on one node; say launch.nodes, or leave it out")


def test_every_node_has_its_command_with_the_master_s_address() -> None:
    plan = planned(recipe(launch=TWO), machine(Place(1, "10.0.0.1", 4000)))

    assert [(step.name, step.node) for step in plan.steps] == [("trainer", 0), ("trainer", 1)]
    assert (plan.node, plan.nodes) == (1, 2)
    for step in plan.steps:
        options = dict(zip(step.argv[2::2], step.argv[3::2], strict=False))
        assert options["--main_process_ip"] == "10.0.0.1"
        assert options["--main_process_port"] == "4000"
        assert options["--machine_rank"] == str(step.node)
        assert options["--num_machines"] == options["--num_processes"] == "2"


def test_without_a_place_the_address_is_a_variable() -> None:
    plan = planned(recipe(launch=TWO), machine())

    assert "${oc.env:MASTER_ADDR}" in plan.steps[0].argv
    assert '--main_process_ip "$MASTER_ADDR"' in plan.files["launch.sh"]
    assert any("--node-rank 0 to 1 and --master HOST:PORT" in note for note in plan.notes)


def test_deepspeed_is_launched_by_us_on_every_node() -> None:
    gpus = recipe(launch={"nodes": 2, "device": "auto", "accelerate": "zero2"})
    plan = planned(gpus, assume_machine("2x2"))

    assert "deepspeed_multinode_launcher: standard" in plan.files["accelerate.yaml"]


def test_a_server_has_the_last_node_for_itself() -> None:
    plan = planned(recipe("grpo", launch=TWO, rollouts=APART), machine(Place(0, "10.0.0.1", 4000)))

    assert [(step.name, step.node) for step in plan.steps] == [("rollouts", 2), ("trainer", 0), ("trainer", 1)]
    assert plan.nodes == count_nodes(plan.recipe) == 3
    server, trainer, _ = plan.steps
    assert server.env["VLLM_HOST_IP"] == "10.0.0.9"
    assert trainer.env["VLLM_HOST_IP"] == "10.0.0.1", "the server's workers look for the weight sync there"
    assert plan.server
    assert plan.server.url == "http://10.0.0.9:8000"
    assert (plan.recipe.rollouts.port, plan.recipe.rollouts.group_port) == (8000, 51216), "the same on every node"
    assert any("without a password" in note for note in plan.notes)


def test_a_server_beside_the_trainer_stays_on_loopback() -> None:
    plan = planned(recipe("grpo", launch=TWO, rollouts={"backend": "vllm"}), machine(Place(0, "10.0.0.1", 4000)))

    assert plan.steps[0].node == 0
    assert plan.steps[1].env["VLLM_HOST_IP"] == "127.0.0.1"


def test_server_and_trainer_apart_may_use_the_same_numbers_of_gpus() -> None:
    apart = recipe("grpo", launch={"device": "auto", "gpus": 2}, rollouts=APART | {"gpus": 2})
    plan = planned(apart, assume_machine("2x2"))

    assert [step.gpus for step in plan.steps] == [("0", "1"), ("0", "1")]


def test_launch_sh_starts_the_server_on_its_node_and_waits_for_it_on_the_first() -> None:
    script = planned(recipe("grpo", rollouts=APART), machine()).files["launch.sh"]

    assert script.index('if [ "${NODE_RANK:?}" = 1 ]; then\nexec env') < script.index('if [ "${NODE_RANK:?}" = 0 ]')
    assert "http://10.0.0.9:8000/health" in script


@pytest.mark.parametrize(
    ("method", "rollouts", "said"),
    [
        ("sft", {"nodes": 1}, "this recipe uses no rollout server"),
        ("grpo", {"nodes": 1, "backend": "transformers"}, "this recipe uses no rollout server"),
        ("grpo", {"nodes": 1, "url": "http://10.0.0.9:8000"}, "rollouts.nodes and rollouts.url"),
        ("grpo", {"nodes": 1}, "rollouts.nodes needs rollouts.host"),
        ("grpo", {"nodes": 1, "host": "0.0.0.0"}, "must be told which address to use"),
    ],
)
def test_a_server_s_node_needs_a_server_and_its_address(method: str, rollouts: dict[str, object], said: str) -> None:
    [problem] = rollout_node_problems(recipe(method, rollouts=rollouts))

    assert said in str(problem)


def test_a_port_is_only_asked_for_where_it_is_opened() -> None:
    apart = recipe("grpo", rollouts=APART | {"port": 4001, "group_port": 4002})

    def complaints(rank: int) -> list[str]:
        place = replace(machine(Place(rank, "10.0.0.1", 4000)), busy_ports=frozenset({4001, 4002}))
        return [problem.message for problem in build_plan(apart, place, output_dir=Path("/runs/r")).problems]

    assert complaints(0) == ["rollouts.group_port 4002 is in use"]
    assert complaints(1) == ["rollouts.port 4001 is in use"]


def test_the_master_s_port_is_no_other() -> None:
    clash = recipe("grpo", launch=TWO, rollouts=APART | {"port": 4000})
    result = build_plan(clash, machine(Place(0, "10.0.0.1", 4000)), output_dir=Path("/runs/r"))

    assert "rollouts.port and --master have the same port, 4000; choose another" in map(str, result.problems)


def test_many_nodes_of_online_rl_are_better_served_elsewhere() -> None:
    def says(method: str, nodes: int) -> bool:
        return any("verl" in note for note in node_notes(recipe(method, launch={"nodes": nodes}), None))

    assert says("grpo", 5)
    assert not says("grpo", 4)
    assert not says("sft", 64)
    assert any("only nodes on this very machine" in note for note in node_notes(recipe(launch=TWO), Place(0, "::1", 1)))
