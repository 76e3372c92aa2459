"""Faults in the middle of real training: the demo recipe through `ptcli train`, with a real vLLM server on this CPU.

After each: everything is gone within 15 s of being noticed, the exit code is the contract's, `status.json` names the
cause, the ports are free, and no process carries the run's mark.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
START_SECONDS = 240
GONE_SECONDS = 15
LIMIT = 40
"""`guards.no_progress_seconds`."""
MARK = b"PTCLI_RUN_ID="

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@dataclass
class LiveRun:
    """A `ptcli train` that is at it."""

    ptcli: psutil.Popen
    path: Path
    stderr: Path
    mark: bytes = b""
    processes: tuple[psutil.Process, ...] = ()

    def status(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "status.json").read_text())
        except FileNotFoundError:
            return {"state": None, "step": 0}

    def wait_for_step(self, step: int) -> None:
        """Wait for a finished step, then note every process of the run."""
        self.wait_until(lambda: self.status()["step"] >= step, START_SECONDS)
        self.note_processes()

    def note_processes(self) -> None:
        self.processes = tuple(self.ptcli.children(recursive=True))
        environ = Path(f"/proc/{self.side('trainer').pid}/environ").read_bytes().split(b"\0")
        self.mark = next(entry for entry in environ if entry.startswith(MARK))

    def side(self, name: str) -> psutil.Process:
        """The process that ptcli started for a step."""
        program = {"rollouts": "vllm", "trainer": "accelerate"}[name]
        return next(p for p in self.ptcli.children() if any(Path(w).name == program for w in p.cmdline()[:3]))

    def child(self, name: str, word: str) -> psutil.Process:
        """A process below it."""
        return next(p for p in self.side(name).children(recursive=True) if word in " ".join(p.cmdline()))

    def wait_until(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.ptcli.poll() is None, f"ptcli ended early: {self.stderr.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"waited in vain: {self.stderr.read_text()[-3000:]}"
            time.sleep(0.05)

    def assert_ends(self, code: int, state: str, cause: str, seconds: float = GONE_SECONDS) -> None:
        """The run ends within `seconds` from now, as it should, and leaves nothing."""
        began = time.monotonic()
        assert self.ptcli.wait(seconds) == code, self.stderr.read_text()[-3000:]
        print(f"{cause}: ended in {time.monotonic() - began:.1f} s; {self.status()['cause']}")
        status = self.status()
        assert (status["state"], status["exit_code"]) == (state, code)
        assert cause in status["cause"]
        assert status["step"] >= 1 or state == "failed"
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        assert list(filter(is_alive, self.processes)) == []
        assert marked(self.mark) == []
        for port in self.ports():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))

    def ports(self) -> list[int]:
        plan = json.loads((self.path / "plan.json").read_text())
        trainer = next(step for step in plan["steps"] if step["name"] == "trainer")["argv"]
        main_port = int(trainer[trainer.index("--main_process_port") + 1])
        if plan["server"] is None:
            return [main_port]
        recipe = yaml.safe_load(plan["files"]["recipe.resolved.yaml"])
        return [urlsplit(plan["server"]["url"]).port, main_port, recipe["rollouts"]["group_port"]]


def is_alive(process: psutil.Process) -> bool:
    """False for a zombie too: it waits for whoever adopted it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(mark: bytes) -> list[int]:
    """Processes whose environment has the mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., LiveRun]]:
    """Starts a run of the demo recipe that would go on for long."""
    runs: list[LiveRun] = []

    def launch(command: list[str] | None = None) -> LiveRun:
        path, stderr = tmp_path / "run", tmp_path / "stderr"
        argv = command or [sys.executable, "-m", "ptcli", "train", *arguments(path)]
        with stderr.open("wb") as file:
            popen = psutil.Popen(argv, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        runs.append(LiveRun(popen, path, stderr))
        return runs[-1]

    yield launch
    for run in runs:
        if run.ptcli.poll() is None:
            run.ptcli.terminate()
            run.ptcli.wait(60)


def arguments(path: Path) -> list[str]:
    long = ("training.max_steps=5000", f"guards.no_progress_seconds={LIMIT}")
    return [str(ROOT / "recipes/demo.yaml"), f"output_dir={path}", *long]


@pytest.mark.parametrize(
    ("side", "child", "cause"),
    [
        ("rollouts", None, "rollout server died (signal 9)"),
        ("rollouts", "EngineCore", "rollout server died"),
        ("trainer", None, "trainer died (signal 9)"),
        ("trainer", "ptcli.train.worker", "trainer died"),
    ],
    ids=["server", "child of the server", "trainer", "child of the trainer"],
)
def test_killed(start: Callable[..., LiveRun], side: str, child: str | None, cause: str) -> None:
    run = start()
    run.wait_for_step(3)
    victim = run.child(side, child) if child else run.side(side)
    victim.kill()
    run.assert_ends(1, "failed", cause)
    assert "error:" in run.stderr.read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_stopped(start: Callable[..., LiveRun], signum: signal.Signals, code: int) -> None:
    run = start()
    run.wait_for_step(3)
    run.ptcli.send_signal(signum)
    run.assert_ends(code, "stopped", signum.name)


def test_stopped_while_the_server_starts(start: Callable[..., LiveRun]) -> None:
    run = start()
    run.wait_until(lambda: run.status()["state"] == "serving" and len(run.ptcli.children()) > 1, 60)
    time.sleep(8)
    run.processes = tuple(run.ptcli.children(recursive=True))
    run.ptcli.send_signal(signal.SIGINT)
    assert run.ptcli.wait(GONE_SECONDS) == 130
    assert run.status()["state"] == "stopped"
    assert list(filter(is_alive, run.processes)) == []


def test_engine_that_stops(start: Callable[..., LiveRun]) -> None:
    """SIGSTOP of the engine: the server's `/health` goes on to answer. Noticed by the watchdog."""
    run = start()
    run.wait_for_step(3)
    run.child("rollouts", "EngineCore").suspend()
    run.wait_until(lambda: "writing stacks" in run.stderr.read_text(), LIMIT + 30)
    run.assert_ends(1, "failed", "rollout server does not answer")
    assert_stacks(run)


def test_server_with_another_layer(start: Callable[..., LiveRun], tmp_path: Path) -> None:
    """The first sync ends the run, and the cause says what is wrong with the two models."""
    deeper = add_layer(tmp_path / "deeper")
    run = start([sys.executable, "-c", DOCTORED, str(deeper), *arguments(tmp_path / "run")])
    run.wait_until(lambda: run.status()["state"] == "training", START_SECONDS)
    run.note_processes()
    deadline = time.monotonic() + START_SECONDS
    while "ending the processes" not in run.stderr.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.assert_ends(1, "failed", "trainer and server do not have the same model")


def test_killed_ptcli(start: Callable[..., LiveRun]) -> None:
    """Nobody is left to tidy up but the reaper."""
    run = start()
    run.wait_for_step(3)
    reapers = [p for p in run.ptcli.children() if "ptcli.run.reaper" in p.cmdline()]
    run.ptcli.kill()
    run.ptcli.wait()
    deadline = time.monotonic() + GONE_SECONDS
    while run.status()["state"] != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "killed" in run.status()["cause"]
    psutil.wait_procs(reapers, timeout=3)
    run.assert_nothing_left()


def assert_stacks(run: LiveRun) -> None:
    for side in ("rollouts", "trainer"):
        text = (run.path / "logs" / f"stacks-{side}.txt").read_text()
        assert "=== process" in text
        assert "Thread" in text, text


def add_layer(folder: Path) -> Path:
    """The shipped model with its last layer twice."""
    from safetensors.torch import load_file, save_file

    from ptcli.builtin import model_path

    source = model_path("tiny")
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    last = config["num_hidden_layers"] - 1
    config["num_hidden_layers"] += 1
    if "layer_types" in config:
        config["layer_types"].append(config["layer_types"][-1])
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    weights |= {k.replace(f".{last}.", f".{last + 1}."): v.clone() for k, v in weights.items() if f".{last}." in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


DOCTORED = """
import sys
from dataclasses import replace
from pathlib import Path
from ptcli.request import Request, plan_request
from ptcli.run.panel import choose_view
from ptcli.run.rundir import RunDirectory
from ptcli.run.supervise import supervise

model, recipe, *overrides = sys.argv[1:]
plan = plan_request(Request(Path(recipe), tuple(overrides)))
server = next(step for step in plan.steps if step.name == "rollouts")
assert server.argv[:2] == ("vllm", "serve")
steps = (replace(server, argv=("vllm", "serve", model, *server.argv[3:])), *plan.steps[1:])
plan = replace(plan, steps=steps)
with RunDirectory(plan.output_dir).prepare(plan) as rundir:
    sys.exit(supervise(plan, rundir, view=choose_view(quiet=False)).exit_code)
"""
