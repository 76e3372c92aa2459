"""`python -m ptcli.run.reaper RUN_ID [STATUS_FILE]`: ends a run's processes when the supervisor is gone.

Reads `PID CREATE_TIME` lines from stdin until it ends, which is when the supervisor ends, however it ends. Then it ends
what still runs of those and of all that carry the run's mark, and corrects a `status.json` that says the run goes on.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from ptcli.run.processes import TRAINER_GRACE, end_processes, is_alive, marked_processes

KILLED = 128 + signal.SIGKILL


def main(run_id: str, status_file: Path | None = None) -> None:
    # Ctrl-C and the like are for the supervisor; we see its end by the end of stdin.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    told = set(filter(None, map(_find, sys.stdin)))

    def alive() -> list[psutil.Process]:
        return list(filter(is_alive, _with_children(told).union(marked_processes(run_id))))

    if alive():
        end_processes(alive, TRAINER_GRACE)
    if status_file:
        _correct(status_file)


def _find(line: str) -> psutil.Process | None:
    """The process of a line, if it still is that one."""
    pid, created = line.split()
    try:
        process = psutil.Process(int(pid))
        return process if abs(process.create_time() - float(created)) < 1 else None
    except psutil.Error:
        return None


def _with_children(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    found = set(processes)
    for process in tuple(found):
        try:
            found.update(process.children(recursive=True))
        except psutil.Error:
            continue
    return found


def _correct(status_file: Path) -> None:
    from ptcli.run.rundir import RUNNING, RunDirectory

    rundir = RunDirectory(status_file.parent)
    status = rundir.status()
    if status and status.state in RUNNING:
        cause = "ptcli itself was killed or crashed"
        rundir.write_status("failed", cause=cause, step=status.step, exit_code=KILLED, events=status.events)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:3]))
