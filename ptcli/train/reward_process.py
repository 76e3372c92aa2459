"""The trainer's side of a reward that runs in a process of its own (`ptcli.train.reward_child`).

A thread cannot be stopped, and a signal would break rewards that set an alarm themselves (math_verify does): only a
process can be ended, whatever it hangs in.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from ptcli.errors import WorkError
from ptcli.recipe.model import RewardSpec
from ptcli.train.reward_calls import Answer, Call, Failure, Ready

LOADING_SECONDS = 120.0
"""Seconds that a reward's module may take to be imported: some import torch, on a slow disk."""
LOGGERS = ("log_extra", "log_metric")
"""Functions that a trainer passes to rewards."""
_STACK_SECONDS = 0.2
"""Seconds that the process gets to write its stack before it is killed."""


class TimedOut(Exception):
    """The process did not answer in time, and was killed."""


class RewardFailed(WorkError):
    """The function raised, or returned what no trainer can use, or ended its process."""

    def __init__(self, use: str, failure: Failure):
        self.failure = failure
        super().__init__(f"reward `{use}`: {failure}")


class RewardProcess:
    """One reward in a process. It is started by `start`, or by a call when there is none."""

    def __init__(self, spec: RewardSpec):
        self.spec = spec
        self._popen: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready: Ready | None = None

    def start(self) -> None:
        """Start it; the import of the user's module goes on by itself."""
        ours, theirs = Pipe()
        with theirs:
            argv = [sys.executable, "-m", "ptcli.train.reward_child", str(theirs.fileno())]
            log = _log()
            self._popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()], process_group=0
            )
        self._connection, self._ready = ours, None
        with contextlib.suppress(BrokenPipeError):  # what became of it is told by whoever waits for its answer
            ours.send(self.spec)

    def wait_until_ready(self, seconds: float = LOADING_SECONDS) -> Ready:
        """What the function is. Raises TimedOut, or RewardFailed when it cannot be loaded."""
        if self._popen is None:
            self.start()
        if self._ready is None:
            ready = self._receive(seconds)
            assert isinstance(ready, Ready)
            self._ready = ready
        return self._ready

    def call(self, columns: Mapping[str, Any], seconds: float | None) -> Answer:
        """The function's scores. Raises TimedOut, after which the next call starts a new process, or RewardFailed."""
        self.wait_until_ready()
        assert self._connection
        given = {name: value for name, value in columns.items() if name not in LOGGERS}
        if "trainer_state" in given:
            given["trainer_state"] = _plain_state(given["trainer_state"])
        loggers = tuple(name for name in LOGGERS if columns.get(name) is not None)
        self._send(_pickled(Call(given, loggers), self.spec.use), seconds)
        answer = self._receive(seconds)
        assert isinstance(answer, Answer)
        return answer

    def end(self) -> None:
        """Kill it, with whatever it started in its process group."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        if self._connection is not None:
            self._connection.close()
        self._popen = self._connection = self._ready = None

    def _send(self, message: bytes, seconds: float | None) -> None:
        """Raises TimedOut for a process that does not even listen: a long message waits for its reader."""
        assert self._connection
        with socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            limit = struct.pack("ll", *divmod(round((seconds or 0) * 10**6), 10**6))  # 0: none
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._connection.send_bytes(message)
        except BlockingIOError:
            self._show_stack()
            self.end()
            raise TimedOut from None
        except (BrokenPipeError, ConnectionResetError):
            pass  # what became of it is told by whoever waits for its answer

    def _receive(self, seconds: float | None) -> Ready | Answer:
        assert self._connection
        try:
            if not self._connection.poll(seconds):
                self._show_stack()
                self.end()
                raise TimedOut
            received = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RewardFailed(self.spec.use, self._explain_end()) from None
        if isinstance(received, Failure):
            sys.stderr.write(received.trace)
            raise RewardFailed(self.spec.use, received)
        assert isinstance(received, Ready | Answer)
        return received

    def _explain_end(self) -> Failure:
        """Why the process is gone, from its exit code."""
        assert self._popen
        code = self._popen.wait()
        self.end()
        if code < 0:
            return Failure(f"its process was ended by {signal.Signals(-code).name}")
        return Failure(f"it ended its process (exit code {code})")

    def _show_stack(self) -> None:
        assert self._popen
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._popen.pid, signal.SIGUSR1)
            time.sleep(_STACK_SECONDS)


def _log() -> int:
    """Descriptor of our stderr, which is the log of a run: user code may print, but not into what we speak through."""
    try:
        return sys.__stderr__.fileno() if sys.__stderr__ else subprocess.DEVNULL
    except (OSError, ValueError):
        return subprocess.DEVNULL


def _pickled(call: Call, use: str) -> bytes:
    try:
        return pickle.dumps(call)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise WorkError(
            f"reward `{use}` has a timeout, but the data cannot be sent to another process: {error}"
        ) from None


def _plain_state(state: Any) -> SimpleNamespace:
    """The trainer's state as a plain object: its class would bring torch into the process."""
    plain = (int, float, str, bool, list, dict, tuple, type(None))
    return SimpleNamespace(**{name: value for name, value in vars(state).items() if isinstance(value, plain)})
