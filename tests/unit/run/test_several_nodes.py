"""Both ends of a run on several nodes, each with real processes of a few lines, the other end played over a socket."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ptcli.plan.model import Place, Plan
from ptcli.run import supervise as supervise_module
from ptcli.run.nodes import follow
from ptcli.run.panel import Lines
from ptcli.run.rendezvous import Line, Peers
from ptcli.run.rundir import RunDirectory, Status
from ptcli.run.supervise import is_lost_peer, supervise

from .conftest import BEAT, make_plan, make_step, python, read_pid, wait_for

TRAINS = BEAT + "for step in range(1, 4): beat(step, total=3); time.sleep(0.1)\nbeat(3, 'finished', 3)\n"
GOES_ON = BEAT + "for step in range(1, 3000): beat(step); time.sleep(0.1)\n"
SAVES = (
    BEAT
    + """
request = os.path.join(os.path.dirname(sys.argv[1]), "checkpoint.request")
for step in range(1, 3000):
    beat(step)
    time.sleep(0.1)
    if os.path.exists(request):
        beat(step, "stopped")
        break
"""
)
LOST = "RuntimeError: [../gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:1: Connection reset by peer"
DIES = BEAT + "beat(1); time.sleep(0.5); sys.exit('ValueError: my own fault')\n"
WAITS = "import os, sys, time\nopen(sys.argv[1], 'w').write(f'{os.getpid()}\\n')\ntime.sleep(300)\n"


@dataclass
class Other:
    """The other end: what it hears, and what it says when it is due."""

    peers: Peers
    output: io.StringIO = field(default_factory=io.StringIO)
    heard: list[dict[str, Any]] = field(default_factory=list)
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def play(self, *actions: Callable[[], object]) -> None:
        def act() -> None:
            for action in actions:
                action()
            while not self._stop.is_set():
                self.heard += [message for _, message in self.peers.hear()]
                time.sleep(0.01)

        self._thread = threading.Thread(target=act, daemon=True)
        self._thread.start()

    def hears(self, **message: Any) -> Callable[[], None]:
        """Wait for a message with these values."""

        def look() -> bool:
            self.heard += [message for _, message in self.peers.hear()]
            return any(message.items() <= each.items() for each in self.heard)

        return lambda: wait_for(look, 20)

    def says(self, **message: Any) -> Callable[[], None]:
        return lambda: self.peers.tell(**message)

    def finish(self) -> list[dict[str, Any]]:
        self._stop.set()
        if self._thread:
            self._thread.join(10)
        return self.heard


@pytest.fixture
def ends() -> Iterator[tuple[Peers, Other]]:
    """This node's end, and the other's."""
    ours, theirs = socket.socketpair()
    with Peers({0: Line(ours)}) as near, Peers({0: Line(theirs)}) as far:
        other = Other(far)
        yield near, other
        other.finish()


# --- node 0 ----------------------------------------------------------------------------------------------------------


@dataclass
class First:
    """Node 0 of a run on two."""

    rundir: RunDirectory
    peers: Peers
    other: Other

    def run(self, trainer: str) -> Status:
        plan = self.plan(trainer)
        return supervise(plan, self.rundir, view=Lines(self.other.output), peers=self.peers)

    def plan(self, trainer: str) -> Plan:
        step = make_step("trainer", python(trainer, self.rundir.heartbeat))
        plan = make_plan(self.rundir.path, step, replace(step, node=1))
        return replace(plan, place=Place(0, "127.0.0.1", 1))

    def training(self) -> None:
        wait_for(lambda: (status := self.rundir.status()) and status.step > 1, 30)


@pytest.fixture
def first(rundir: RunDirectory, ends: tuple[Peers, Other], monkeypatch: pytest.MonkeyPatch) -> First:
    monkeypatch.setattr(supervise_module, "BLAME_SECONDS", 1.5)
    near, other = ends
    near.lines[1] = near.lines.pop(0)
    return First(rundir, near, other)


def test_the_others_are_told_when_to_start_and_may_be_done_first(first: First) -> None:
    first.other.play(first.training, first.other.says(exited=0, log="trainer.1", cause=None))
    status = first.run(TRAINS)

    assert (status.state, status.exit_code) == ("finished", 0)
    assert first.other.finish() == [{"start": "trainer"}]


def test_a_trainer_of_another_node_that_dies_ends_the_run(first: First) -> None:
    cause = "trainer died (exit code 1): ValueError: no"
    first.other.play(first.training, first.other.says(exited=1, log="trainer.1", cause=cause))
    (first.rundir.logs / "trainer.1.log").write_text("the log of node 1\n")
    status = first.run(GOES_ON)

    assert (status.state, status.exit_code, status.cause) == ("failed", 1, f"node 1: {cause}")
    assert "the log of node 1" in first.other.output.getvalue()


def test_a_trainer_that_lost_the_other_is_not_the_cause(first: First) -> None:
    cause = "trainer died (exit code 1): rank 1 died of signal 9 (SIGKILL)"
    first.other.play(first.training, lambda: time.sleep(1), first.other.says(exited=1, log="trainer.1", cause=cause))
    status = first.run(BEAT + f"beat(2); time.sleep(1.2); sys.exit('{LOST}')\n")

    assert status.cause == f"node 1: {cause}"


def test_a_trainer_elsewhere_that_lost_this_one_is_not_the_cause(first: First) -> None:
    lost = f"trainer died (exit code 1): {LOST}"
    first.other.play(first.other.hears(start="trainer"), first.other.says(exited=1, log="trainer.1", cause=lost))
    status = first.run(DIES)

    assert status.cause == "trainer died (exit code 1): ValueError: my own fault"


def test_a_signal_elsewhere_saves_a_checkpoint_here(first: First) -> None:
    first.other.play(first.training, first.other.says(signal=int(signal.SIGTERM)))
    status = first.run(SAVES)

    assert (status.state, status.exit_code) == ("stopped", 143)
    assert f"checkpoint-{status.step}" in str(status.cause)


def test_what_an_error_of_a_lost_peer_looks_like() -> None:
    assert is_lost_peer(LOST)
    assert not is_lost_peer("ValueError: no")


# --- the others ------------------------------------------------------------------------------------------------------


@dataclass
class Second:
    """Node 1 of a run on two."""

    rundir: RunDirectory
    peers: Peers
    other: Other
    prepared: list[bool] = field(default_factory=list)

    def follow(self, trainer: str) -> Status:
        step = make_step("trainer", python(trainer, self.child))
        plan = make_plan(self.rundir.path, step, replace(step, node=1))
        plan = replace(plan, place=Place(1, "127.0.0.1", 1))
        return follow(plan, self.peers, lambda: self.prepared.append(True), view=Lines(self.other.output))

    @property
    def child(self) -> Path:
        return self.rundir.path / "child"


@pytest.fixture
def second(rundir: RunDirectory, ends: tuple[Peers, Other]) -> Second:
    return Second(rundir, *ends)


def test_a_node_prepares_starts_and_ends_when_it_is_told(second: Second, tmp_path: Path) -> None:
    token, other = tmp_path / "token", second.other
    token.touch()
    other.play(
        other.says(look_for=str(token)), other.hears(looked=True), other.says(prepare=True), other.hears(prepared=True),
        other.says(start="trainer"), other.hears(exited=0), other.says(ended=0, state="finished", cause=None),
    )  # fmt: skip
    status = second.follow("import sys; print('hello from node 1')")

    assert (status.state, status.exit_code, status.cause) == ("finished", 0, None)
    assert second.prepared == [True]
    assert second.rundir.log("trainer.1").read_text() == "hello from node 1\n"
    assert {"exited": 0, "log": "trainer.1", "cause": None} in other.finish()


def test_what_ends_node_0_ends_the_others_with_its_code_and_cause(second: Second) -> None:
    other = second.other
    other.play(
        other.says(start="trainer"), lambda: read_pid(second.child),
        other.says(ended=1, state="failed", cause="trainer died (exit code 1): no"),
    )  # fmt: skip
    status = second.follow(WAITS)

    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.cause == "node 0: trainer died (exit code 1): no"
    assert not psutil.pid_exists(read_pid(second.child))


def test_a_request_that_is_wrong_on_node_0_is_wrong_everywhere(second: Second) -> None:
    second.other.play(second.other.says(ended=2, state="failed", cause="the data are not there"))
    status = second.follow(WAITS)

    assert (status.exit_code, status.cause) == (2, "node 0: the data are not there")
    assert not second.child.exists()


def test_a_trainer_that_dies_here_is_reported_with_its_cause(second: Second) -> None:
    other = second.other
    cause = "trainer died (exit code 1): ValueError: no"
    other.play(
        other.says(start="trainer"), other.hears(exited=1, log="trainer.1", cause=cause),
        other.says(ended=1, state="failed", cause=f"node 1: {cause}"),
    )  # fmt: skip
    status = second.follow("import sys; sys.exit('ValueError: no')")

    assert (status.exit_code, status.cause) == (1, f"node 1: {cause}")
    assert "ValueError: no" in other.output.getvalue()


def test_a_signal_here_is_for_node_0_to_act_on(second: Second) -> None:
    other = second.other
    other.play(
        other.says(start="trainer"), lambda: read_pid(second.child), lambda: os.kill(os.getpid(), signal.SIGTERM),
        other.hears(signal=int(signal.SIGTERM)), other.says(ended=143, state="stopped", cause="stopped by SIGTERM"),
    )  # fmt: skip
    status = second.follow(WAITS)

    assert (status.state, status.exit_code, status.cause) == ("stopped", 143, "node 0: stopped by SIGTERM")
