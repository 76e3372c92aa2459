"""Rewards in real runs, and what is found out about them before: real TRL on the shipped model, on a CPU."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import Problem
from ptcli.recipe.model import Recipe
from ptcli.train.checks import Finding
from ptcli.train.checks import rewards as checks

REWARDS = """
import asyncio
import os
import time

def _texts(completions):
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]

def length(completions, target=0, **columns):
    return [-abs(len(text) - target) / 10 for text in _texts(completions)]

async def judge(completions, favourite="7", **columns):
    await asyncio.sleep(0.01)
    return [float(favourite in text) for text in _texts(completions)]

def needs_gold(completions, answr, **columns):
    return [1.0 for _ in completions]

def closed(prompts, completions, completion_ids, trainer_state, log_extra, log_metric):
    return [1.0 for _ in completions]

def short(completions, **columns):
    return [1.0, 0.0]

def nan(completions, **columns):
    return [float("nan") if len(text) < 3 else 1.0 for text in _texts(completions)]

def nothing(completions, **columns):
    return [None for _ in completions]

def elsewhere(completions, answer, **columns):
    return [1.0 if int(right) > 30 else None for right in answer]

def constant(completions, **columns):
    return [1.0 for _ in completions]

def chat_only(completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]

def text_only(completions, **columns):
    return [float(len(completion.strip())) for completion in completions]

def first_word(completions, **columns):
    return [float(len(text.split()[0])) for text in _texts(completions)]

def raises(completions, **columns):
    key = os.environ["JUDGE_API_KEY"]
    raise RuntimeError(f"401 for {key}")

def leaves(completions, **columns):
    os._exit(3)

def hangs(completions, **columns):
    time.sleep(60)

def strings(completions, **columns):
    return ["good" for _ in completions]

def make(goal):
    def near(completions, **columns):
        return [-abs(len(text) - goal) for text in _texts(completions)]
    return near
"""


@pytest.fixture
def rewards_py(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture(autouse=True, scope="module")
def quiet_and_offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


def recipe(rewards: list[dict[str, Any]], output_dir: Path = Path("unused"), **sections: Any) -> dict[str, Any]:
    """GRPO of the shipped model, three short steps."""
    training = {
        "max_steps": 3, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8,
        "learning_rate": 1e-3, "save_strategy": "no", **sections.pop("training", {}),
    }  # fmt: skip
    base = {
        "name": "rewards",
        "method": "grpo",
        "output_dir": str(output_dir),
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": "builtin:arithmetic"}]},
        "launch": {"device": "cpu"},
        "training": training,
        "rewards": rewards,
    }
    return base | sections


# --- before the run --------------------------------------------------------------------------------------------------


def find(*rewards: dict[str, Any], **sections: Any) -> list[Finding]:
    return list(checks.check_rewards(Recipe.model_validate(recipe(list(rewards), **sections))))


def only(*rewards: dict[str, Any], severity: str = "error", **sections: Any) -> Problem:
    found = find(*rewards, **sections)
    assert [each.severity for each in found] == [severity], found
    return found[0].problem


def text_prompts(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"{number}+1=", "answer": str(number + 1), "solution": f"${number + 1}$"} for number in range(8)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": [{"path": str(folder / "text.jsonl")}]}


def test_rewards_that_are_well(rewards_py: Path, tmp_path: Path) -> None:
    """All kinds at once, on chats and on text: nothing to say."""
    good = [
        {"use": f"{rewards_py}:length", "args": {"target": 3}},
        {"use": f"{rewards_py}:judge", "args": {"favourite": "1"}},
        {"use": f"{rewards_py}:make", "args": {"goal": 4}},
        {"use": "trl.rewards:accuracy_reward"},
        {"use": "trl.rewards:think_format_reward"},
        {
            "use": "trl.rewards:get_soft_overlong_punishment",
            "args": {"max_completion_len": 256, "soft_punish_cache": 9},
        },
        {"use": "trl.rewards:get_repetition_penalty_reward"},
        {"use": "ptcli.builtin.rewards:exact_match"},
    ]
    training = {"max_completion_length": 256}
    assert find(*good, training=training) == []
    assert find(*good, training=training, data=text_prompts(tmp_path)) == []
    assert find(good[0], {"use": "builtin:tiny"}, method="online_dpo") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("needs_gold", "needs `answr`, which is no column of data.train (columns for rewards: answer, solution)"),
        ("needs_gold", "rename the column, or the parameter to `answer`"),
        ("closed", "does not take `answer`"),
        ("short", "2 numbers for 16 completions"),
        ("nan", "gave nan for"),
        ("nothing", "gave None for all of 16 completions"),
        ("text_only", "AttributeError: 'list' object has no attribute 'strip'"),
        ("text_only", "read `completion[-1]['content']`"),
        ("raises", "RuntimeError: 401 for ${oc.env:JUDGE_API_KEY} ("),
        ("leaves", "ended its process (exit code 3)"),
        ("strings", "a str ('good') among its rewards"),
        ("absent", "has no `absent`"),
    ],
)
def test_rewards_that_are_refused(rewards_py: Path, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "a-secret-value")
    found = only({"use": f"{rewards_py}:{name}"})
    assert words in str(found)
    assert str(rewards_py) in str(found)
    assert "a-secret-value" not in str(found)
    assert found.key == ("rewards", 0, "use")


def test_the_line_at_fault_is_named(rewards_py: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "a-secret-value")
    line = 1 + REWARDS.splitlines().index('    raise RuntimeError(f"401 for {key}")')
    assert f"({rewards_py}:{line})" in only({"use": f"{rewards_py}:raises"}).message


def test_a_chat_reward_on_text(rewards_py: Path, tmp_path: Path) -> None:
    found = only({"use": f"{rewards_py}:chat_only"}, data=text_prompts(tmp_path))
    assert "TypeError: string indices must be integers" in found.message
    assert "the prompts are text, so a completion is a string" in found.fix


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("constant", "gave 1 for all of 16 different completions"),
        ("first_word", "it works without the empty completion"),
    ],
)
def test_rewards_that_are_warned_of(rewards_py: Path, name: str, words: str) -> None:
    assert words in only({"use": f"{rewards_py}:{name}"}, severity="warning").message


def test_a_reward_for_other_rows_is_well(rewards_py: Path) -> None:
    assert find({"use": f"{rewards_py}:elsewhere"}) == []


def test_what_hangs_is_ended_and_all_problems_come_at_once(
    rewards_py: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forever.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(checks, "LOADING_SECONDS", 8.0)
    monkeypatch.setattr(checks.RewardProcess.wait_until_ready, "__defaults__", (8.0,))
    monkeypatch.setattr(checks, "CALL_SECONDS", 0.5)
    before = time.monotonic()
    found = find(
        {"use": f"{rewards_py}:hangs"},
        {"use": f"{rewards_py}:hangs", "timeout": 0.7},
        {"use": f"{tmp_path}/forever.py:f"},
        {"use": f"{rewards_py}:nan"},
    )
    assert time.monotonic() - before < 40
    said = [each.problem.message for each in found]
    assert [each.problem.key[1] for each in found] == [0, 1, 2, 3]
    assert "took longer than 0.5 s" in said[0]
    assert "took longer than its timeout of 0.7 s" in said[1]
    assert "was not imported in 8 s" in said[2]
    assert "gave nan" in said[3]


def test_data_that_cannot_be_read_are_left_to_the_trainer(rewards_py: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("this is not JSON\n")
    gone = {"train": [{"path": str(tmp_path / "rows.jsonl")}]}
    assert "not tried out" in only({"use": f"{rewards_py}:nan"}, severity="warning", data=gone).message
    found = find({"use": f"{rewards_py}:absent"}, data=gone)
    assert [each.severity for each in found] == ["warning", "error"]
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    assert "without a `prompt`" in only({"use": f"{rewards_py}:nan"}, severity="warning", data=gone).message


def test_a_column_in_the_place_of_what_the_trainer_passes(rewards_py: Path) -> None:
    data = {"train": [{"path": "builtin:arithmetic", "rename": {"solution": "prompts"}}]}
    found = only({"use": f"{rewards_py}:length"}, data=data)
    assert "a column `prompts`" in found.message
    assert found.key == ("data", "train")
