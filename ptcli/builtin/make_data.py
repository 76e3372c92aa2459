"""The shipped data sets: sums of two numbers from 0 to 19, one file for each of TRL's dataset types.

Every row carries `answer`, for an exact match, and `solution`, under which `trl.rewards.accuracy_reward` looks for the
same (it accepts a completion only when it is boxed: `\\boxed{19}`). Rows are distinct, and shuffled from a fixed seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptcli.builtin import DATASETS, data_path

SEED = 0
NUMBERS = range(20)
"""Both numbers of a sum."""
STEP_ROWS = 400

Row = dict[str, Any]
Sum = tuple[int, int]


def all_sums() -> list[Sum]:
    """Every sum there is, in order."""
    return [(a, b) for a in NUMBERS for b in NUMBERS]


def question(a: int, b: int) -> str:
    return f"{a}+{b}="


def wrong_sum(right: int, rng: random.Random) -> int:
    """A number of the kind that a careless pupil would answer: one or two off, or a carry forgotten."""
    return rng.choice([near for off in (-10, -2, -1, 1, 2, 10) if (near := right + off) >= 0])


def rows_of(name: str) -> list[Row]:
    """The rows of a data set, by its name without `builtin:`; the same at every call."""
    # A string seeds the same way in every process; each file has its own order.
    rng = random.Random(f"{name}-{SEED}")
    if name == "arithmetic-steps":
        return list(_steps(rng))
    sums = all_sums()
    rng.shuffle(sums)
    return [_row(name, index, a, b, rng) for index, (a, b) in enumerate(sums)]


def write_all() -> list[Path]:
    """Write every data set where `data_path` says; returns the files."""
    paths = [data_path(name) for name in DATASETS]
    for name, path in zip(DATASETS, paths, strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_text(encode(rows_of(name)), encoding="utf-8")
    return paths


def encode(rows: list[Row]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def _row(name: str, index: int, a: int, b: int, rng: random.Random) -> Row:
    right, wrong = str(a + b), str(wrong_sum(a + b, rng))
    user, good, bad = _said("user", question(a, b)), _said("assistant", right), _said("assistant", wrong)
    # Right and wrong alternate, so that both kinds are in every batch, which KTO and BCO need.
    label = index % 2 == 0
    columns: dict[str, Row] = {
        "arithmetic": {"prompt": user},
        "arithmetic-text": {"text": question(a, b) + right},
        "arithmetic-messages": {"messages": user + good},
        "arithmetic-prompt-completion": {"prompt": user, "completion": good},
        "arithmetic-preference": {"prompt": user, "chosen": good, "rejected": bad},
        "arithmetic-unpaired": {"prompt": user, "completion": good if label else bad, "label": label},
    }
    return columns[name] | _answer(a + b)


def _said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _answer(right: int) -> Row:
    return {"answer": str(right), "solution": str(right)}


def _steps(rng: random.Random) -> Iterator[Row]:
    """Sums of three numbers in two steps; a label says whether the step is right, given what was asked."""
    triples = [(a, b, c) for a in NUMBERS for b in NUMBERS for c in NUMBERS]
    for a, b, c in rng.sample(triples, STEP_ROWS):
        first = a + b if rng.random() < 0.7 else wrong_sum(a + b, rng)
        second = first + c if rng.random() < 0.7 else wrong_sum(first + c, rng)
        yield {
            "prompt": f"{a}+{b}+{c}=",
            "completions": [f"{a}+{b}={first}", f"{first}+{c}={second}"],
            "labels": [first == a + b, second == a + b + c],
            **_answer(a + b + c),
        }
