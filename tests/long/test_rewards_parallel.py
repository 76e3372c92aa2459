"""Rewards on several processes: what runs out of time on one of them must not leave the others waiting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

REWARDS = """
import os
import time

def sometimes(completions, trainer_state, log_metric, log_extra, **columns):
    if trainer_state.global_step == 2 and os.environ["RANK"] == "1":
        time.sleep(60)
    log_metric("seen", float(len(completions)))
    log_extra("letters", [len(text[0]["content"]) for text in completions])
    return [float(len(text[0]["content"])) for text in completions]

async def judge(completions, **columns):
    return [float(len(text[0]["content"]) % 3) for text in completions]
"""


def test_a_timeout_on_one_rank(tmp_path: Path, ptcli_process: Callable) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    recipe = {
        "method": "rloo",
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": "builtin:arithmetic"}]},
        "rewards": [{"use": "rewards.py:sometimes", "timeout": 2}, {"use": "rewards.py:judge"}],
        "launch": {"device": "cpu", "processes": 2},
        "training": {
            "max_steps": 4, "per_device_train_batch_size": 4, "num_generations": 4, "steps_per_generation": 2,
            "max_completion_length": 8, "logging_steps": 1, "save_strategy": "no",
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = tmp_path / "run"
    result = ptcli_process("train", tmp_path / "recipe.yaml", f"output_dir={run}", timeout=280)
    assert result.code == 0, result.err
    metrics, table = (
        [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("metrics", "completions")
    )
    assert [line.get("rewards/sometimes/timeouts") for line in metrics] == [0.0, None, 1.0, None]
    assert [line.get("seen") for line in metrics] == [8.0, None, None, None]
    # Both ranks' completions, at the first step that learns from them.
    assert [row["step"] for row in table] == [1] * 16 + [3] * 16
    lost = [row for row in table if row["rewards"]["sometimes"] is None]
    assert lost == table[24:]
    assert all(row["extra"]["letters"] is None for row in lost)
    assert all(row["extra"]["letters"] == len(row["completion"]) for row in table[:24])
    assert all(row["reward"] == row["rewards"]["judge"] for row in lost)
    said = (run / "logs" / "trainer.log").read_text()
    assert "took longer than its timeout of 2 s in step 3" in said
