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


def put_adapter(run: Path, **config: str) -> None:
    run.mkdir()
    (run / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM"} | config))


def test_an_adapter_is_to_be_merged_before_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_adapter(tmp_path / "my run")
    text = "\n".join(finished_lines(tmp_path / "my run", 3))
    assert "adapter, metrics.jsonl and logs in my run" in text
    assert "ptcli merge 'my run' --out 'my run/merged'" in text
    for server in ("vllm serve", "sglang.launch_server --model-path", "dynamo.vllm --model"):
        assert f"{server} 'my run/merged'" in text


def test_a_merged_one_only_to_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_adapter(tmp_path / "run")
    text = "\n".join(finished_lines(tmp_path / "run", 3, merged=True))
    assert "ptcli merge" not in text
    assert "vllm serve run/merged" in text


def test_a_reward_model_is_merged_and_not_served_as_a_writer(tmp_path: Path) -> None:
    put_adapter(tmp_path / "run", task_type="SEQ_CLS")
    text = "\n".join(finished_lines(tmp_path / "run", 3))
    assert "ptcli merge" in text
    assert "vllm" not in text


def test_what_has_no_merge(tmp_path: Path) -> None:
    put_adapter(tmp_path / "run", peft_type="PROMPT_TUNING")
    assert "serve it with PEFT" in finished_lines(tmp_path / "run", 3)[-1]
