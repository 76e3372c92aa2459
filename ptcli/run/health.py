"""Is the run getting on? The trainer's heartbeat, the server's pulse, and what both were doing when they were not."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil

from ptcli.errors import WorkError
from ptcli.events import Event
from ptcli.plan.model import Server
from ptcli.recipe.model import NO_PROGRESS_SECONDS

Phase = Literal["loading", "training", "saving", "stopped", "finished"]

SHORTEST_LIMIT = NO_PROGRESS_SECONDS
STEPS_LIMIT = 5
"""The same in median steps."""
LOADING_LIMIT = 1800.0
"""Seconds without a sign of life, as long as models are loaded or saved."""
PULSE_INTERVAL = 5.0
"""Seconds between two looks at the server."""
PULSE_RETRY = 1.0
"""The same after a look that failed."""
PULSE_PATIENCE = 120.0
"""Seconds that an answer may take: the engine may be receiving weights."""
PULSE_FAILURES = 2
"""Looks in a row that must fail."""
SILENCE = "the rollout server does not answer"
_STACKS_SECONDS = 3.0
"""For the stacks of all processes together: the teardown has to wait for them."""
_MOST_STACKS = 40


@dataclass(frozen=True)
class Heartbeat:
    """What the trainer said last (`logs/heartbeat.json`, written by `ptcli.train.progress`)."""

    phase: Phase = "loading"
    step: int = 0
    total: int | None = None
    time: float = 0.0
    """Seconds since the epoch, by the trainer's clock."""
    tokens: int | None = None
    loss: float | None = None
    reward: float | None = None
    events: tuple[Event, ...] = ()
    """What the guards saw, the first first."""


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The last heartbeat; None when there was none yet."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        events = tuple(Event.from_dict(event) for event in values.get("events") or ())
        return Heartbeat(**{name: values.get(name) for name in Heartbeat.__dataclass_fields__} | {"events": events})
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


class Watchdog:
    """Says when the trainer has made no progress for too long.

    Time is counted on our own monotonic clock from when a heartbeat was seen, so that clocks may be wrong or jump.
    While models are loaded or saved there is no heartbeat for long; then whatever the log says counts as life, since
    downloads and checkpoint shards show there.
    """

    def __init__(self, fixed: float | None, now: float):
        """`fixed`: seconds to allow between two steps instead of max(600, 5 x the median step)."""
        self._fixed = fixed
        self._beat: Heartbeat | None = None
        self._log_size = 0
        self._alive = self._stepped = now
        self._durations: deque[float] = deque(maxlen=200)

    def observe(self, beat: Heartbeat | None, log_size: int, now: float) -> None:
        """Take note of the latest heartbeat and the size of the trainer's log."""
        if beat is not None and beat != self._beat:
            self._take(beat, now)
        if self._is_quiet_phase() and log_size != self._log_size:
            self._alive = now
        self._log_size = log_size

    def _take(self, beat: Heartbeat, now: float) -> None:
        steps = beat.step - self._beat.step if self._beat else 0
        if steps > 0 and self._beat and self._beat.phase == "training":
            self._durations.append((now - self._stepped) / steps)
        if steps or self._is_quiet_phase():
            self._stepped = now
        self._beat, self._alive = beat, now

    def _is_quiet_phase(self) -> bool:
        return self._beat is None or self._beat.phase in ("loading", "saving")

    @property
    def step_seconds(self) -> float | None:
        """What a step usually takes; None where that is not known yet."""
        return median(self._durations) if self._durations else None

    @property
    def limit(self) -> float:
        """Seconds that may pass now without a sign of life."""
        if self._is_quiet_phase():
            return LOADING_LIMIT if self._fixed is None else max(5 * self._fixed, 300.0)
        if self._fixed is not None:
            return self._fixed
        return max(SHORTEST_LIMIT, STEPS_LIMIT * median(self._durations)) if self._durations else SHORTEST_LIMIT

    def complaint(self, now: float) -> str | None:
        """What is wrong; None as long as nothing is."""
        silent = now - self._alive
        if silent <= self.limit:
            return None
        phase, step = (self._beat.phase, self._beat.step) if self._beat else ("loading", 0)
        doing = {"loading": "it was loading", "saving": "it was saving"}.get(phase, f"the last was step {step}")
        return f"no progress: the trainer finished no step for {silent:.0f} s ({doing})"


class Background:
    """A call in a thread of its own, that may be waited for or left behind."""

    def __init__(self, call: Callable[..., Any], *arguments: Any, **options: Any):
        self._future: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, args=(call, arguments, options), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        try:
            self._future.set_result(call(*arguments, **options))
        except BaseException as error:
            self._future.set_exception(error)

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        """What the call returned; raises what it raised. Blocks until it is done."""
        return self._future.result()


class Pulse:
    """Asks the server every few seconds whether its engine still turns, and remembers failures in a row."""

    def __init__(self, server: Server, fixed: float | None, now: float):
        """`fixed` as in `Watchdog`; a short one shortens the patience too."""
        self._server = server
        self.patience = PULSE_PATIENCE if fixed is None else min(PULSE_PATIENCE, max(10.0, fixed / 3))
        self._asked = now
        self._call: Background | None = None
        self._failures: list[str] = []

    def complaint(self, now: float) -> str | None:
        """What is wrong; None as long as nothing is. Never blocks."""
        interval = min(PULSE_RETRY, PULSE_INTERVAL) if self._failures else PULSE_INTERVAL
        if self._call is None and now - self._asked >= interval:
            self._asked, self._call = now, Background(ask_engine, self._server, self.patience)
        elif self._call is not None and self._call.done():
            self._judge(self._call)
            self._asked, self._call = now, None
        if len(self._failures) < PULSE_FAILURES:
            return None
        return f"{SILENCE}: {self._failures[-1]}"

    def _judge(self, call: Background) -> None:
        try:
            call.result()
            self._failures = []
        except WorkError as error:
            self._failures.append(str(error))


def ask_engine(server: Server, timeout: float) -> None:
    """Make one round trip through the server's engines. Raises WorkError when there is no good answer in time.

    It generates nothing, and that is the point: between `/start_weight_update` and `/finish_weight_update` the weights
    are on the meta device (vLLM 0.27's layerwise reload), and a completion then would take the engine down. `/health`
    would be no use: it answers while an engine is stuck.
    """
    # Never through a proxy: the server is on this machine or on this cluster.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{server.url}/is_paused", timeout=timeout).close()
    except urllib.error.HTTPError as error:
        # A server without development mode has no such page, but it answers.
        if error.code >= 500:
            raise WorkError(f"HTTP {error.code}: {error.read(200).decode(errors='replace')}") from error
    except TimeoutError as error:
        raise WorkError(f"no answer in {timeout:.0f} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise WorkError(str(getattr(error, "reason", None) or error)) from error


def dump_stacks(sides: Iterable[tuple[Path, Iterable[psutil.Process]]]) -> None:
    """Write the stacks of all processes of each side to its file; at most about 3 s for all together."""
    jobs = [(file, process) for file, processes in sides for process in list(processes)[:_MOST_STACKS]]
    pool = ThreadPoolExecutor(max_workers=8)
    futures = [(file, process, pool.submit(_stack, process)) for file, process in jobs]
    wait([future for _, _, future in futures], timeout=_STACKS_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    texts: dict[Path, list[str]] = {}
    for file, process, future in futures:
        text = future.result() if future.done() and not future.cancelled() else "no time left for its stack\n"
        texts.setdefault(file, []).append(f"{_describe(process)}\n{text}")
    for file, parts in texts.items():
        file.write_text("\n".join(parts), encoding="utf-8")


def _describe(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline()) or process.name()
        return f"=== process {process.pid} ({process.status()}): {command[:300]}"
    except psutil.Error as error:
        return f"=== process {process.pid}: {error}"


def _stack(process: psutil.Process) -> str:
    """The Python stack of a process, without stopping it: a stopped one must not hold us up."""
    program = Path(sys.executable).parent / "py-spy"
    command = [str(program), "dump", "--nonblocking", "--pid", str(process.pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_STACKS_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"py-spy failed: {error}\n{_ask_for_traceback(process)}"
    return done.stdout if done.returncode == 0 else f"py-spy: {done.stderr.strip()}\n{_ask_for_traceback(process)}"


def _ask_for_traceback(process: psutil.Process) -> str:
    """SIGUSR1, to a process that handles it (faulthandler): where ptrace is forbidden, it is all we can do."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
        if not caught >> (signal.SIGUSR1 - 1) & 1:
            return "it has no handler for SIGUSR1 either\n"
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        return "asked it by SIGUSR1 to write its tracebacks to its log\n"
    except (OSError, ValueError, StopIteration, psutil.Error):
        return ""


def log_size(log: Path) -> int:
    """Bytes in a log; 0 when it is not there."""
    try:
        return os.stat(log).st_size
    except OSError:
        return 0
