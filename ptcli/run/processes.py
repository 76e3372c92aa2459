"""The processes of one run: started from the plan's steps, recorded as they multiply, ended together.

Where descendants go decides how they are found again:

- every step has a session of its own, but torchrun gives each worker a session of its own too, so a process group is
  not enough: descendants are recorded while the run lives (`Processes.record`);
- an orphan is handed to the nearest subreaper, which is this process (`adopt_orphans`), so daemons stay in our tree;
- everything that a step starts inherits the mark `PTCLI_RUN_ID`, so what left the tree is found by its environment.

Nothing else is ever signalled, and a pid counts only together with its start time, so that a number that was given
to a stranger meanwhile is left alone (psutil compares the two).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ptcli.errors import Problem, RequestError

if TYPE_CHECKING:
    from ptcli.plan.model import Plan, Step

MARK = "PTCLI_RUN_ID"
"""Environment variable that every process of a run carries."""
TRAINER_GRACE = 4.0
"""Seconds between SIGTERM and SIGKILL for the trainer."""
SERVER_GRACE = 6.0
"""The same for the server, which needs 2 to 3 s when it is well and never ends by itself when it is stuck."""
TRACKER_GRACE = 1.0
"""Seconds that multiprocessing's resource trackers get to unlink shared memory, once their owners are dead."""
KILL_WAIT = 2.0
"""Seconds to wait for the kernel after a SIGKILL."""
_POLL = 0.05
_PR_SET_CHILD_SUBREAPER = 36


def never() -> bool:
    """The answer of a teardown that nobody hurries."""
    return False


class ProcessGroup:
    """One step of the plan as running processes: the one we started, and everything that came of it."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]):
        self.name = name
        self._popen = popen
        self.leader = psutil.Process(popen.pid)
        self.members: dict[int, psutil.Process] = {popen.pid: self.leader}

    @property
    def pid(self) -> int:
        return self._popen.pid

    def poll(self) -> int | None:
        """Exit code of the process that we started, negative for a signal; None while it runs."""
        return self._popen.poll()

    def alive(self) -> list[psutil.Process]:
        """Everything recorded of this step that still runs."""
        return list(filter(is_alive, self.members.values()))


class Processes:
    """All processes of one run. A context manager: what is left at its end is ended."""

    def __init__(self, status_file: Path | None = None, keep_open: Iterable[int] = ()):
        """`status_file` and `keep_open` (file descriptors, as of a lock) go to the reaper."""
        self.run_id = uuid.uuid4().hex
        self.groups: dict[str, ProcessGroup] = {}
        self._strays: dict[int, psutil.Process] = {}
        self._before = {child.pid for child in psutil.Process().children()}
        self._reaper = Reaper(self.run_id, status_file, tuple(keep_open))
        self._before.add(self._reaper.pid)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            self._reaper.dismiss()

    def start(self, step: Step, log: Path | None) -> ProcessGroup:
        """Start a step. Its output goes to the end of `log`, or to our own stdout and stderr without one.

        Never a pipe: a pipe that nobody reads stops the child. Raises RequestError for a program that is not there.
        """
        argv = [find_program(step.argv[0]), *step.argv[1:]]
        env = step_environment(step, self.run_id)
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("ab")) if log else None
            popen = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out and subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        group = self.groups[step.name] = ProcessGroup(step.name, popen)
        self._reaper.tell(group.leader)
        return group

    def record(self) -> None:
        """Note new descendants, and reap adopted ones that ended. To be called about once a second."""
        own_session = os.getsid(0)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                self._note(process, own_session)

    def _note(self, process: psutil.Process, own_session: int) -> None:
        parent, adopted = process.ppid(), process.ppid() == os.getpid()
        if adopted and self._is_ours(process.pid, own_session):
            return
        if adopted and process.pid not in self._leaders() and process.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(process.pid, os.WNOHANG)
            return
        home = self._home(process, parent)
        if home is not None and home.get(process.pid) != process:
            home[process.pid] = process
            self._reaper.tell(process)

    def _is_ours(self, pid: int, own_session: int) -> bool:
        """True for a child that we have for other reasons. Steps, and what comes of them, have other sessions."""
        return pid not in self._leaders() and (pid in self._before or os.getsid(pid) == own_session)

    def _leaders(self) -> set[int]:
        return {group.pid for group in self.groups.values()}

    def _home(self, process: psutil.Process, parent: int) -> dict[int, psutil.Process] | None:
        """Where to record it: in the group that knows it, its parent or its session; None when it is not of the run."""
        homes = [group.members for group in self.groups.values()]
        for pid in (process.pid, parent, os.getsid(process.pid)):
            for home in homes:
                if pid in home:
                    return home
        return self._strays if parent == os.getpid() or parent in self._strays else None

    def alive(self) -> list[psutil.Process]:
        """Everything of the run that still runs, wherever it moved. Reads every process's environment: slow."""
        self.record()
        known = {p for home in (*(g.members for g in self.groups.values()), self._strays) for p in home.values()}
        return list(filter(is_alive, known.union(marked_processes(self.run_id))))

    def _recorded(self, group: ProcessGroup) -> list[psutil.Process]:
        self.record()
        return group.alive()

    def end(self, hurry: Callable[[], bool] = never) -> None:
        """End everything: the trainer first (a lost server costs it a minute of retries), then all the rest.

        Takes at most `TRAINER_GRACE + SERVER_GRACE` and about 3 s more; no grace once `hurry()` is true.
        """
        trainer = self.groups.get("trainer")
        if trainer:
            end_processes(lambda: self._recorded(trainer), TRAINER_GRACE, hurry)
        end_processes(self.alive, SERVER_GRACE, hurry)
        for group in self.groups.values():
            group.poll()


class Reaper:
    """A small process that outlives us and ends the run's processes if we go without doing so (kill -9).

    It learns of our end by the end of a pipe, so there is nothing to tell it when all went well: it finds nothing.
    """

    def __init__(self, run_id: str, status_file: Path | None, keep_open: tuple[int, ...]):
        argv = [sys.executable, "-m", "ptcli.run.reaper", run_id, *([str(status_file)] if status_file else [])]
        env = {name: value for name, value in os.environ.items() if name != MARK}
        self._popen = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, pass_fds=keep_open, bufsize=0,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._popen.pid

    def tell(self, process: psutil.Process) -> None:
        """Have it end this process too, even if it sheds the mark."""
        assert self._popen.stdin
        with contextlib.suppress(OSError, psutil.Error):
            self._popen.stdin.write(f"{process.pid} {process.create_time()!r}\n".encode())

    def dismiss(self) -> None:
        """Let it go, and wait for it."""
        assert self._popen.stdin
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        try:
            self._popen.wait(TRAINER_GRACE + KILL_WAIT + TRACKER_GRACE)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def end_processes(alive: Callable[[], list[psutil.Process]], grace: float, hurry: Callable[[], bool] = never) -> None:
    """SIGTERM to all that `alive()` finds, SIGKILL to what is left after `grace` seconds or once `hurry()` is true.

    A stopped process takes no SIGTERM before it goes on, so each gets SIGCONT too. Resource trackers ignore SIGTERM
    and end after their owners, having unlinked what those left in /dev/shm: they are killed last.
    """
    signal_all(alive(), signal.SIGTERM)
    signal_all(alive(), signal.SIGCONT)
    _wait_until_gone(lambda: list(filterfalse(is_tracker, alive())), 0 if hurry() else grace, hurry)
    signal_all(filterfalse(is_tracker, alive()), signal.SIGKILL)
    _wait_until_gone(alive, TRACKER_GRACE, hurry)
    signal_all(alive(), signal.SIGKILL)
    _wait_until_gone(alive, KILL_WAIT, never)


def _wait_until_gone(alive: Callable[[], list[psutil.Process]], seconds: float, hurry: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while alive() and time.monotonic() < deadline and not hurry():
        time.sleep(_POLL)


def signal_all(processes: Iterable[psutil.Process], signum: int) -> None:
    """Send a signal to each that is still the process it was."""
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            process.send_signal(signum)


def is_alive(process: psutil.Process) -> bool:
    """False also for a zombie and for a pid that another process has got."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_tracker(process: psutil.Process) -> bool:
    """True for the helper of `multiprocessing` that unlinks shared memory."""
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def marked_processes(run_id: str) -> list[psutil.Process]:
    """Processes whose environment carries the run's mark, ourselves excluded."""
    mark = f"{MARK}={run_id}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(psutil.Error, OSError):
            if mark in entry.read_bytes().split(b"\0") and int(entry.parent.name) != os.getpid():
                found.append(psutil.Process(int(entry.parent.name)))
    return found


@contextlib.contextmanager
def adopt_orphans() -> Iterator[None]:
    """Make this process the parent of orphaned descendants (prctl PR_SET_CHILD_SUBREAPER; Linux only)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        if prctl:
            prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def step_environment(step: Step, run_id: str) -> dict[str, str]:
    """The whole environment of a step, secrets revealed. Never to be written anywhere."""
    from ptcli.plan.launch import inherited
    from ptcli.recipe.secrets import reveal

    tools = str(Path(sys.executable).parent)
    ours = {
        # The console scripts call others of the same environment (ninja, deepspeed), which need not be activated.
        "PATH": os.pathsep.join(filter(None, (tools, os.environ.get("PATH")))),
        "PYTHONUNBUFFERED": "1",
        # setproctitle, which vLLM uses, would otherwise overwrite what /proc shows of the environment: the mark.
        "SPT_NOENV": "1",
    }
    return {**inherited(os.environ), **ours, **reveal(dict(step.env)), MARK: run_id}


def find_program(name: str) -> str:
    """Path of a program: beside our Python first, then on PATH. Raises RequestError when it is in neither place."""
    beside = Path(sys.executable).parent / name
    if os.access(beside, os.X_OK) and beside.is_file():
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise RequestError(Problem(f"`{name}` is not installed in {beside.parent}", _INSTALL.get(name, "install it")))
    return found


_INSTALL = {"vllm": "install ptcli[vllm], or ptcli[cpu-rollouts] where there is no GPU", "accelerate": "install ptcli"}


def check_programs(plan: Plan) -> None:
    """Raise RequestError with every program of the plan that is not there."""
    problems: list[Problem] = []
    for step in plan.steps:
        try:
            find_program(step.argv[0])
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(problems)
