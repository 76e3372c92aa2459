"""Puts a case before `ptcli validate-data`: its file, its tokenizer, its recipe, and what is made of the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ptcli.builtin import MODEL
from ptcli.data.check import check_recipe
from ptcli.data.model import Finding, Report
from ptcli.methods import METHODS, Batching
from tests.data_cases.case import Case
from tests.data_cases.tokenizer import write_tokenizer

_REWARD = "def score(completions, {columns}**kwargs):\n    return [0.0] * len(completions)\n"


def report_on(case: Case, folder: Path) -> Report:
    """What is found in the case's data. `folder` keeps tokenizers between cases."""
    return check_recipe(write_recipe(case, folder))


def write_recipe(case: Case, folder: Path) -> Path:
    """Write the case's files and a recipe for them; its path."""
    home = folder / str(case)
    home.mkdir(parents=True, exist_ok=True)
    arguments = dict(case.args)
    columns = arguments.pop("reward_columns", ())
    method = METHODS[case.method]
    if method.batching == Batching.GENERATION:
        arguments.setdefault("num_generations", 2)
    arguments.setdefault("per_device_train_batch_size", 4)
    data: dict[str, Any] = {"train": [{"path": _write_rows(home / f"rows{case.suffix}", case.rows)}]}
    if case.evaluation is not None:
        data["eval"] = [{"path": _write_rows(home / "evaluation.jsonl", case.evaluation)}]
    recipe: dict[str, Any] = {
        "method": method.name,
        "model": {"path": str(_tokenizer(folder, case.tok))},
        "data": data,
        "training": arguments,
        "launch": {"device": "cpu"},
        "output_dir": str(home / "run"),
    }
    recipe |= {section: {"path": str(MODEL)} for section in method.needs if section != "rewards"}
    if "rewards" in method.sections:
        (home / "rewards.py").write_text(_REWARD.format(columns="".join(f"{column}, " for column in columns)))
        recipe["rewards"] = [{"use": f"{home}/rewards.py:score"}]
    path = home / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _tokenizer(folder: Path, variant: str) -> Path:
    home = folder / "tokenizers" / (variant or "base")
    return home if home.exists() else write_tokenizer(home, variant)


def _write_rows(path: Path, rows: Sequence[Any] | bytes) -> str:
    path.write_bytes(rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode())
    return str(path)


def disagreement(case: Case, findings: Iterable[Finding]) -> str:
    """How a report differs from what the case expects; empty where it does not."""
    found = [(finding.severity, finding.rule) for finding in findings]
    errors = {rule for severity, rule in found if severity == "error"}
    warnings = {rule for severity, rule in found if severity == "warning"}
    rules = set(case.rule.split("|")) if case.rule else None
    said = f"errors {sorted(errors)}, warnings {sorted(warnings)}"
    if case.expected == "error":
        missed = not errors if rules is None else not rules & errors
        return f"no error of {case.rule}: {said}" if missed else ""
    if errors:
        return f"errors where none belong: {said}"
    if case.expected == "warning":
        return "" if rules and rules & warnings else f"no warning of {case.rule}: {said}"
    false_alarms = warnings - set(case.may.split("|"))
    return f"false alarms: {said}" if false_alarms else ""
