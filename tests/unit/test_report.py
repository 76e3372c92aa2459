import json
from pathlib import Path

import pytest

from ptcli.run.report import finished_lines, reward_line


def test_reward_line_compares_tenths() -> None:
    assert reward_line([0.0, 0.2] + [0.5] * 16 + [0.6, 1.0]) == "reward: first tenth 0.100, last tenth 0.800"


@pytest.mark.parametrize("steps", [0, 9])
def test_too_few_steps_for_tenths(steps: int) -> None:
    assert reward_line([1.0] * steps) is None


def test_last_line_is_the_reward(tmp_path: Path) -> None:
    rows = [{"step": step, "reward": step / 10} for step in range(1, 11)] + [{"step": 10, "train_loss": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finished_lines(tmp_path, 10)[-1] == "reward: first tenth 0.100, last tenth 1.000"


def test_a_step_without_a_number_does_not_count(tmp_path: Path) -> None:
    rows = [{"reward": step / 10} for step in range(1, 11)]
    rows[5:5] = [{"reward": float("nan")}, {"reward": float("inf")}, {"reward": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finished_lines(tmp_path, 13)[-1] == "reward: first tenth 0.100, last tenth 1.000"


def test_no_metrics_no_reward(tmp_path: Path) -> None:
    assert len(finished_lines(tmp_path, 3)) == 1
