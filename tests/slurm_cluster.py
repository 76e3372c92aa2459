"""A real Slurm with two emulated nodes on this machine, in a folder of its own, for as long as a test needs it."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"
START_SECONDS = 60.0

_CONFIG = """\
ClusterName=emulated
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of Slurm that this machine lacks."""
    return [name for name in NEEDED if shutil.which(name, path=_SEARCH) is None]


@dataclass(frozen=True)
class Cluster:
    """A running Slurm: nodes n1 and n2 in the partition `debug`."""

    folder: Path
    env: dict[str, str]
    """What a program needs in its environment to reach it."""

    def run(self, *argv: str, check: bool = True) -> str:
        """What one of Slurm's programs prints."""
        done = subprocess.run(argv, env=os.environ | self.env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """`scontrol show job` as a mapping."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.partition("=")[::2] for word in words)

    def wait(self, number: int | str, states: set[str], seconds: float) -> dict[str, str]:
        """The job once it is in one of the states. Fails after so many seconds."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {number} is {job['JobState']} after {seconds:.0f} s: {job}"
            time.sleep(0.5)
        return job


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start munged, slurmctld and two slurmd, and end them, by their ids, with all jobs that are left."""
    started: list[subprocess.Popen[bytes]] = []
    # n1 and n2 are names to Slurm alone.
    here = dict.fromkeys(("PTCLI_MASTER_ADDR", "PTCLI_ROLLOUTS_ADDR"), "127.0.0.1")
    env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SEARCH} | here
    _prepare(folder)
    cluster = Cluster(folder, env)
    try:
        for argv in _daemons(folder):
            log = (folder / f"{argv[0]}.out").open("ab")
            started.append(subprocess.Popen(argv, env=os.environ | env, stdout=log, stderr=log, cwd=folder))
            if argv[0] == "munged":
                _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        _wait_for(lambda: cluster.run("sinfo", "-h", "-o", "%t %D", check=False).strip() == "idle 2", folder)
        yield cluster
        cluster.run("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name, check=False)
        _wait_for(lambda: not cluster.run("squeue", "-h", check=False).strip(), folder)
    finally:
        for daemon in reversed(started):
            _end(daemon)


def _prepare(folder: Path) -> None:
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    user = pwd.getpwuid(os.getuid()).pw_name
    # Overcommitted: what runs here is small, and two nodes share the cores of one machine.
    text = _CONFIG.format(folder=folder, host=host, user=user, ports=_ports(3), cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text)


def _daemons(folder: Path) -> Iterator[list[str]]:
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    options = [f"--{name}={folder / file}" for name, file in files.items()]
    yield ["munged", "--foreground", "--force", "--num-threads=2", *options]
    yield ["slurmctld", "-D"]
    yield ["slurmd", "-D", "-N", "n1"]
    yield ["slurmd", "-D", "-N", "n2"]


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for(condition, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        said = {path.name: path.read_text(errors="replace")[-800:] for path in folder.glob("*.out")}
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        daemon.wait(10)
        return
    daemon.kill()
    daemon.wait()
