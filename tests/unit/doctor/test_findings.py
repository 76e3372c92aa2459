"""How findings are printed, and how everything that is read becomes findings."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from ptcli.doctor import examine as examining
from ptcli.doctor.background import in_background
from ptcli.doctor.checks.cluster import Slurm
from ptcli.doctor.checks.gpus import Gpus
from ptcli.doctor.checks.hub import Hub
from ptcli.doctor.checks.imports import Imported, Probe
from ptcli.doctor.checks.limits import Limits
from ptcli.doctor.checks.packages import Packages
from ptcli.doctor.checks.ports import Ports
from ptcli.doctor.checks.toolchain import Toolchain
from ptcli.doctor.examine import READERS, judge, results
from ptcli.doctor.findings import Examination, Finding, render_examination
from ptcli.doctor.needs import Needs
from ptcli.errors import Position, Problem

GOOD = Finding("cpus", "pass", "32 CPUs")
ODD = Finding("hub", "warn", "the hub does not answer", "set HTTPS_PROXY")
BAD = Finding("ports", "fail", "rollouts.port 8000 is taken by pid 7", "kill 7")
FACTS = {
    "packages": Packages({}, {}),
    "gpus": Gpus(),
    "toolchain": Toolchain(),
    "limits": Limits(10**10, (65536, 65536), 0, 65536, 10**11, 10**11, 8),
    "ports": Ports((), 12),
    "disk": (),
    "hub": Hub("https://huggingface.co"),
    "slurm": Slurm(),
    "accelerate": None,
}


def test_only_failures_are_not_ok() -> None:
    assert Examination((GOOD, ODD)).ok
    assert not Examination((GOOD, BAD)).ok
    assert not Examination(()).ok


def test_a_line_a_finding_with_its_fix_below() -> None:
    text = render_examination(Examination((GOOD, ODD, BAD), "r.yaml", 3.2))
    assert text.splitlines() == [
        "pass  cpus   32 CPUs",
        "warn  hub    the hub does not answer",
        "             fix: set HTTPS_PROXY",
        "fail  ports  rollouts.port 8000 is taken by pid 7",
        "             fix: kill 7",
        "",
        "1 failure, 1 warning (3 s)",
    ]


@pytest.mark.parametrize(
    ("findings", "recipe", "verdict"),
    [
        ((GOOD,), None, "this machine can run ptcli: nothing to mend (0 s)"),
        ((GOOD, ODD), "r.yaml", "r.yaml can run here: 1 warning (0 s)"),
        ((BAD, BAD), "r.yaml", "2 failures (0 s)"),
    ],
)
def test_the_last_line_is_the_verdict(findings: tuple[Finding, ...], recipe: str | None, verdict: str) -> None:
    assert render_examination(Examination(findings, recipe)).splitlines()[-1] == verdict


def test_messages_are_wrapped_to_the_terminal_and_commands_are_not() -> None:
    long = Finding("disk", "fail", "word " * 40, "command " * 40)
    lines = render_examination(Examination((long,)), width=60).splitlines()
    assert all(len(line) <= 60 for line in lines if "command" not in line)
    assert sum("command" in line for line in lines) == 1


def test_colours_stand_around_the_state_alone() -> None:
    text = render_examination(Examination((GOOD, BAD)), colours=True)
    assert text.splitlines()[0] == "\x1b[32mpass\x1b[0m  cpus   32 CPUs"
    assert "\x1b" not in render_examination(Examination((GOOD, BAD)))


def test_json_has_every_finding() -> None:
    assert Examination((ODD,), "r.yaml", 1.26).as_dict() == {
        "ok": True,
        "recipe": "r.yaml",
        "seconds": 1.3,
        "checks": [
            {"name": "hub", "state": "warn", "message": "the hub does not answer", "fix": "set HTTPS_PROXY"},
        ],
    }


# --- from facts to findings ------------------------------------------------------------------------------------------


def test_every_reader_has_a_judge_and_facts_here() -> None:
    assert FACTS.keys() == READERS.keys()
    findings = list(judge(Needs(), Probe((Imported("torch"),)), FACTS, {}))
    assert {each.name for each in findings} >= {"packages", "imports", "gpus", "shm", "ports", "hub", "slurm"}
    assert all(each.fix for each in findings if each.state != "pass")


def test_problems_of_the_plan_come_first_with_their_place() -> None:
    problem = Problem("training needs a GPU", "try --smoke", ("launch",), Position("r.yaml", 7, 1))
    (first, *_) = judge(Needs("r.yaml", problems=(problem,)), Probe(), FACTS, {})
    assert first == Finding("recipe", "fail", "r.yaml:7:1: training needs a GPU", "try --smoke")


def test_what_cannot_be_read_hides_nothing_else() -> None:
    broken, slow = Future(), Future()
    broken.set_exception(OSError("odd"))
    facts, unread = results({"disk": broken, "hub": slow, "slurm": in_background(Slurm)}, time.monotonic())
    assert facts == {"slurm": Slurm()}
    assert unread["disk"].message == "could not be looked at: OSError: odd"
    assert "no answer" in unread["hub"].message
    rest = {name: found for name, found in FACTS.items() if name not in unread}
    findings = list(judge(Needs(), Probe(), rest, unread))
    assert {each.name for each in findings if each.state == "warn"} >= {"disk", "hub"}
    assert "ports" in {each.name for each in findings}


def test_work_in_the_background_gives_its_error() -> None:
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0).result(5)


def test_an_interruption_is_not_held_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C while vLLM is imported ends at once, whatever is still being read, and the line of progress is closed."""
    forever, closed = threading.Event(), []

    class View:
        def close(self) -> None:
            closed.append(True)

    def interrupted(*_: object) -> Probe:
        raise KeyboardInterrupt

    monkeypatch.setattr(examining, "READERS", {"disk": lambda needs: forever.wait(30)})
    monkeypatch.setattr(examining, "read_imports", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        examining.examine(Needs(output_dir=tmp_path), View())  # type: ignore[arg-type]
    assert closed == [True]
    assert time.monotonic() - began < 5
    forever.set()
