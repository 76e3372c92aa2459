"""When a run counts as stuck, on a clock of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from ptcli.plan.model import Server
from ptcli.run import health
from ptcli.run.health import Background, Heartbeat, Watchdog, dump_stacks, read_heartbeat

from .conftest import python


def beat(step: int, phase: str = "training") -> Heartbeat:
    return Heartbeat(phase=phase, step=step, total=100, time=float(step))  # type: ignore[arg-type]


def trained(watchdog: Watchdog, seconds: float, steps: int = 5) -> float:
    """Let it see steps of that length; returns the time of the last one."""
    for step in range(steps + 1):
        watchdog.observe(beat(step), 0, step * seconds)
    return steps * seconds


def test_ten_minutes_are_always_allowed() -> None:
    watchdog = Watchdog(None, 0)
    last = trained(watchdog, 10)
    assert watchdog.complaint(last + 599) is None
    assert "finished no step for 601 s (the last was step 5)" in (watchdog.complaint(last + 601) or "")


def test_five_median_steps_are_allowed() -> None:
    watchdog = Watchdog(None, 0)
    last = trained(watchdog, 200)
    assert watchdog.limit == 1000
    assert watchdog.complaint(last + 999) is None
    assert watchdog.complaint(last + 1001)


def test_one_long_step_changes_nothing() -> None:
    watchdog = Watchdog(None, 0)
    last = trained(watchdog, 200)
    watchdog.observe(beat(6), 0, last + 900)
    assert watchdog.limit == 1000


def test_a_fixed_limit() -> None:
    watchdog = Watchdog(60, 0)
    last = trained(watchdog, 200)
    assert watchdog.complaint(last + 59) is None
    assert watchdog.complaint(last + 61)


def test_every_new_heartbeat_counts_even_without_a_new_step() -> None:
    watchdog = Watchdog(60, 0)
    watchdog.observe(beat(1), 0, 0)
    watchdog.observe(Heartbeat("training", 1, 100, time=5.0), 0, 50)
    assert watchdog.complaint(100) is None
    watchdog.observe(Heartbeat("training", 1, 100, time=5.0), 0, 105)
    assert watchdog.complaint(111)


@pytest.mark.parametrize("phase", ["loading", "saving"])
@pytest.mark.parametrize(("fixed", "limit"), [(None, 1800), (60, 300), (1000, 5000)])
def test_loading_and_saving_take_longer_and_the_log_is_life(phase: str, fixed: float | None, limit: float) -> None:
    watchdog = Watchdog(fixed, 0)
    watchdog.observe(beat(0, phase), 10, 0)
    assert watchdog.complaint(limit - 1) is None
    assert watchdog.complaint(limit + 1)
    watchdog.observe(beat(0, phase), 11, limit)
    assert watchdog.complaint(limit + 1) is None


def test_a_log_that_grows_is_no_step() -> None:
    watchdog = Watchdog(60, 0)
    for second in range(0, 62):
        watchdog.observe(beat(1), second, second)
    assert watchdog.complaint(61)


def test_no_heartbeat_at_all_is_loading() -> None:
    watchdog = Watchdog(60, 0)
    watchdog.observe(None, 0, 100)
    assert watchdog.complaint(299) is None
    assert "it was loading" in (watchdog.complaint(301) or "")


def test_heartbeat_file(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat.json"
    assert read_heartbeat(file) is None
    for text in ("", "{", "[1]", "3"):
        file.write_text(text)
        assert read_heartbeat(file) is None
    file.write_text(json.dumps({"phase": "training", "step": 3, "total": 9, "time": 1.5, "new": "key"}))
    assert read_heartbeat(file) == Heartbeat("training", 3, 9, 1.5)


def test_background_hands_on_results_and_errors() -> None:
    assert Background(lambda x: x + 1, 1).result() == 2
    with pytest.raises(ValueError, match="no"):
        Background(int, "no").result()


def test_stacks_never_wait_for_a_stopped_process(tmp_path: Path) -> None:
    """Nor for one that is gone or that is not Python."""
    running = subprocess.Popen(python("def where(): print(1, flush=True); input()\nwhere()"), stdin=-1, stdout=-1)
    stopped = subprocess.Popen(python("import time; print(1, flush=True); time.sleep(300)"), stdout=-1)
    shell = subprocess.Popen(["sleep", "300"])
    gone = subprocess.Popen(["true"])
    try:
        assert running.stdout
        assert stopped.stdout
        running.stdout.readline(), stopped.stdout.readline()
        os.kill(stopped.pid, signal.SIGSTOP)
        processes = [psutil.Process(p.pid) for p in (running, stopped, shell, gone)]
        gone.wait()
        began = time.monotonic()
        dump_stacks([(tmp_path / "stacks.txt", processes)])
        assert time.monotonic() - began < 5
    finally:
        for popen in (running, stopped, shell):
            popen.kill()
            popen.communicate()
    text = (tmp_path / "stacks.txt").read_text()
    assert "where" in text
    assert "(stopped)" in text
    assert text.count("=== process") == 4


def test_a_look_that_failed_is_repeated_soon() -> None:
    """A refused connection must not cost two whole intervals."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = Server(f"http://127.0.0.1:{closed.getsockname()[1]}", "tiny", "float32", 128, 1, 1, "gloo", 20)
        now = health.PULSE_INTERVAL
        pulse = health.Pulse(server, None, 0.0)
        for _ in range(health.PULSE_FAILURES):
            assert pulse.complaint(now) is None  # asks
            assert pulse._call is not None
            pulse._call._thread.join()
            complaint = pulse.complaint(now)  # takes the answer
            now += health.PULSE_RETRY
    assert complaint is not None
    assert complaint.startswith(health.SILENCE)
