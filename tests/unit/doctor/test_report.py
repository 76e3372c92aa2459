"""The report of `ptcli doctor --math`, on identities that are made up."""

from __future__ import annotations

import json
import math

import pytest

from ptcli.doctor.math.identity import Identity, Unexercised, identity
from ptcli.doctor.report import Outcome, Report, render_report

GOOD = Outcome("sft-sum", "one and one are two", "Peano 1889", ("sft",), 1e-5, deviation=3e-7)
OFF = Outcome("dpo-start", "the loss is ln 2", "Rafailov 2023, eq. 7", ("dpo", "cpo"), 1e-6, deviation=0.25)
BROKEN = Outcome("lora-rank", "the rank is at most r", "Hu 2021", (), 0.0, error="ImportError: no module named peft")
STACK = {"torch": "9.9.9", "trl": "1.2.3"}


def make(measure, tolerance: float = 1e-5) -> Identity:
    return identity("made-up", "a statement", source="nowhere", methods=("sft",), tolerance=tolerance)(measure)


def raising(error: Exception):
    def measure() -> float:
        raise error

    return measure


def test_a_deviation_up_to_the_tolerance_holds() -> None:
    assert make(lambda: 1e-5).check().ok
    assert make(lambda: 0.0, tolerance=0.0).check().ok
    assert not make(lambda: 1.1e-5).check().ok


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_deviation_that_is_no_number_fails_and_says_so(value: float) -> None:
    outcome = make(lambda: value, tolerance=1e30).check()
    assert not outcome.ok
    assert str(value) in outcome.error
    json.dumps(outcome.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "error", [ImportError("no module named trl"), AttributeError("x"), Unexercised("nothing was clipped"), KeyError(1)]
)
def test_what_is_raised_is_a_failure_with_its_error(error: Exception) -> None:
    outcome = make(raising(error)).check()
    assert not outcome.ok
    assert type(error).__name__ in outcome.error
    assert str(error) in outcome.error


def test_an_interruption_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        make(raising(KeyboardInterrupt())).check()  # type: ignore[arg-type]


def test_outcomes_survive_the_way_from_the_child() -> None:
    for outcome in (GOOD, OFF, BROKEN):
        assert Outcome.from_dict(json.loads(json.dumps(outcome.as_dict()))) == outcome


def test_table_of_what_holds() -> None:
    lines = render_report(Report((GOOD,), STACK, 61.4)).splitlines()
    assert lines[0] == "torch 9.9.9, trl 1.2.3"
    assert lines[2].split() == ["id", "method", "deviation", "tolerance", "identity"]
    assert lines[3].split()[:5] == ["sft-sum", "sft", "3.0e-07", "1e-05", "ok"]
    assert lines[3].endswith("one and one are two [Peano 1889]")
    assert lines[-1] == "all 1 identities hold (61 s)"


def test_failures_are_named_with_what_was_measured_or_raised() -> None:
    report = Report((GOOD, OFF, BROKEN), STACK, 2.0)
    text = render_report(report)
    assert report.failed == (OFF, BROKEN)
    assert "FAILED dpo-start: off by 2.50e-01, more than 1e-06" in text
    assert "FAILED lora-rank: it could not be measured: ImportError: no module named peft" in text
    assert text.splitlines()[-1] == "2 of 3 identities do not hold (2 s)"
    assert [line.split()[-3:] for line in text.splitlines() if line.startswith("sft-sum")] != []


def test_columns_are_aligned_and_wrapped_to_the_terminal() -> None:
    long = Outcome("x-y", "word " * 60, "Someone 2020", ("sft",), 1e-5, deviation=0.0)
    lines = render_report(Report((GOOD, long), STACK), width=100).splitlines()
    table = lines[2:-2]
    column = table[0].index("identity")
    assert max(map(len, table)) <= 100
    assert all(line[column - 1] == " " for line in table)
    assert "".join(line[column:] for line in table[2:]).replace(" ", "") == "word" * 60 + "[Someone2020]"
    narrow = render_report(Report((GOOD, long), STACK), width=10).splitlines()
    assert max(len(line) for line in narrow[2:-2]) <= column + 40


def test_json_says_whether_all_hold() -> None:
    facts = Report((GOOD, OFF), STACK, 1.26).as_dict()
    assert (facts["ok"], facts["seconds"], facts["stack"]) == (False, 1.3, STACK)
    assert [each["ok"] for each in facts["identities"]] == [True, False]
    assert Report((GOOD,)).as_dict()["ok"] is True


def test_nothing_checked_is_not_all_well() -> None:
    assert not Report(()).ok
