"""What nodes tell each other of a run, with the real messages over a socket pair."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ptcli.errors import Interrupted, RequestError, WorkError
from ptcli.plan.build import build_plan
from ptcli.plan.machine import free_ports
from ptcli.plan.model import GPU, Machine, Place, Plan
from ptcli.recipe.model import Recipe
from ptcli.run import nodes
from ptcli.run.nodes import (
    Ended,
    collect,
    log_name,
    met,
    node_facts,
    own_step,
    probe_ports,
    share_storage,
    trains_here,
)
from ptcli.run.panel import choose_view
from ptcli.run.rendezvous import Line, Peers

PORTS = (8000, 51216, 29500, 29550, 29600)


def plan(
    tmp_path: Path, rank: int = 0, *, apart: bool = False, ports: tuple[int, ...] = PORTS, **changes: object
) -> Plan:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "method": "grpo",
            "output_dir": "runs/r",
            "model": {"path": "builtin:tiny"},
            "data": {"train": [{"path": "builtin:arithmetic"}]},
            "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
            "training": {"max_steps": 2, "num_generations": 2},
            "rollouts": {"nodes": 1, "host": "127.0.0.1"} if apart else {"backend": "vllm"},
            "launch": {"device": "cpu", "nodes": 2, "env": {"TOKEN": "${oc.env:A_SECRET}"}},
        }
        | changes
    )
    machine = Machine((), cpus=2, free_ports=ports, place=Place(rank, "127.0.0.1", 4000))
    built = build_plan(recipe, machine, output_dir=tmp_path / "out")
    assert built.plan, built.problems
    return built.plan


@pytest.fixture
def pair() -> Iterator[tuple[Peers, Peers]]:
    """Node 0's end and node 1's."""
    ours, theirs = socket.socketpair()
    with Peers({1: Line(ours)}) as first, Peers({0: Line(theirs)}) as other:
        yield first, other


def test_facts_are_the_same_where_only_free_ports_differ(tmp_path: Path) -> None:
    first, other = plan(tmp_path), plan(tmp_path, 1, ports=(9000, 9001, 9002, 9003))

    assert first.recipe.rollouts.port != other.recipe.rollouts.port
    assert node_facts(first) == node_facts(other)


def test_facts_name_the_recipe_s_values_and_keep_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    facts = node_facts(plan(tmp_path))

    assert facts["recipe"]["training.max_steps"] == "2"
    assert facts["recipe"]["launch.env.TOKEN"] == "${oc.env:A_SECRET}"
    assert "hunter2" not in str(facts)
    assert facts["launch"]["num_processes"] == "2"
    assert {"python", "torch", "trl"} <= facts["package"].keys()


def test_long_values_are_told_apart_by_a_hash(tmp_path: Path) -> None:
    a, b = ("x" * 300 + end for end in "ab")
    values = [node_facts(plan(tmp_path, name=name))["recipe"]["name"] for name in (a, b)]

    assert values[0] != values[1]
    assert max(map(len, values)) <= 100


def test_the_code_that_a_recipe_names_is_told_apart_by_what_is_in_it(tmp_path: Path) -> None:
    code = tmp_path / "reward.py"
    code.write_text("def f(**kwargs): ...\n")
    first = node_facts(plan(tmp_path, rewards=[{"use": f"{code}:f"}]))["file"]
    code.write_text("def f(**kwargs): return 1\n")

    assert first.keys() == {str(code)}
    assert node_facts(plan(tmp_path, rewards=[{"use": f"{code}:f"}]))["file"] != first


def test_a_node_of_the_server_is_not_compared_with_the_trainer_s(tmp_path: Path) -> None:
    server = plan(tmp_path, 2, apart=True)

    assert own_step(server).name == "rollouts"
    assert not trains_here(server)
    assert "launch" not in node_facts(server)
    assert "rollouts.port" in node_facts(server)["recipe"], "both sides go by it"
    assert log_name(own_step(server)) == "rollouts"
    assert log_name(own_step(plan(tmp_path, 1))) == "trainer.1"
    assert log_name(own_step(plan(tmp_path, 0))) == "trainer"


def test_the_gpus_of_a_node_are_those_of_its_own_steps(tmp_path: Path) -> None:
    recipe = plan(tmp_path).recipe.model_copy(update={})
    launch = recipe.launch.model_copy(update={"device": "auto", "processes": None, "gpus": None})
    rollouts = recipe.rollouts.model_copy(update={"gpus": 1})
    machine = Machine(
        tuple(GPU(token=f"GPU-{i}") for i in range(4)), free_ports=PORTS, place=Place(1, "10.0.0.1", 4000)
    )
    built = build_plan(recipe.model_copy(update={"launch": launch, "rollouts": rollouts}), machine, output_dir=tmp_path)

    assert built.plan, built.problems
    assert node_facts(built.plan)["machine"]["gpus"] == "GPU-1 GPU-2 GPU-3"


@pytest.mark.parametrize("error", [WorkError("it broke"), RequestError("it is wrong"), Interrupted(15)])
def test_an_end_is_the_same_on_the_other_node(pair: tuple[Peers, Peers], error: WorkError) -> None:
    first, other = pair
    Ended.of(error).tell(other)
    with pytest.raises(type(error)) as raised:
        collect(first, "prepared", {1}, lambda: None)

    assert raised.value.exit_code == error.exit_code
    assert str(raised.value) in (f"node 1: {error}", str(error))


def test_a_node_that_is_gone_ends_the_wait(pair: tuple[Peers, Peers]) -> None:
    first, other = pair
    other.lines[0].close()

    with pytest.raises(WorkError, match="node 1 is gone: its ptcli, or the connection to it, ended without a word"):
        collect(first, "prepared", {1}, lambda: None)


def test_messages_that_are_no_end_are_none() -> None:
    assert Ended.read({"start": "trainer"}, 0) is None
    assert Ended.read({"ended": "0", "state": "finished"}, 0) is None
    assert Ended.read({"ended": 0, "state": "nonsense"}, 0) is None


@pytest.mark.parametrize("shared", [True, False])
def test_the_run_directory_must_be_seen_from_every_node(
    tmp_path: Path, pair: tuple[Peers, Peers], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "STORAGE_SECONDS", 0.2)
    first, other = pair
    here = plan(tmp_path)

    def answer() -> None:
        while True:
            for _, message in other.hear():
                place = Path(str(message["look_for"]))
                try:
                    nodes._look_for(place if shared else tmp_path / "elsewhere" / place.name, 1)
                except RequestError as error:
                    Ended.of(error).tell(other)
                else:
                    other.tell(looked=True)
                return

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        if shared:
            share_storage(here, first, lambda activity: None)
        else:
            with pytest.raises(RequestError, match="node 1 does not see what node 0 writes to"):
                share_storage(here, first, lambda activity: None)
    finally:
        thread.join(5)
    assert list(tmp_path.glob(".ptcli-nodes-*")) == [], "nothing is left behind"


def test_several_nodes_need_to_be_told_which_this_is(tmp_path: Path) -> None:
    nowhere = replace(plan(tmp_path), place=None)

    with pytest.raises(RequestError) as error, met(nowhere, choose_view(quiet=True)):
        pass

    assert str(error.value) == (
        "the recipe runs on 2 nodes, and it is not said which of them this is; start it on each with --node-rank 0 to "
        "1 and --master HOST:PORT, an address of node 0"
    )


class Served:
    """The plan of node 0 and of the server's node, which is the second end of a pair, and answers in a thread."""

    def __init__(self, tmp_path: Path, **rollouts: object):
        server, group = free_ports(count=2)
        spec = {"nodes": 1, "host": "127.0.0.1", "port": server, "group_port": group} | rollouts
        launch = {"device": "cpu", "nodes": 1}
        self.first = plan(tmp_path, 0, rollouts=spec, launch=launch)
        self.other = plan(tmp_path, 1, rollouts=spec, launch=launch)

    def probe(self, pair: tuple[Peers, Peers]) -> None:
        first, other = pair

        def answer() -> None:
            while True:
                for _, message in other.hear():
                    try:
                        nodes._answer(self.other, other, message, lambda: None)
                    except RequestError as error:
                        Ended.of(error).tell(other)
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            probe_ports(self.first, first, lambda activity: None)
        finally:
            first.tell(probed=True)
            thread.join(10)


def test_the_ports_between_server_and_trainer_are_tried_from_both_sides(
    tmp_path: Path, pair: tuple[Peers, Peers]
) -> None:
    Served(tmp_path).probe(pair)


def test_a_server_s_address_that_its_node_has_not_is_named(tmp_path: Path, pair: tuple[Peers, Peers]) -> None:
    with pytest.raises(RequestError, match=r"rollouts\.host 192\.0\.2\.77 is not an address of node 1, which runs"):
        Served(tmp_path, host="192.0.2.77").probe(pair)


def test_a_port_that_the_server_s_node_cannot_open_is_named(tmp_path: Path, pair: tuple[Peers, Peers]) -> None:
    served = Served(tmp_path)
    port = served.first.recipe.rollouts.port
    with (
        socket.create_server(("127.0.0.1", port or 0)),
        pytest.raises(RequestError, match=f"node 1: rollouts.port {port} cannot be opened at 127.0.0.1: Address"),
    ):
        served.probe(pair)


def test_a_trainer_that_the_server_s_node_cannot_reach_is_named(
    tmp_path: Path, pair: tuple[Peers, Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path)
    monkeypatch.setattr(nodes, "group_address", lambda plan: "127.0.0.1")
    monkeypatch.setattr(nodes, "_trouble", lambda host, port: "timed out")
    with pytest.raises(
        RequestError, match=r"node 1, the rollout server's, cannot reach node 0 at 127\.0\.0\.1:\d+: timed"
    ):
        served.probe(pair)
