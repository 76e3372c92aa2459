"""How a report of the data checks is printed. Pure text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ptcli.data.model import Finding, Report

Place = Callable[[Finding, int], str]
"""Where a row of a finding is: `rows.jsonl:17`."""

_ORDER = {"error": 0, "warning": 1}


def report_json(report: Report) -> dict[str, Any]:
    """The report as the contract has it, with `notes` and `tokenized` besides."""
    return {
        "ok": report.ok,
        "method": report.method,
        "rows": report.rows,
        "checked": report.checked,
        "findings": [_finding_json(finding) for finding in in_order(report.findings)],
        "tokenized": report.tokenized,
        "notes": list(report.notes),
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "message": f"{_split(finding)}{finding.message}",
        "count": finding.count,
        "rows": list(finding.rows),
        "fix": finding.fix,
    }


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, each kind by the share of the rows that it concerns."""
    return sorted(findings, key=lambda each: (_ORDER[each.severity], each.split != "train", -each.share, each.rule))


def report_lines(report: Report, place: Place) -> list[str]:
    """The report for people: what was looked at, every finding with its rows and what to do, and the verdict."""
    return [
        _head(report),
        "",
        *finding_lines(report.findings, place),
        *_notes(report),
        *_summary(report),
        _verdict(report),
    ]


def finding_lines(findings: Iterable[Finding], place: Place) -> list[str]:
    """Three lines a finding, and an empty one after it."""
    lines: list[str] = []
    for finding in in_order(findings):
        lines.append(f"{finding.severity}: {finding.rule}: {_split(finding)}{finding.message}{_extent(finding)}")
        if finding.rows:
            lines.append(f"    at {', '.join(place(finding, row) for row in finding.rows)}{_more(finding)}")
        if finding.fix:
            lines.append(f"    fix: {finding.fix}")
        lines.append("")
    return lines


def _split(finding: Finding) -> str:
    return "" if finding.split == "train" else f"data.{finding.split}: "


def _extent(finding: Finding) -> str:
    if not finding.rows:
        return ""
    share = f", {_percent(finding.share)}" if finding.share else ""
    return f" ({_counted(finding.count, 'row')}{share})"


def _more(finding: Finding) -> str:
    rest = finding.count - len(finding.rows)
    return f" and {rest:,} more" if rest > 0 else ""


def _percent(share: float) -> str:
    return "100 %" if share >= 1 else f"{100 * share:.2g} %" if share >= 0.001 else "< 0.1 %"


def _head(report: Report) -> str:
    looked = f"{report.checked:,} checked, {report.tokenized:,} tokenized"
    return f"{report.method} on {_counted(report.rows, 'row')}: {looked}"


def _notes(report: Report) -> Sequence[str]:
    return [*(f"note: {note}" for note in report.notes), ""] if report.notes else []


def _summary(report: Report) -> Sequence[str]:
    return [*report.summary, ""] if report.summary else []


def _verdict(report: Report) -> str:
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    if not report.findings:
        return "no findings"
    verdict = f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}"
    return f"{verdict}; what a rule means: ptcli validate-data --explain {in_order(report.findings)[0].rule}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
