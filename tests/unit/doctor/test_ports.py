"""Ports that are free, and ports that this test has taken."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from ptcli.doctor.checks.ports import Port, Ports, judge_ports, read_ports
from ptcli.doctor.needs import Needs

SERVER = Needs("r.yaml", "cpu", ports=(("rollouts.port", 8000),))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_free_ports_pass_in_one_line() -> None:
    ports = Ports((Port("a", 8000, taken=False), Port("b", 51216, taken=False)), 12)
    assert [(each.state, each.message) for each in judge_ports(ports, Needs())] == [
        ("pass", "8000, 51216 can be bound"),
    ]


def test_a_taken_port_of_the_recipe_fails_and_names_who_has_it() -> None:
    ports = Ports((Port("rollouts.port", 8000, taken=True, owner="pid 7 (python -m http.server)", pid=7),), 12)
    (finding,) = judge_ports(ports, SERVER)
    assert (finding.state, finding.message) == ("fail", "rollouts.port 8000 is taken by pid 7 (python -m http.server)")
    assert finding.fix == "kill 7; or rollouts.port=null for a free one"


def test_a_taken_port_that_no_recipe_wants_is_a_warning() -> None:
    ports = Ports((Port("torchrun's", 29500, taken=True),), 12)
    (finding,) = judge_ports(ports, Needs())
    assert finding.state == "warn"
    assert "sudo ss -ltnp 'sport = :29500'" in finding.fix


def test_a_port_that_needs_root_fails() -> None:
    (finding,) = judge_ports(Ports((Port("rollouts.port", 80, taken=False, refused=True),), 12), SERVER)
    assert (finding.state, finding.message) == ("fail", "rollouts.port 80 may only be bound by root")


def test_a_machine_without_a_free_port_fails() -> None:
    assert [each.state for each in judge_ports(Ports((), 0), Needs())] == ["fail"]


def test_a_server_that_should_run_and_does_not_fails() -> None:
    needs = Needs("r.yaml", "cuda", url="http://127.0.0.1:8123")
    (finding,) = judge_ports(Ports((), 12, unreachable="Connection refused"), needs)
    assert finding.state == "fail"
    assert finding.fix == "ptcli serve-rollouts r.yaml rollouts.url=null rollouts.port=8123"


def test_who_listens_is_found(taken: int) -> None:
    needs = Needs("r.yaml", "cpu", ports=(("rollouts.port", taken),))
    (port,) = read_ports(needs).ports
    assert (port.taken, port.pid) == (True, os.getpid())
    assert f"pid {os.getpid()} (" in port.owner


@pytest.mark.parametrize(("answer", "version"), [(b'{"version": "0.28.0"}', "0.28.0"), (b"hello", ""), (b"[]", "")])
def test_a_server_is_asked_for_its_version(answer: bytes, version: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = read_ports(Needs("r.yaml", url=f"http://127.0.0.1:{server.server_address[1]}/"))
        thread.join()
    assert (found.unreachable, found.server) == ("", version)
    assert found.installed.startswith("0.")


def test_a_server_that_is_away_is_not_reached() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert read_ports(Needs("r.yaml", url=url)).unreachable == "Connection refused"


def test_a_server_of_another_version_fails() -> None:
    needs = Needs("r.yaml", "cuda", url="http://127.0.0.1:8123")
    (finding,) = judge_ports(Ports((), 12, server="0.28.0", installed="0.27.1+cpu"), needs)
    assert finding.state == "fail"
    assert "is vLLM 0.28.0, and 0.27.1+cpu is installed here" in finding.message
    (same,) = judge_ports(Ports((), 12, server="0.27.1", installed="0.27.1+cu129"), needs)
    assert same.state == "pass"


def test_no_secret_of_the_environment_is_shown(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import psutil

    monkeypatch.setenv("MY_API_KEY", "verysecretvalue")
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: [sys.executable, "--key=verysecretvalue"])
    (port,) = read_ports(Needs("r.yaml", "cpu", ports=(("rollouts.port", taken),))).ports
    assert "verysecretvalue" not in port.owner
