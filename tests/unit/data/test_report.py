"""How a report is printed, for people and for programs."""

from __future__ import annotations

from ptcli.data.model import Finding, Report
from ptcli.data.report import report_json, report_lines

ERROR = Finding("empty-value", "error", "`completion` is empty", count=7, rows=(0, 3), fix="drop the rows", share=0.07)
WARNING = Finding("duplicate-rows", "warning", "rows are there twice", count=50, rows=(1,), share=0.5)
WHOLE = Finding("too-few-rows", "error", "3 rows, 4 needed", split="eval.math")


def _report(*findings: Finding) -> Report:
    return Report("sft", 100, 100, findings, notes=("no tokenizer",), tokenized=0)


def _lines(*findings: Finding) -> list[str]:
    return report_lines(_report(*findings), lambda finding, row: f"rows.jsonl:{row + 1}")


def test_json_has_the_keys_of_the_contract() -> None:
    report = report_json(_report(WARNING, ERROR))
    assert {name: report[name] for name in ("ok", "method", "rows", "checked")} == {
        "ok": False, "method": "sft", "rows": 100, "checked": 100,
    }  # fmt: skip
    assert report["findings"][0] == {
        "rule": "empty-value", "severity": "error", "message": "`completion` is empty",
        "count": 7, "rows": [0, 3], "fix": "drop the rows",
    }  # fmt: skip


def test_warnings_are_ok() -> None:
    assert report_json(_report(WARNING))["ok"]
    assert report_json(_report())["ok"]
    assert not report_json(_report(WHOLE))["ok"]


def test_errors_come_first_with_their_places() -> None:
    lines = _lines(WARNING, ERROR)
    first = lines.index("error: empty-value: `completion` is empty (7 rows, 7 %)")
    assert lines[first + 1] == "    at rows.jsonl:1, rows.jsonl:4 and 5 more"
    assert lines[first + 2] == "    fix: drop the rows"
    assert lines.index("warning: duplicate-rows: rows are there twice (50 rows, 50 %)") > first


def test_evaluation_rows_are_named() -> None:
    assert "error: too-few-rows: data.eval.math: 3 rows, 4 needed" in _lines(WHOLE)


def test_the_verdict_comes_last() -> None:
    assert _lines()[-1] == "no findings"
    assert _lines(ERROR, WARNING)[-1].startswith("1 error, 1 warning; ")
    assert "note: no tokenizer" in _lines()
