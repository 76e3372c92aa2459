"""Whole runs of small real programs: a fake server that speaks HTTP, and trainers of a few lines."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from ptcli.plan.model import Plan, Server, Step
from ptcli.run import health
from ptcli.run import supervise as supervise_module
from ptcli.run.panel import Lines
from ptcli.run.processes import MARK, Processes
from ptcli.run.rundir import RunDirectory, Status
from ptcli.run.supervise import serve, supervise

from .conftest import BEAT, is_gone, make_plan, make_step, python, read_pid, wait_for

LAB = "UNIT_TEST_FOLDER"
FAKE_SERVER = Path(__file__).parent / "fake_server.py"
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
        beat(step, "saving")
        time.sleep(0.5)
        beat(step, "stopped")
        break
"""
)
"""Like GOES_ON, until it is asked for a checkpoint."""
HANGS = BEAT + "beat(2); print('RuntimeError: waiting for the server', flush=True); time.sleep(300)\n"


@dataclass
class Lab:
    """A run to be: its directory, the switches of its server, and what it said."""

    rundir: RunDirectory
    folder: Path
    port: int
    output: io.StringIO = field(default_factory=io.StringIO)

    @property
    def server(self) -> Server:
        url = f"http://127.0.0.1:{self.port}"
        return Server(url, "tiny", "float32", 128, 1, 1, "gloo", startup_timeout=20)

    def server_step(self) -> Step:
        return make_step("rollouts", (sys.executable, str(FAKE_SERVER), str(self.port), str(self.folder)))

    def plan(self, trainer: str, *, server: bool = True, limit: float | None = None) -> Plan:
        steps = [self.server_step()] if server else []
        steps.append(make_step("trainer", python(trainer, self.rundir.heartbeat, self.folder)))
        return make_plan(self.rundir.path, *steps, server=self.server if server else None, limit=limit)

    def run(self, plan: Plan) -> Status:
        status = supervise(plan, self.rundir, view=Lines(self.output))
        assert self.rundir.status() == status
        assert self.left() == []
        return status

    def left(self) -> list[int]:
        """Processes of the run that are still there. Told by this folder: the same test may run beside us."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if MARK in environment and environment.get(LAB) == str(self.folder):
                    found.append(process.pid)
        return found

    def child(self) -> int:
        return read_pid(self.folder / "child")

    def meanwhile(self, *actions: Callable[[], object]) -> None:
        """Do things while the run goes on, each when it is due."""
        threading.Thread(target=lambda: [action() for action in actions], daemon=True).start()

    def training(self) -> None:
        wait_for(lambda: (status := self.rundir.status()) and status.state == "training" and status.step > 1, 30)

    def pid_of(self, word: str) -> int:
        """The pid of our child whose command line has the word."""
        return next(p.pid for p in psutil.Process().children(recursive=True) if word in " ".join(p.cmdline()))


@pytest.fixture
def lab(rundir: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv(LAB, str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Lab(rundir, tmp_path, free.getsockname()[1])


@pytest.fixture
def quick_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PULSE_INTERVAL", 0.2)
    monkeypatch.setattr(health, "PULSE_PATIENCE", 0.5)


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(s) for s in signals]
    yield
    assert [signal.getsignal(s) for s in signals] == before


def test_finished(lab: Lab) -> None:
    status = lab.run(lab.plan(TRAINS))
    assert (status.state, status.exit_code, status.step, status.cause) == ("finished", 0, 3, None)
    assert is_gone(lab.child())
    said = lab.output.getvalue()
    assert said.index("starting the rollout server") < said.index("ready after") < said.index("step 3/3  reward 0.25")


def test_finished_without_a_server(lab: Lab) -> None:
    assert lab.run(lab.plan(TRAINS, server=False)).exit_code == 0


def test_no_step_is_a_failure(lab: Lab) -> None:
    status = lab.run(lab.plan(BEAT + "beat(0, 'finished')", server=False))
    assert (status.state, status.exit_code) == ("failed", 1)
    assert "without having trained a single step" in (status.cause or "")


def test_an_early_end_is_a_failure_whatever_its_exit_code(lab: Lab) -> None:
    """As of a reward that calls `os._exit(0)`."""
    status = lab.run(lab.plan(BEAT + "beat(2)", server=False))
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 2)
    assert "ended at step 2, before it was done" in (status.cause or "")


def test_trainer_that_raises(lab: Lab) -> None:
    status = lab.run(lab.plan(BEAT + "beat(1); raise ValueError('no such answer')"))
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 1)
    assert status.cause == "trainer died (exit code 1): ValueError: no such answer"
    assert is_gone(lab.child())
    assert f"last lines of {lab.rundir.log('trainer')}\nTraceback" in lab.output.getvalue()


def test_trainer_killed(lab: Lab) -> None:
    lab.meanwhile(lab.training, lambda: os.kill(lab.pid_of("beat"), signal.SIGKILL))
    status = lab.run(lab.plan(GOES_ON))
    assert (status.state, status.exit_code) == ("failed", 1)
    assert "trainer died (signal 9)" in (status.cause or "")
    assert is_gone(lab.child())


def test_server_killed(lab: Lab) -> None:
    lab.meanwhile(lab.training, lambda: os.kill(lab.pid_of("fake_server"), signal.SIGKILL))
    status = lab.run(lab.plan(GOES_ON))
    assert (status.state, status.exit_code) == ("failed", 1)
    assert "rollout server died (signal 9)" in (status.cause or "")
    assert is_gone(lab.child())


def test_server_killed_and_the_trainer_notices_first(lab: Lab) -> None:
    """The server is the cause also when its trainer is gone before it."""
    code = BEAT + "beat(1); open(sys.argv[2] + '/go', 'w'); raise ConnectionError('reset by peer')"
    lab.meanwhile(
        lambda: wait_for((lab.folder / "go").exists, 30),
        lambda: time.sleep(0.7),
        lambda: os.kill(lab.pid_of("fake_server"), signal.SIGKILL),
    )
    cause = lab.run(lab.plan(code)).cause or ""
    assert cause.startswith("rollout server died (signal 9)")
    assert cause.endswith("the trainer then ended: ConnectionError: reset by peer")


def test_server_that_cannot_start(lab: Lab) -> None:
    (lab.folder / "broken").touch()
    status = lab.run(lab.plan(TRAINS))
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 0)
    assert status.cause == "rollout server died (exit code 1): RuntimeError: the model is too big"
    assert not lab.rundir.log("trainer").exists()
    assert is_gone(lab.child())


def test_server_that_is_never_ready(lab: Lab) -> None:
    (lab.folder / "slow").touch()
    plan = lab.plan(TRAINS)
    object.__setattr__(plan.server, "startup_timeout", 1.5)
    status = lab.run(plan)
    assert (status.state, status.exit_code) == ("failed", 1)
    assert "/health answered 503" in (status.cause or "")


def test_server_that_is_not_the_planned_one(lab: Lab) -> None:
    plan = lab.plan(TRAINS)
    object.__setattr__(plan.server, "dtype", "bfloat16")
    status = lab.run(plan)
    assert status.exit_code == 1
    assert "bfloat16" in (status.cause or "")


def test_external_server_is_used_but_not_ended(lab: Lab) -> None:
    """Also a run that fails leaves it alone."""
    step = lab.server_step()
    external = subprocess.Popen(step.argv, stderr=subprocess.DEVNULL)
    try:
        for trainer, code in ((TRAINS, 0), (BEAT + "beat(1); sys.exit(3)", 1)):
            lab.child()
            wait_for(lambda: _listens(lab.port))
            plan = lab.plan(trainer)
            object.__setattr__(plan, "steps", plan.steps[1:])
            object.__setattr__(plan.server, "external", True)
            assert lab.run(plan).exit_code == code
            assert external.poll() is None
    finally:
        os.kill(lab.child(), signal.SIGKILL)
        external.kill()
        external.wait()


def test_external_server_that_is_not_there(lab: Lab) -> None:
    plan = lab.plan(TRAINS)
    object.__setattr__(plan, "steps", plan.steps[1:])
    object.__setattr__(plan.server, "external", True)
    status = lab.run(plan)
    assert status.exit_code == 1
    assert not lab.rundir.log("trainer").exists()
    assert "restart the rollout server" not in lab.output.getvalue()


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)],
    ids=["INT", "TERM", "USR1"],
)
def test_stopped_while_training(lab: Lab, signum: int, code: int) -> None:
    """The trainer is asked for a checkpoint and ends by itself, with no signal."""
    lab.meanwhile(lab.training, lambda: os.kill(os.getpid(), signum))
    status = lab.run(lab.plan(SAVES))
    assert (status.state, status.exit_code) == ("stopped", code)
    assert status.cause == f"stopped by {signal.Signals(signum).name}; checkpoint-{status.step} is saved"
    assert status.step > 1
    assert "a checkpoint is saved after this step" in lab.output.getvalue()
    assert is_gone(lab.child())


def test_a_closed_terminal_ends_at_once(lab: Lab) -> None:
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored, and so does ptcli then
    try:
        lab.meanwhile(lab.training, lambda: os.kill(os.getpid(), signal.SIGHUP))
        status = lab.run(lab.plan(GOES_ON))
    finally:
        signal.signal(signal.SIGHUP, inherited)
    assert (status.state, status.exit_code, status.cause) == ("stopped", 129, "stopped by SIGHUP")


def test_a_step_that_does_not_end_is_not_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise_module, "CHECKPOINT_SECONDS", 1.5)
    lab.meanwhile(lab.training, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = lab.run(lab.plan(GOES_ON))
    assert (status.state, status.exit_code) == ("stopped", 143)
    assert re.fullmatch(r"stopped by SIGTERM; no checkpoint: the step did not end in [12] s", status.cause or "")


def test_a_method_that_cannot_go_on_saves_nothing(lab: Lab) -> None:
    lab.meanwhile(lab.training, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = lab.run(replace(lab.plan(SAVES), method="ppo"))
    assert (status.state, status.exit_code, status.cause) == ("stopped", 143, "stopped by SIGTERM")


def test_a_save_that_fails_is_a_failure(lab: Lab) -> None:
    fails = SAVES.replace('beat(step, "stopped")', "sys.exit('error: no room for checkpoint-3')")
    lab.meanwhile(lab.training, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = lab.run(lab.plan(fails))
    assert (status.state, status.exit_code) == ("failed", 1)
    assert "no room for checkpoint-3" in (status.cause or "")


def test_stopped_while_the_server_starts(lab: Lab) -> None:
    (lab.folder / "slow").touch()
    lab.meanwhile(lab.child, lambda: time.sleep(0.3), lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = lab.run(lab.plan(TRAINS))
    assert (status.state, status.exit_code) == ("stopped", 143)
    assert is_gone(lab.child())


@pytest.mark.parametrize("times", [1, 2])
def test_second_ctrl_c_kills_at_once(lab: Lab, times: int) -> None:
    """A trainer within a long step is waited for once, a server that ignores SIGTERM costs its grace, and nothing costs
    a person in a hurry."""
    (lab.folder / "stubborn").touch()
    began: list[float] = []

    def press() -> None:
        began.append(time.monotonic())
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.8)

    lab.meanwhile(lab.training, press)
    status = lab.run(lab.plan(SAVES if times == 1 else GOES_ON))
    took = time.monotonic() - began[0]
    assert status.exit_code == 130
    assert took < 4 if times == 2 else 4 < took < 15
    assert is_gone(lab.child())


def test_no_progress(lab: Lab) -> None:
    """Stacks of both sides, the first error of either log, both ended in time."""
    status = lab.run(lab.plan(HANGS, limit=1.0))
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 2)
    assert "no progress" in (status.cause or "")
    assert "first error in trainer.log: RuntimeError: waiting for the server" in (status.cause or "")
    assert (
        "time.sleep" in (lab.rundir.logs / "stacks-trainer.txt").read_text()
        or "<module>" in (lab.rundir.logs / "stacks-trainer.txt").read_text()
    )
    assert "serve_forever" in (lab.rundir.logs / "stacks-rollouts.txt").read_text()


def test_stopped_trainer_is_noticed_and_ended(lab: Lab) -> None:
    stopped: list[float] = []

    def stop() -> None:
        os.kill(lab.pid_of("beat"), signal.SIGSTOP)
        stopped.append(time.monotonic())

    lab.meanwhile(lab.training, stop)
    status = lab.run(lab.plan(GOES_ON, limit=1.5))
    assert "no progress" in (status.cause or "")
    assert time.monotonic() - stopped[0] < 1.5 + 15
    assert "(stopped)" in (lab.rundir.logs / "stacks-trainer.txt").read_text()


@pytest.mark.usefixtures("quick_pulse")
def test_server_that_does_not_answer(lab: Lab) -> None:
    """Noticed while the trainer may still take its time."""
    lab.meanwhile(lab.training, (lab.folder / "stuck").touch)
    status = lab.run(lab.plan(GOES_ON))
    assert (status.state, status.exit_code) == ("failed", 1)
    assert "rollout server does not answer: no answer in" in (status.cause or "")
    assert (lab.rundir.logs / "stacks-rollouts.txt").exists()


def test_secrets_are_not_in_status_or_output(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIT_API_KEY", "very-secret-value")
    status = lab.run(lab.plan(BEAT + "beat(1); raise ValueError('denied: ' + os.environ['UNIT_API_KEY'])"))
    assert status.cause == "trainer died (exit code 1): ValueError: denied: ${oc.env:UNIT_API_KEY}"
    assert "very-secret-value" not in lab.output.getvalue() + lab.rundir.status_file.read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_serve(lab: Lab, signum: int, capfd: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(lab.rundir.path, lab.server_step(), server=lab.server)
    lab.meanwhile(
        lambda: wait_for(lambda: "rollouts.url=" in lab.output.getvalue(), 30), lambda: os.kill(os.getpid(), signum)
    )
    assert serve(plan, view=Lines(lab.output)) == 128 + signum
    assert f"rollouts.url={lab.server.url}" in lab.output.getvalue()
    assert is_gone(lab.child())
    assert "GET /v1/models" in capfd.readouterr().err


def test_serve_reports_a_server_that_dies(lab: Lab) -> None:
    (lab.folder / "broken").touch()
    plan = make_plan(lab.rundir.path, lab.server_step(), server=lab.server)
    assert serve(plan, view=Lines(lab.output)) == 1
    assert "rollout server died (exit code 1)" in lab.output.getvalue()
    assert is_gone(lab.child())


def test_a_bug_in_ours_leaves_no_process(lab: Lab) -> None:
    class Broken(Lines):
        def say(self, text: str) -> None:
            assert "ready" not in text, "a bug"

    with pytest.raises(AssertionError, match="a bug"):
        supervise(lab.plan(GOES_ON), lab.rundir, view=Broken(lab.output))
    assert is_gone(lab.child())
    status = lab.rundir.status()
    assert status
    assert status.state == "failed"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_processes_start_no_thread_and_leave_no_child(rundir: RunDirectory) -> None:
    before = {p.pid for p in psutil.Process().children()}
    with Processes():
        pass
    assert {p.pid for p in psutil.Process().children()} == before


# --- what follows ----------------------------------------------------------------------------------------------------

_ASKS = """
import socket, sys
with socket.socket() as probe:
    print('refused' if probe.connect_ex(('127.0.0.1', int(sys.argv[1]))) else 'answered')
"""


def test_what_follows_runs_when_the_processes_are_gone(lab: Lab) -> None:
    plan = replace(lab.plan(TRAINS), after=make_step("merge", python(_ASKS, lab.port)))
    assert lab.run(plan).state == "finished"
    assert lab.rundir.log("merge").read_text() == "refused\n"


def test_a_merge_that_fails_fails_the_run(lab: Lab) -> None:
    fails = "import sys; print('error: no room for it', file=sys.stderr); sys.exit(1)"
    status = lab.run(replace(lab.plan(TRAINS, server=False), after=make_step("merge", python(fails))))
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 3)
    assert status.cause == "the adapter is trained and saved, but could not be merged: no room for it"
    assert "merge.log" in lab.output.getvalue()


def test_nothing_follows_a_training_that_failed(lab: Lab) -> None:
    after = make_step("merge", python("print('merged')"))
    status = lab.run(replace(lab.plan("raise SystemExit(3)", server=False), after=after))
    assert status.state == "failed"
    assert not lab.rundir.log("merge").exists()
