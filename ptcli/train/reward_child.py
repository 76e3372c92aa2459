"""`python -m ptcli.train.reward_child DESCRIPTOR`: a reward function in a process of its own, which can be killed.

Reads a RewardSpec and then Calls from the socket, answers Ready and Answers, or a Failure. What user code prints goes
to the log, since stdout is not the way back; what it starts does not inherit the socket.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from ptcli.recipe.model import RewardSpec
from ptcli.train.reward_calls import Answer, Call, Failure, Parameter, Ready, failure_of, read_scores
from ptcli.train.rewards import Reward, is_async, make_reward, name_of, signature_of

_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> int:
    os.set_inheritable(descriptor, False)
    _die_with_parent()
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)  # what it was doing, before it is killed
    with Connection(descriptor) as connection, asyncio.Runner() as runner:
        try:
            return _serve(connection, runner)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return 0  # the trainer is done


def _serve(connection: Connection, runner: asyncio.Runner) -> int:
    spec: RewardSpec = connection.recv()
    try:
        function = make_reward(spec)
        ready = describe(function)
    except (Exception, SystemExit) as error:
        connection.send(failure_of(error))
        return 1
    connection.send(ready)
    while True:
        call: Call = connection.recv()
        connection.send(_answer(function, call, runner))


def describe(function: Reward) -> Ready:
    """What the other side has to know of a function."""
    parameters = signature_of(function)
    named = [each for each in parameters or () if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    return Ready(
        name=name_of(function),
        is_async=is_async(function),
        parameters=None if parameters is None else tuple(Parameter(p.name, p.default is p.empty) for p in named),
        takes_all=any(each.kind is each.VAR_KEYWORD for each in parameters or ()),
    )


def _answer(function: Reward, call: Call, runner: asyncio.Runner) -> Answer | Failure:
    logged: list[tuple[str, str, Any]] = []
    loggers = {name: _recorder(name, logged) for name in call.loggers}
    try:
        result = function(**call.columns, **loggers)
        if asyncio.iscoroutine(result):
            result = runner.run(result)  # one loop for all calls: clients of services stay with the one they began in
        return Answer(read_scores(result, len(call.columns["completions"])), tuple(logged))
    except (Exception, SystemExit) as error:
        return failure_of(error)


def _recorder(logger: str, logged: list[tuple[str, str, Any]]) -> Any:
    def record(name: str, value: Any) -> None:
        logged.append((logger, name, value))

    return record


def _die_with_parent() -> None:
    """SIGKILL when the trainer dies while user code runs (Linux); otherwise the end of the socket ends us."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
