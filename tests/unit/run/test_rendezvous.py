"""Nodes meet over real connections on this machine, each in a thread of its own."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ptcli.errors import RequestError
from ptcli.plan.machine import free_ports
from ptcli.plan.model import Place
from ptcli.run import rendezvous
from ptcli.run.rendezvous import Line, Peers, differences, is_own, meet, open_listener, resolve

FACTS = {"recipe": {"seed": "42", "training.learning_rate": "1e-05"}, "package": {"trl": "1.12.0"}}
SECONDS = 20.0


@pytest.fixture
def port() -> int:
    return free_ports(count=1)[0]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_PAUSE", 0.01)
    monkeypatch.setattr(rendezvous, "STRAGGLERS_SECONDS", 0.3)


Node = Callable[..., "Future[Peers]"]


@pytest.fixture
def node(port: int) -> Node:
    pool = ThreadPoolExecutor()

    def start(
        rank: int,
        facts: Mapping[str, Mapping[str, str]] = FACTS,
        *,
        nodes: int = 2,
        host: str = "127.0.0.1",
        seconds: float = SECONDS,
    ) -> Future[Peers]:
        place = Place(rank, host, port)
        return pool.submit(meet, place, nodes, facts, seconds=seconds, tick=lambda activity: None)

    return start


def said(future: Future[Peers]) -> str:
    with pytest.raises(RequestError) as error:
        future.result(SECONDS + 1)
    assert error.value.exit_code == 2
    return str(error.value)


def wait_for(peers: Peers) -> list[tuple[int, dict[str, object]]]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if heard := list(peers.hear()):
            return heard
    raise AssertionError("nothing came")


def test_nodes_that_agree_meet_whoever_comes_first_and_stay_in_touch(node: Node) -> None:
    late = node(2, nodes=3)
    time.sleep(0.05)
    first, other = node(0, nodes=3), node(1, nodes=3)

    with first.result(SECONDS) as peers, other.result(SECONDS) as one, late.result(SECONDS) as two:
        assert list(peers.lines) == [1, 2]
        peers.tell(start="trainer")
        assert wait_for(one) == [(0, {"start": "trainer"})]
        assert wait_for(two) == [(0, {"start": "trainer"})]
        two.tell(exited=0)
        assert wait_for(peers) == [(2, {"exited": 0})]
        one.lines[0].close()
        assert wait_for(peers) == [(1, {"lost": True})]
        assert list(peers.hear()) == [], "it is lost once"


def test_the_port_is_free_again_for_the_trainer_while_the_nodes_stay_in_touch(node: Node, port: int) -> None:
    first, other = node(0), node(1)

    with first.result(SECONDS) as peers, other.result(SECONDS) as one, socket.create_server(("127.0.0.1", port)):
        peers.tell(start="trainer")
        assert wait_for(one) == [(0, {"start": "trainer"})]


def test_another_recipe_is_named_with_both_values_on_both_nodes(node: Node) -> None:
    other = FACTS | {"recipe": {"seed": "42", "training.learning_rate": "2e-05", "training.bf16": "true"}}
    messages = [said(each) for each in (node(0), node(1, other))]

    assert messages[0] == messages[1]
    assert messages[0] == (
        "node 1 has another recipe than node 0: training.learning_rate is 1e-05 on node 0, 2e-05 on node 1; "
        "training.bf16 is absent on node 0, true on node 1; start every node with the same recipe and overrides"
    )


def test_every_node_hears_of_every_difference(node: Node) -> None:
    older = FACTS | {"package": {"trl": "1.11.0"}}
    another = FACTS | {"recipe": FACTS["recipe"] | {"seed": "1"}}
    futures = [node(0, nodes=4), node(1, older, nodes=4), node(2, another, nodes=4), node(3, nodes=4)]
    messages = {said(future) for future in futures}

    assert len(messages) == 1
    [message] = messages
    assert "node 1 has another package than node 0: trl is 1.12.0 on node 0, 1.11.0 on node 1" in message
    assert "node 2 has another recipe than node 0: seed is 42 on node 0, 1 on node 2" in message
    assert "node 3" not in message


def test_a_rank_that_two_nodes_claim_is_named_on_all(node: Node) -> None:
    futures = [node(0, nodes=3), node(1, nodes=3), node(1, nodes=3)]

    for future in futures:
        assert "two nodes say that they are node 1 (127.0.0.1); give each its own --node-rank" in said(future)


def test_a_node_beyond_the_last_is_turned_away(node: Node) -> None:
    futures = [node(0), node(5)]

    for future in futures:
        assert "node 5 came, and the nodes are 0 to 1" in said(future)


def test_missing_nodes_are_named_on_those_that_came(node: Node) -> None:
    futures = [node(0, nodes=4, seconds=0.4), node(2, nodes=4)]

    for future in futures:
        assert "nodes 1, 3 have not come within 0.4 s; start it there with --node-rank 1 --master 127.0.0.1:" in said(
            future
        )


def test_a_first_node_that_is_not_there_is_named(node: Node) -> None:
    message = said(node(1, seconds=0.2))

    assert "node 0 does not answer at 127.0.0.1:" in message
    assert "Connection refused; start it there with --node-rank 0 and the same --master; 127.0.0.1 is this machine" in (
        message
    )


def test_a_second_first_node_finds_the_port_taken(node: Node, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        assert f"port {port} of 127.0.0.1 cannot be opened: Address already in use" in said(node(0))


def test_an_address_of_another_machine_cannot_be_node_0_s(node: Node) -> None:
    assert "--master 192.0.2.77 (192.0.2.77) is not an address of this machine, which is node 0" in said(
        node(0, host="192.0.2.77")
    )
    assert "--master nowhere.invalid: there is no machine of that name" in said(node(0, host="nowhere.invalid"))


def test_something_else_at_the_port_is_not_taken_for_node_0(
    node: Node, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "GREETING_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", port)):
        assert "something else answers there" in said(node(1, seconds=0.3))


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b'{"ptcli": 99, "rank": 1, "nodes": 2, "facts": {}}\n',
        b'{"ptcli": 1, "rank": "1", "nodes": 2, "facts": {}}\n',
        b'{"ptcli": 1, "rank": 1, "nodes": 2, "facts": {"recipe": {"seed": 1}}}\n',
        b"x" * (rendezvous.LONGEST_LINE + 2),
        b"",
    ],
)
def test_strangers_at_the_port_are_sent_away_and_hold_up_nobody(node: Node, port: int, garbage: bytes) -> None:
    first = node(0)
    stranger = connect(port)
    stranger.sendall(garbage)
    if not garbage:
        stranger.close()
    other = node(1)

    with first.result(SECONDS), other.result(SECONDS):
        stranger.close()


def test_nodes_on_one_machine_must_not_share_a_gpu(node: Node) -> None:
    shared = FACTS | {"machine": {"boot": "a", "gpus": "GPU-1 GPU-2"}}
    message = said_of_both(node, shared, shared)

    assert message == (
        "nodes 0 and 1 are the same machine and both use GPU GPU-1, GPU-2; give each its own with CUDA_VISIBLE_DEVICES"
    )
    elsewhere = FACTS | {"machine": {"boot": "b", "gpus": "GPU-1"}}
    first, other = node(0, shared), node(1, elsewhere)
    with first.result(SECONDS), other.result(SECONDS):
        pass


def said_of_both(node: Node, mine: Mapping[str, Mapping[str, str]], theirs: Mapping[str, Mapping[str, str]]) -> str:
    messages = [said(each) for each in (node(0, mine), node(1, theirs))]
    assert messages[0] == messages[1]
    return messages[0]


def test_long_and_many_differences_are_cut() -> None:
    first = {"recipe": {f"key{index}": "x" * 500 for index in range(40)}}
    [problem] = differences(first, {"recipe": {}}, 3)

    assert "key5 is " in problem.message
    assert "key6" not in problem.message
    assert "and 34 more" in problem.message
    assert len(problem.message) < 2000


def test_control_characters_of_another_node_do_not_reach_the_terminal() -> None:
    [problem] = differences({"recipe": {"a": "1"}}, {"recipe": {"a": "\x1b[2J"}}, 1)

    assert "\x1b" not in problem.message


def test_a_group_that_a_node_leaves_out_is_not_compared() -> None:
    assert differences({"launch": {"num_processes": "8"}}, {"recipe": {}}, 1) == []


def test_messages_in_one_piece_and_in_pieces_come_one_by_one() -> None:
    ours, theirs = socket.socketpair()
    line = Line(ours)
    theirs.sendall(b'{"a": 1}\n{"b": 2}\n{"c"')

    assert [line.receive(), line.receive(), line.receive()] == [{"a": 1}, {"b": 2}, None]
    theirs.sendall(b": 3}\n" + json.dumps({"d": "x" * 200_000}).encode()[:1000])
    assert line.receive() == {"c": 3}
    assert not line.closed
    theirs.close()
    assert line.receive() is None
    assert line.closed
    line.send(e=1)


def test_addresses() -> None:
    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.77")
    assert "127.0.0.1" in resolve("localhost")
    assert resolve("nowhere.invalid") == []


def test_loopback_is_not_opened_to_others(port: int) -> None:
    with open_listener(Place(0, "127.0.0.1", port)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def connect(port: int) -> socket.socket:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_name_that_others_know_is_opened_to_them_in_both_families(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "resolve", lambda host: ["::1", "127.0.0.1"])
    if not socket.has_dualstack_ipv6():
        pytest.skip("this kernel has no IPv6")
    with open_listener(Place(0, "node0", port)), connect(port):
        pass
