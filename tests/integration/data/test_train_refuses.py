"""Data that TRL trains on without a word: `ptcli train` names the mistake and starts nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.smoke_runs import processes_of

NUMBERS = range(8)


def _user(number: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"What is {number} plus 1?"}]


def _assistant(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


SILENT: dict[str, tuple[str, str, Callable[[int], dict[str, Any]]]] = {
    "empty completion": (
        "sft", "empty-value",
        lambda n: {"prompt": f"What is {n} plus 1?", "completion": f" It is {n + 1}." if n else ""},
    ),
    "text beside prompt and completion": (
        "sft", "ambiguous-columns",
        lambda n: {"text": f"{n} plus 1", "prompt": f"What is {n} plus 1?", "completion": f" It is {n + 1}."},
    ),
    "completion of a user": (
        "sft", "completion-not-assistant",
        lambda n: {"prompt": _user(n), "completion": [{"role": "user", "content": f"It is {n + 1}."}]},
    ),
    "answers that are the same": (
        "dpo", "chosen-equals-rejected",
        lambda n: {"prompt": f"What is {n} plus 1?", "chosen": f" It is {n + 1}.", "rejected": f" It is {n + n // 4}."},
    ),
    "roles of another format": (
        "dpo", "unknown-role",
        lambda n: {
            "prompt": [{"role": "human", "content": f"What is {n} plus 1?"}],
            "chosen": [{"role": "gpt", "content": f"It is {n + 1}."}],
            "rejected": [{"role": "gpt", "content": f"It is {n + 3}."}],
        },
    ),
    "the prompt inside the answers": (
        "cpo", "prompt-duplicated",
        lambda n: {
            "prompt": _user(n),
            "chosen": _user(n) + _assistant(f"It is {n + 1}."),
            "rejected": _user(n) + _assistant(f"It is {n + 3}."),
        },
    ),
    "ratings for labels": (
        "kto", "label-not-bool",
        lambda n: {"prompt": f"What is {n} plus 1?", "completion": f" It is {n + 1}.", "label": n % 5 + 1},
    ),
    "labels of one class": (
        "kto", "single-label-class",
        lambda n: {"prompt": f"What is {n} plus 1?", "completion": f" It is {n + 1}.", "label": True},
    ),
    "numbers for labels": (
        "bco", "label-not-bool",
        lambda n: {"prompt": f"What is {n} plus 1?", "completion": f" It is {n + 1}.", "label": n % 2},
    ),
    "a margin that is no number": (
        "reward", "nan-value",
        lambda n: {
            "prompt": f"What is {n} plus 1?", "chosen": f" It is {n + 1}.", "rejected": f" It is {n + 3}.",
            "margin": float("nan"),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("method", "rule", "row"), SILENT.values(), ids=SILENT)
def test_train_refuses(
    method: str, rule: str, row: Callable[[int], dict[str, Any]], tmp_path: Path, ptcli: Callable[..., Any]
) -> None:
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text("".join(json.dumps(row(number)) + "\n" for number in NUMBERS))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "method": method,
                "model": {"path": "builtin:tiny"},
                "data": {"train": [{"path": str(rows)}]},
                "training": {"per_device_train_batch_size": 4, "max_steps": 1},
                "launch": {"device": "cpu"},
                "output_dir": str(run),
            }
        )
    )
    result = ptcli("train", recipe)
    assert result.code == 1
    assert f"error: {rule}: " in result.err
    assert "rows.jsonl:" in result.err or rule == "single-label-class"  # which is not about one row
    assert "data.allow" in result.err
    assert not run.exists()
    assert processes_of(run) == []
