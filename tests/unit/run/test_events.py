"""What the guards of a trainer saw, on its way to the terminal, `status.json` and the last lines."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from ptcli.events import Event
from ptcli.run.health import read_heartbeat
from ptcli.run.panel import Lines
from ptcli.run.report import finished_lines
from ptcli.run.rundir import RunDirectory, Status
from ptcli.run.supervise import supervise

from .conftest import BEAT, make_plan, make_step, python

WARNING = Event("kl", 2, "warn", "guard kl at step 2: too far away", 1.5)
STOP = Event("non_finite", 3, "stop", "guard non_finite at step 3: " + "the loss is nan, " * 60)

TRAINER = (
    BEAT
    + """
path, events = sys.argv[1], json.loads(sys.argv[2])
def tell(step, phase, *events):
    beat(step, phase, 3)
    state = json.load(open(path)) | {"events": list(events)}
    json.dump(state, open(path + ".part", "w"))
    os.replace(path + ".part", path)
for step in range(1, 4):
    tell(step, "training", *(event for event in events if event["step"] <= step))
    time.sleep(0.3)
if any(event["action"] == "stop" for event in events):
    print("error: " + events[-1]["message"][:100], flush=True)
    sys.exit(1)
tell(3, "finished", *events)
"""
)


def run(rundir: RunDirectory, *events: Event) -> tuple[Status, str]:
    """The status of a run whose trainer had these events, and what was said of it."""
    told = json.dumps([event.as_dict() for event in events])
    plan = make_plan(rundir.path, make_step("trainer", python(TRAINER, rundir.heartbeat, told)))
    output = io.StringIO()
    return supervise(plan, rundir, view=Lines(output)), output.getvalue()


def test_a_warning_is_said_once_and_kept(rundir: RunDirectory) -> None:
    status, output = run(rundir, WARNING)
    assert (status.state, status.exit_code, status.cause) == ("finished", 0, None)
    assert output.count(f"warning: {WARNING.message}") == 1
    written = json.loads(rundir.status_file.read_text())
    assert written["events"] == [WARNING.as_dict()]
    assert rundir.status() == status
    assert "warnings: kl (step 2); see `events` in status.json" in finished_lines(rundir.path, 3, status.events)


def test_what_a_guard_stopped_has_its_words_as_the_cause(rundir: RunDirectory) -> None:
    status, output = run(rundir, WARNING, STOP)
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.cause == STOP.message, "in full, and without what the launcher says of it"
    assert [event.guard for event in status.events] == ["kl", "non_finite"]
    assert output.count(f"error: {STOP.message}") == 1
    assert "warning: guard non_finite" not in output
    assert "--- last lines" not in output, "there is nothing more to be learned from the log"


def test_a_healthy_run_has_no_events(rundir: RunDirectory) -> None:
    status, output = run(rundir)
    assert status.events == ()
    assert "warning" not in output
    assert set(json.loads(rundir.status_file.read_text())) == {"state", "cause", "step", "exit_code", "updated"}
    assert not [line for line in finished_lines(rundir.path, 3) if "warnings" in line]


def test_several_warnings_of_a_guard_are_counted(tmp_path: Path) -> None:
    events = [WARNING, Event("kl", 9, "warn", "again"), Event("entropy", 5, "warn", "gone")]
    (line,) = [line for line in finished_lines(tmp_path, 9, events) if line.startswith("warnings")]
    assert line == "warnings: kl (2, first at step 2), entropy (step 5); see `events` in status.json"


@pytest.mark.parametrize("events", ['[{"guard": "kl"}]', "[1]", "3"])
def test_events_that_cannot_be_read_are_no_heartbeat(tmp_path: Path, events: str) -> None:
    path = tmp_path / "heartbeat.json"
    path.write_text(f'{{"phase": "training", "step": 1, "time": {time.time()}, "events": {events}}}')
    assert read_heartbeat(path) is None
