"""Real children, real sessions, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ptcli.errors import RequestError
from ptcli.run.processes import MARK, Processes, adopt_orphans, check_programs, end_processes, find_program
from ptcli.run.rundir import RunDirectory

from .conftest import is_gone, make_plan, make_step, python, read_pid, wait_for

SLEEP = "import time; time.sleep(300)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(300)"
CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"], start_new_session={session})
open(sys.argv[1], "w").write(f"{{child.pid}}\\n")
time.sleep({seconds})
"""
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        SHED
        open(sys.argv[1], "w").write(f"{{os.getpid()}}\\n")
        time.sleep(300)
    os._exit(0)
os.wait()
time.sleep({seconds})
"""
WIPED = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(300)"
SHED = f"os.execve(sys.executable, [sys.executable, '-S', '-c', {WIPED!r}, sys.argv[1]], {{}})"


def test_a_step_has_its_own_session_a_log_and_the_mark(rundir: RunDirectory) -> None:
    code = "import os, sys; print(os.environ['PTCLI_RUN_ID'], os.environ['MINE'], sys.stdin.read(), file=sys.stderr)"
    with Processes() as processes:
        group = processes.start(make_step("trainer", python(code), MINE="yes"), rundir.log("trainer"))
        assert os.getsid(group.pid) == group.pid
        wait_for(lambda: group.poll() is not None)
        assert group.poll() == 0
        assert rundir.log("trainer").read_text().split() == [processes.run_id, "yes"]


def test_secrets_reach_only_the_child(rundir: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIT_TOKEN", "very-secret-value")
    code = "import os, sys; sys.exit(os.environ['GIVEN'] != 'very-secret-value')"
    with Processes() as processes:
        group = processes.start(make_step("trainer", python(code), GIVEN="${oc.env:UNIT_TOKEN}"), None)
        wait_for(lambda: group.poll() is not None)
        assert group.poll() == 0


@pytest.mark.parametrize("session", [False, True])
def test_children_are_ended_wherever_they_moved(rundir: RunDirectory, tmp_path: Path, session: bool) -> None:
    with adopt_orphans(), Processes() as processes:
        code = CHILD.format(session=session, seconds=300)
        processes.start(make_step("trainer", python(code, tmp_path / "pid")), rundir.log("trainer"))
        child = read_pid(tmp_path / "pid")
        processes.record()
    assert is_gone(child)


@pytest.mark.parametrize("session", [False, True])
def test_orphans_of_a_dead_leader_are_ended(rundir: RunDirectory, tmp_path: Path, session: bool) -> None:
    """torchrun killed by SIGKILL leaves its workers, each in a session of its own."""
    with adopt_orphans(), Processes() as processes:
        code = CHILD.format(session=session, seconds=300)
        group = processes.start(make_step("trainer", python(code, tmp_path / "pid")), rundir.log("trainer"))
        child = read_pid(tmp_path / "pid")
        os.kill(group.pid, signal.SIGKILL)
        wait_for(lambda: group.poll() is not None)
        assert not is_gone(child)
    assert is_gone(child)


@pytest.mark.parametrize("shed", ["pass", SHED], ids=["marked", "unmarked"])
@pytest.mark.parametrize("seconds", [0, 300], ids=["leader gone", "leader there"])
def test_daemons_are_ended(rundir: RunDirectory, tmp_path: Path, shed: str, seconds: int) -> None:
    """Double fork, own session, even a wiped environment: an orphan of ours is handed to us."""
    with adopt_orphans(), Processes() as processes:
        code = DAEMON.format(seconds=seconds).replace("SHED", shed)
        processes.start(make_step("trainer", python(code, tmp_path / "pid")), rundir.log("trainer"))
        daemon = read_pid(tmp_path / "pid")
        assert os.getsid(daemon) != os.getsid(0)
    assert is_gone(daemon)


def test_daemons_are_found_by_the_mark_without_adoption(rundir: RunDirectory, tmp_path: Path) -> None:
    with Processes() as processes:
        code = DAEMON.format(seconds=0).replace("SHED", "pass")
        processes.start(make_step("trainer", python(code, tmp_path / "pid")), rundir.log("trainer"))
        daemon = read_pid(tmp_path / "pid")
        wait_for(lambda: psutil.Process(daemon).ppid() != os.getpid())
    assert is_gone(daemon)


def test_adopted_children_that_end_are_reaped(rundir: RunDirectory, tmp_path: Path) -> None:
    with adopt_orphans(), Processes() as processes:
        code = DAEMON.format(seconds=0).replace("SHED", "pass")
        processes.start(make_step("trainer", python(code, tmp_path / "pid")), rundir.log("trainer"))
        daemon = read_pid(tmp_path / "pid")
        processes.record()
        os.kill(daemon, signal.SIGKILL)
        wait_for(lambda: processes.record() or not psutil.pid_exists(daemon))


def test_sigterm_may_be_ignored_but_not_sigkill(rundir: RunDirectory) -> None:
    with Processes() as processes:
        group = processes.start(make_step("rollouts", python(STUBBORN)), rundir.log("rollouts"))
        wait_for(rundir.log("rollouts").read_text)
        began = time.monotonic()
        end_processes(group.alive, 0.5)
        assert 0.4 < time.monotonic() - began < 3
        assert group.poll() == -signal.SIGKILL


def test_hurry_skips_the_grace(rundir: RunDirectory) -> None:
    with Processes() as processes:
        group = processes.start(make_step("rollouts", python(STUBBORN)), rundir.log("rollouts"))
        wait_for(rundir.log("rollouts").read_text)
        began = time.monotonic()
        processes.end(lambda: True)
        assert time.monotonic() - began < 2
        assert group.poll() == -signal.SIGKILL


def test_a_stopped_process_is_ended_in_order(rundir: RunDirectory) -> None:
    """It is woken to take its SIGTERM, so it can clean up."""
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(1, flush=True); time.sleep(300)"
    with Processes() as processes:
        group = processes.start(make_step("trainer", python(code)), rundir.log("trainer"))
        wait_for(rundir.log("trainer").read_text)
        os.kill(group.pid, signal.SIGSTOP)
        wait_for(lambda: group.leader.status() == psutil.STATUS_STOPPED)
        processes.end()
        assert group.poll() == 7


def test_the_trainer_is_ended_before_the_server(rundir: RunDirectory) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_): time.sleep(0.3); print(time.monotonic(), flush=True); sys.exit()\n"
        "signal.signal(15, stop); print('up', flush=True); time.sleep(300)"
    )
    with Processes() as processes:
        for name in ("rollouts", "trainer"):
            processes.start(make_step(name, python(code)), rundir.log(name))
        for name in ("rollouts", "trainer"):
            wait_for(rundir.log(name).read_text)
        processes.end()
    ended = {name: float(rundir.log(name).read_text().split()[1]) for name in ("rollouts", "trainer")}
    assert ended["rollouts"] - ended["trainer"] > 0.25


def test_strangers_are_left_alone(rundir: RunDirectory) -> None:
    """Children that we had before, children of other runs, and children we start for other reasons."""
    before = subprocess.Popen(python(SLEEP), start_new_session=True)
    other = subprocess.Popen(python(SLEEP), env={**os.environ, MARK: "another-run"})
    try:
        with adopt_orphans(), Processes() as processes:
            processes.start(make_step("trainer", python(SLEEP)), rundir.log("trainer"))
            meanwhile = subprocess.Popen(python(SLEEP))
            processes.record()
        assert [p.poll() for p in (before, other, meanwhile)] == [None, None, None]
    finally:
        for popen in (before, other, meanwhile):
            popen.kill()
            popen.wait()


def test_a_reused_pid_is_not_signalled() -> None:
    """A psutil.Process whose start time is not that of the pid's owner is another process."""
    stranger = subprocess.Popen(python(SLEEP))
    try:
        ours = psutil.Process(stranger.pid)
        ours._ident = (ours.pid, 1.0)  # type: ignore[attr-defined]
        end_processes(lambda: [ours], 0.1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


KILLED_SUPERVISOR = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.unit.run.conftest import make_step, python
from ptcli.run.processes import Processes
from ptcli.run.rundir import RunDirectory
rundir = RunDirectory(Path({run!r}))
rundir.write_status("training", step=3)
processes = Processes(rundir.status_file)
processes.start(make_step("trainer", python({code!r}, {pid!r})), None)
while True:
    processes.record()
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    "code", [CHILD.format(session=True, seconds=300), DAEMON.format(seconds=0).replace("SHED", "pass")]
)
def test_nothing_survives_a_killed_supervisor(rundir: RunDirectory, tmp_path: Path, root: Path, code: str) -> None:
    program = KILLED_SUPERVISOR.format(root=str(root), run=str(rundir.path), code=code, pid=str(tmp_path / "pid"))
    supervisor = subprocess.Popen([sys.executable, "-c", program])
    child = read_pid(tmp_path / "pid")
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: is_gone(child))
    wait_for(lambda: (status := rundir.status()) and status.state == "failed")
    status = rundir.status()
    assert status
    assert (status.exit_code, status.step) == (137, 3)
    assert "killed" in (status.cause or "")


def test_programs_are_looked_for_beside_python_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_program("py-spy") == str(Path(sys.executable).parent / "py-spy")
    assert find_program("sh").endswith("/sh")
    plan = make_plan(tmp_path, make_step("rollouts", ["no-such-a"]), make_step("trainer", ["no-such-b"]))
    with pytest.raises(RequestError) as caught:
        check_programs(plan)
    assert [str(p).split("`")[1] for p in caught.value.problems] == ["no-such-a", "no-such-b"]
