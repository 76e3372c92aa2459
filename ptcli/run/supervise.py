"""A run from its first process to its last.

    start the server ─▶ wait until it is ready ─▶ start the trainer ─▶ watch both ─▶ end both, trainer first

Whatever happens on the way raises, and there is one place (`Run.live`) that turns it into an ending and one that ends
the processes:

    the trainer ended with 0 and at least one step           finished   0
    either side died, no progress, not ready, no steps       failed     1    WorkError
    a guard of the trainer's stopped it                      failed     1    GuardStopped
    SIGINT, SIGTERM, SIGUSR1 while training                   stopped  130, 143  Interrupted, with a checkpoint
    the same before, or twice; SIGHUP                         stopped  128+n  Interrupted, at once

A checkpoint is asked for by a file (`ptcli.train.stopping`): signals would end torchrun's workers before they save.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from ptcli.errors import Interrupted, PtcliError, WorkError
from ptcli.events import Event
from ptcli.methods import METHODS
from ptcli.run.health import (
    SILENCE,
    Background,
    Heartbeat,
    Pulse,
    Watchdog,
    ask_engine,
    dump_stacks,
    log_size,
    read_heartbeat,
)
from ptcli.run.logs import first_error, tail
from ptcli.run.nodes import Ended
from ptcli.run.processes import Processes, ProcessGroup, adopt_orphans
from ptcli.run.rundir import REQUEST, RunDirectory, State, Status
from ptcli.run.signals import Signals
from ptcli.run.transport import told_of

if TYPE_CHECKING:
    from ptcli.plan.model import Plan, Server, Step
    from ptcli.run.panel import View
    from ptcli.run.rendezvous import Peers

TICK = 0.1
"""Seconds between two looks at everything."""
RECORD_INTERVAL = 1.0
"""Seconds between two records of descendants; more when recording itself is slow."""
CHECKPOINT_SECONDS = 60.0
"""How long a trainer that was asked for a checkpoint may take to finish its step, at least."""
CHECKPOINT_STEPS = 10
"""The same in median steps."""
FIRST_STEP_SECONDS = 600.0
"""The same where nothing is known of steps yet."""
BLAME_SECONDS = 5.0
"""How long a trainer that lost its connection may have died before the server whose fault it was."""

SIDES = {"rollouts": "rollout server", "trainer": "trainer"}
_ACTIVITIES = {
    "loading": "the trainer loads model and data",
    "training": "training",
    "saving": "saving the model",
    "stopped": "the trainer ends",
    "finished": "the trainer ends",
}
_LOST_SERVER = ("Connection", "answered 5", "Request failed: 5", "RemoteDisconnected", "reset by peer", "Max retries")
"""What an error says, ours or TRL's, when the other end of the wire is in trouble."""


_LOST_PEER = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "recvValue failed",
    "remote process exited", "ncclRemoteError", "failed to recv", "Connection was likely closed", "Socket Timeout",
    "timed out", "SIGTERM", "signal 15",
)  # fmt: skip
"""What an error of torch's says when a process of another node is gone."""


class SideFailed(WorkError):
    """A side failed; `side` is the one whose log tells why."""

    def __init__(self, side: str, message: str):
        self.side = side
        super().__init__(message)


class GuardStopped(WorkError):
    """A guard in the trainer ended the run; its message says it all."""


@dataclass(frozen=True)
class Ending:
    """What became of a run."""

    state: State
    exit_code: int
    cause: str | None = None
    guilty: tuple[str, ...] = ()
    """Sides whose logs are worth showing."""


def supervise(plan: Plan, rundir: RunDirectory, *, view: View, peers: Peers | None = None) -> Status:
    """Run a plan to its end, whatever that is; `rundir` must be prepared. `peers`: the other nodes, if there are some.

    Failures and signals do not raise: the status has the cause and the exit code.
    """
    with Signals() as signals, adopt_orphans(), Processes(rundir.status_file, rundir.lock) as processes:
        run = Run(plan, rundir, view, signals, processes, peers)
        ending = run.live()
        status = rundir.write_status(
            ending.state, cause=ending.cause, step=run.step, exit_code=ending.exit_code, events=run.events
        )
    if ending.cause and ending.state == "failed":
        view.fail(status.cause or "", list(_details(rundir, ending.guilty)))
    elif ending.cause:
        view.say(ending.cause)
    for line in told_of(plan, rundir.logs):
        view.say(line)
    if plan.server and plan.server.external and ending.state != "finished" and "trainer" in processes.groups:
        # A trainer that ends inside a weight update leaves its weights on the meta device (vLLM 0.27).
        view.say(f"restart the rollout server at {plan.server.url} before you use it again: its weights may be torn")
    view.close()
    return status


class Run:
    """One run of a plan: its processes, its clocks, and what to do when."""

    def __init__(
        self,
        plan: Plan,
        rundir: RunDirectory,
        view: View,
        signals: Signals,
        processes: Processes,
        peers: Peers | None = None,
    ):
        self.peers = peers
        self._failed_peer: tuple[str, str] | None = None
        """Log and cause of the side of another node that failed first."""
        self.plan, self.rundir, self.view, self.signals, self.processes = plan, rundir, view, signals, processes
        self.beat: Heartbeat | None = None
        status = rundir.status()
        self._done = status.step if status else 0
        """Steps that were finished before this run."""
        self._record_at = 0.0
        self._asked_at: float | None = None
        """When the trainer was asked for a checkpoint, or was last seen to be at one."""
        self._told = 0
        """Events of guards that were said."""

    @property
    def step(self) -> int:
        return self.beat.step if self.beat else self._done

    @property
    def events(self) -> tuple[Event, ...]:
        return self.beat.events if self.beat else ()

    def live(self) -> Ending:
        """All of it, in order."""
        try:
            self._bring_up_server()
            self._train()
            self._follow_up()
            ending = Ending("finished", 0)
        except Interrupted as stop:
            ending = Ending("stopped", stop.exit_code, str(stop))
        except SideFailed as error:
            ending = Ending("failed", 1, str(error), (error.side,))
        except GuardStopped as error:
            ending = Ending("failed", 1, str(error))
        except PtcliError as error:
            ending = Ending("failed", 1, str(error), tuple(SIDES))
        finally:
            self._tear_down()
            self._read_beat()  # a step may have been finished meanwhile
        return ending

    def _bring_up_server(self) -> None:
        from ptcli.rollouts.ready import check_identity

        server = self.plan.server
        if server is None:
            return
        if server.external:
            self._wait(Background(check_identity, server), f"looking at the rollout server at {server.url}")
            return
        self.rundir.write_status("serving")
        group = self._start("rollouts")
        began = time.monotonic()
        self._wait(wait_in_background(server, group), "starting the rollout server")
        self.view.say(f"rollout server ready after {time.monotonic() - began:.0f} s at {server.url}")

    def _wait(self, call: Background, activity: str) -> None:
        """Wait for a call that tells whether the server is good."""
        while not call.done():
            self._look_around(activity)
            self._check_server()
        try:
            call.result()
        except WorkError as error:
            self._check_server()
            raise SideFailed("rollouts", f"{SIDES['rollouts']}: {error}") from error

    def _train(self) -> None:
        trainer = self._start("trainer")
        assert trainer is not None, "node 0 trains"
        now = time.monotonic()
        watchdog = Watchdog(self.plan.no_progress_seconds, now)
        pulse = Pulse(self.plan.server, self.plan.no_progress_seconds, now) if self.plan.server else None
        while (code := trainer.poll()) is None:
            self._heed_signals(watchdog.step_seconds)
            self._look_around(self._activity(), heed=False)
            self._check_server()
            now = time.monotonic()
            watchdog.observe(self.beat, log_size(self.rundir.log("trainer")), now)
            complaint = watchdog.complaint(now) or (pulse and pulse.complaint(now))
            if complaint:
                self._give_up(complaint)
        self._read_beat()
        self._judge(code)

    def _heed_signals(self, step_seconds: float | None) -> None:
        """Have a checkpoint saved when a signal came, and see that it does not take for ever. Raises Interrupted where
        there can be none, or no longer."""
        signum, now = self.signals.received, time.monotonic()
        if signum is None:
            return
        phase = self.beat.phase if self.beat else "loading"
        if signum == signal.SIGHUP or phase == "loading" or not METHODS[self.plan.method].resumes:
            raise Interrupted(signum)
        if self.signals.hurry():
            raise Interrupted(signum, "it came twice, and no checkpoint was waited for")
        if self._asked_at is None:
            (self.rundir.path / REQUEST).touch()
            what = "a checkpoint is saved after this step" if phase == "training" else "what is being saved is finished"
            again = "Ctrl-C once more" if signum == signal.SIGINT else "once more"
            self.view.say(f"{signal.Signals(signum).name}: {what}; {again} ends at once")
        if self._asked_at is None or phase != "training":
            self._asked_at = now
        steps = CHECKPOINT_STEPS * step_seconds if step_seconds else FIRST_STEP_SECONDS
        if now - self._asked_at > max(CHECKPOINT_SECONDS, steps):
            raise Interrupted(signum, f"no checkpoint: the step did not end in {now - self._asked_at:.0f} s")

    def _follow_up(self) -> None:
        """What comes after the training, once its processes are gone and have given their memory back."""
        if self.plan.after is None:
            return
        self._tear_down()
        group = self.processes.start(self.plan.after, self.rundir.log("merge"))
        while (code := group.poll()) is None:
            self._look_around("merging the adapter")
        if code:
            why = first_error(self.rundir.log("merge")) or f"exit code {code}"
            raise SideFailed("merge", f"the adapter is trained and saved, but could not be merged: {why}")

    def _judge(self, code: int) -> None:
        """Decide what the trainer's end means."""
        finished = self.beat is not None and self.beat.phase == "finished"
        if code == 0 and finished and self.step > 0:
            return
        if code == 0 and self.beat is not None and self.beat.phase == "stopped":
            raise Interrupted(self.signals.received or signal.SIGTERM, f"checkpoint-{self.step} is saved")
        if code == 0 and (finished or self.step == 0):
            raise SideFailed("trainer", "the trainer ended without having trained a single step")
        if code == 0:
            message = f"the trainer ended at step {self.step}, before it was done, although with exit code 0"
            raise SideFailed("trainer", message)
        if self.events and self.events[-1].action == "stop":
            raise GuardStopped(self.events[-1].message)
        error = first_error(self.rundir.log("trainer")) or ""
        if any(sign in error for sign in _LOST_SERVER):
            self._await_server_death(error)
        if self.peers and is_lost_peer(error):
            self._await_peer_death(error)
        raise SideFailed("trainer", describe_death("trainer", code, error))

    def _await_server_death(self, error: str) -> None:
        """A trainer whose server dies may be the first to be gone. Raises SideFailed when that is what happened."""
        deadline = time.monotonic() + BLAME_SECONDS
        while time.monotonic() < deadline:
            self._look_around("the trainer lost the rollout server")
            self._check_server(f"; the trainer then ended: {error}")

    def _await_peer_death(self, error: str) -> None:
        """A trainer that lost the others may be the first to be gone. Raises SideFailed when one of them says why."""
        deadline = time.monotonic() + BLAME_SECONDS
        while time.monotonic() < deadline:
            for rank, message in self.peers.hear() if self.peers else ():
                cause = str(message.get("cause"))
                if message.get("exited") and not is_lost_peer(cause):
                    raise SideFailed(str(message.get("log")), f"node {rank}: {cause}")
                if (ended := Ended.read(message, rank)) and ended.code:
                    raise ended.error(rank)
            self._look_around("the trainer lost another node", heed=False)

    def _check_server(self, consequence: str = "") -> None:
        """Raise SideFailed if our server is gone."""
        group = self.processes.groups.get("rollouts")
        code = group.poll() if group else None
        if code is not None:
            error = first_error(self.rundir.log("rollouts")) or ""
            raise SideFailed("rollouts", describe_death("rollouts", code, error) + consequence)

    def _give_up(self, complaint: str) -> NoReturn:
        """End a run that hangs, after a note of what both sides are doing. Takes about 3 s."""
        self.view.say(f"{complaint}; writing stacks to {self.rundir.logs}")
        unknown = self.plan.server and not complaint.startswith(SILENCE)
        question = Background(ask_engine, self.plan.server, 2.0) if unknown else None
        self.processes.record()
        dump_stacks((self.rundir.logs / f"stacks-{g.name}.txt", g.alive()) for g in self.processes.groups.values())
        errors = ((side, first_error(self.rundir.log(side))) for side in SIDES)
        found = [f"first error in {side}.log: {error}" for side, error in errors if error]
        raise WorkError("; ".join([complaint, *_silence(question), *found]))

    def _start(self, name: str) -> ProcessGroup | None:
        """Start this side, here and on the other nodes that have a part of it; None where this one has none."""
        if self.peers:
            self.peers.tell(only=[node for node in nodes_of(self.plan, name) if node], start=name)
        step = find_step(self.plan, name)
        return self.processes.start(step, self.rundir.log(name)) if step else None

    def _look_around(self, activity: str, *, heed: bool = True) -> None:
        """What every loop does at every turn. Raises Interrupted when a signal came, unless that is taken care of."""
        if heed:
            self.signals.check()
        self._hear()
        self._read_beat()
        self._record()
        self.view.show(activity, self.beat)
        time.sleep(TICK)

    def _hear(self) -> None:
        """Take what the other nodes say. Raises what one of them ended of."""
        for rank, message in self.peers.hear() if self.peers else ():
            if type(signum := message.get("signal")) is int:
                self.signals.take(signum)
            elif ended := Ended.read(message, rank):
                raise ended.error(rank)
            elif message.get("exited"):
                self._peer_died(rank, str(message.get("log")), str(message.get("cause")))

    def _peer_died(self, rank: int, log: str, cause: str) -> NoReturn:
        """A side of another node died. Where it only lost its connection, ours may be why: it gets a moment to die."""
        trainer = self.processes.groups.get("trainer")
        deadline = time.monotonic() + BLAME_SECONDS
        while is_lost_peer(cause) and trainer and time.monotonic() < deadline:
            if code := trainer.poll():
                error = first_error(self.rundir.log("trainer")) or ""
                if not is_lost_peer(error) or code == -signal.SIGKILL:
                    raise SideFailed("trainer", describe_death("trainer", code, error))
                break
            time.sleep(TICK)
        raise SideFailed(log, f"node {rank}: {cause}")

    def _read_beat(self) -> None:
        self.beat = read_heartbeat(self.rundir.heartbeat) or self.beat
        for event in self.events[self._told :]:
            if event.action == "warn":  # the other kind is why the run ends, and said then
                self.view.say(f"warning: {event.message}")
        self._told = max(self._told, len(self.events))

    def _record(self) -> None:
        began = time.monotonic()
        if began < self._record_at:
            return
        self.processes.record()
        if "trainer" in self.processes.groups:
            self.rundir.write_status("training", step=self.step, events=self.events)
        took = time.monotonic() - began
        # On a big node there are thousands of processes to go through: at most 2 % of a core for that.
        self._record_at = began + max(RECORD_INTERVAL, 50 * took)

    def _activity(self) -> str:
        if self._asked_at is not None:
            return "saving a checkpoint before the end"
        return _ACTIVITIES[self.beat.phase if self.beat else "loading"]

    def _tear_down(self) -> None:
        if self.processes.groups:
            self.view.show("ending the processes", self.beat)
        self.processes.end(self.signals.hurry)
        left = [process.pid for process in self.processes.alive()]
        if left:
            self.view.say(f"processes that do not end, even killed: {', '.join(map(str, left))}")


def serve(plan: Plan, *, view: View) -> int:
    """Run only the rollout server, in the foreground, its log on the terminal. Returns ptcli's exit code.

    Ends with Interrupted's code on a signal, and with 1 when the server dies or does not become ready.
    """
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        try:
            _serve_until_stopped(plan, signals, processes, view)
        except Interrupted as stop:
            view.say(str(stop))
            return stop.exit_code
        except WorkError as error:
            view.fail(str(error), [])
            return error.exit_code
        finally:
            processes.end(signals.hurry)
            view.close()


def _serve_until_stopped(plan: Plan, signals: Signals, processes: Processes, view: View) -> NoReturn:
    server = plan.server
    assert server is not None, "a plan to serve has a server"
    group = processes.start(plan.steps[0], None)
    ready: Background | None = wait_in_background(server, group)
    while True:
        signals.check()
        processes.record()
        if (code := group.poll()) is not None:
            raise WorkError(describe_death("rollouts", code, ""))
        if ready and ready.done():
            ready.result()
            view.say(f"rollout server ready: rollouts.url={server.url}")
            ready = None
        time.sleep(RECORD_INTERVAL / 4)


def wait_in_background(server: Server, group: ProcessGroup | None) -> Background:
    """Start waiting for a server to be ready; its processes are another node's where there is no group.

    The result is None, or the WorkError that says why it is not.
    """
    from ptcli.rollouts.ready import wait_until_ready

    deadline = time.monotonic() + server.startup_timeout
    return Background(wait_until_ready, server, lambda: group is None or group.poll() is None, deadline=deadline)


def find_step(plan: Plan, name: str) -> Step | None:
    """This node's step of that name, if it has one."""
    return next((step for step in plan.steps if step.name == name and step.node == plan.node), None)


def nodes_of(plan: Plan, name: str) -> list[int]:
    """The nodes that have a step of that name."""
    return [step.node for step in plan.steps if step.name == name]


def is_lost_peer(error: str) -> bool:
    """Whether an error says no more than that other processes of the trainer are gone."""
    return any(sign in error for sign in _LOST_PEER)


def _silence(question: Background | None) -> Iterable[str]:
    """What there is to say of a server that was asked a moment ago."""
    try:
        if question:
            question.result()
    except WorkError as error:
        yield f"{SILENCE} ({error})"


def describe_death(side: str, code: int, error: str) -> str:
    """`rollout server died (signal 9): ...`, `trainer died (exit code 1): ValueError: ...`."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        # Whatever its log says, this it can't know.
        error = "killed from outside, perhaps for want of memory"
    return f"{SIDES[side]} died ({how}){': ' + error if error else ''}"


def _details(rundir: RunDirectory, sides: Iterable[str]) -> Iterable[str]:
    for side in sides:
        log = rundir.log(side)
        lines = tail(log)
        if lines:
            yield f"--- last lines of {log}"
            yield from lines
