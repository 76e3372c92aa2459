"""Rewards in real runs, and what is found out about them before: real TRL on the shipped model, on a CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import Problem, WorkError
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


# --- during the run --------------------------------------------------------------------------------------------------

HANGING = """
import asyncio
import time

CALLS = []

def sometimes(completions, trainer_state, **columns):
    if trainer_state.global_step == 1:
        time.sleep(60)
    return [float(len(text[0]["content"])) for text in completions]

def never(completions, **columns):
    time.sleep(60)

async def judge(completions, **columns):
    await asyncio.sleep(0.01)
    return [float(len(text[0]["content"]) % 3) for text in completions]

def unless_empty(completions, **columns):
    return [float(len(text[0]["content"])) if text[0]["content"] else None for text in completions]
"""


@pytest.fixture
def hanging_py(tmp_path: Path) -> Path:
    path = tmp_path / "hanging.py"
    path.write_text(HANGING)
    return path


def train(described: dict[str, Any], resume_from: Path | None = None) -> Any:
    from ptcli.train import worker

    return worker.train(Recipe.model_validate(described), resume_from=str(resume_from) if resume_from else None)


def read_lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def assert_sums(table: list[dict[str, Any]], weights: dict[str, float]) -> None:
    """`reward` is the weighted sum of the rewards that apply."""
    for row in table:
        assert row["rewards"].keys() == weights.keys()
        given = [weights[name] * score for name, score in row["rewards"].items() if score is not None]
        assert row["reward"] == (pytest.approx(sum(given), abs=1e-6) if given else None)


def save_reward_model(folder: Path) -> Path:
    """The shipped model with a head for a score."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    from ptcli.builtin import MODEL

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_of_trl_one_of_a_file_and_a_model_weighted(
    tmp_path: Path, rewards_py: Path, ptcli_process: Callable[..., Any]
) -> None:
    """Through the command line, and again to go on: what was written stays."""
    model, run = save_reward_model(tmp_path / "scorer"), tmp_path / "run"
    rewards = [
        {"use": "accuracy_reward", "weight": 2.0},
        {"use": "rewards.py:length", "weight": 0.5, "args": {"target": 3}, "timeout": 30},
        {"use": "./scorer", "weight": 0.25},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(rewards, run) | {"output_dir": str(run)}))
    result = ptcli_process("train", path, cwd=tmp_path)
    assert result.code == 0, result.err
    assert "trl.rewards:accuracy_reward" in (run / "recipe.resolved.yaml").read_text()
    table, metrics = read_lines(run, "completions.jsonl"), read_lines(run, "metrics.jsonl")
    assert [row["step"] for row in table] == [1] * 4 + [2] * 4 + [3] * 4
    assert_sums(table, {"accuracy_reward": 2.0, "length": 0.5, model.name: 0.25})
    assert len({row["rewards"][model.name] for row in table}) > 3
    for step in metrics[:3]:
        rows = [row for row in table if row["step"] == step["step"]]
        assert sum(row["reward"] for row in rows) / 4 == pytest.approx(step["reward"], abs=1e-4)
        assert sum(row["advantage"] for row in rows) == pytest.approx(0, abs=1e-4)
        assert step["rewards/length/timeouts"] == 0.0
        assert all(row["rewards"]["length"] == pytest.approx(-abs(len(row["completion"]) - 3) / 10) for row in rows)
        assert all("=" in row["prompt"] and row["extra"]["solution"] in row["extra"]["gold_parsed"] for row in rows)


def test_a_call_that_hangs_is_killed_counted_and_named_and_the_run_goes_on(
    tmp_path: Path, hanging_py: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewards = [
        {"use": f"{hanging_py}:sometimes", "timeout": 1.0},
        {"use": f"{hanging_py}:judge", "timeout": 20.0, "weight": 3.0},
        {"use": f"{hanging_py}:unless_empty", "weight": 0.0},
    ]
    train(recipe(rewards, tmp_path / "run", training={"max_steps": 4, "save_steps": 3, "save_strategy": "steps"}))
    metrics, table = (read_lines(tmp_path / "run", f"{name}.jsonl") for name in ("metrics", "completions"))
    assert [line["rewards/sometimes/timeouts"] for line in metrics] == [0.0, 1.0, 0.0, 0.0]
    assert [line["rewards/judge/timeouts"] for line in metrics] == [0.0] * 4
    assert metrics[1]["rewards/sometimes/mean"] is None
    assert [row["rewards"]["sometimes"] is None for row in table] == [row["step"] == 2 for row in table]
    assert_sums(table, {"sometimes": 1.0, "judge": 3.0, "unless_empty": 0.0})
    said = capfd.readouterr().err
    assert "reward `sometimes`" in said
    assert "took longer than its timeout of 1 s in step 2 and was ended" in said
    assert "hanging.py" in said.partition("took longer")[0]  # the stack
    # Going on from step 3 writes step 4 anew.
    before = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    described = recipe(rewards, tmp_path / "run", training={"max_steps": 4})
    train(described, resume_from=tmp_path / "run" / "checkpoint-3")
    after = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert after[:12] == before[:12]
    assert [json.loads(line)["step"] for line in after[12:]] == [4] * 4


def test_a_reward_that_never_answers_ends_the_run_by_name(tmp_path: Path, hanging_py: Path) -> None:
    rewards = [{"use": f"{hanging_py}:never", "timeout": 0.3}, {"use": f"{hanging_py}:judge"}]
    with pytest.raises(WorkError, match=r"reward `never` .*hanging.py:never. took longer .* 3 times in a row"):
        train(recipe(rewards, tmp_path / "run", training={"max_steps": 5}))
    assert len(read_lines(tmp_path / "run", "metrics.jsonl")) == 2


def online_dpo(rewards: list[dict[str, Any]], run: Path) -> dict[str, Any]:
    described = recipe(rewards, run, method="online_dpo")
    training = {"max_steps": 3, "per_device_train_batch_size": 4, "max_new_tokens": 8, "max_length": 64}
    return described | {"training": training | {"save_strategy": "no", "logging_steps": 1}}


def test_online_dpo_takes_async_rewards_timeouts_and_models(tmp_path: Path, hanging_py: Path) -> None:
    rewards = [
        {"use": f"{hanging_py}:judge", "weight": 2.0},
        {"use": f"{hanging_py}:judge", "timeout": 20.0},
        {"use": f"{hanging_py}:sometimes", "timeout": 1.0, "weight": 0.5},
        {"use": str(save_reward_model(tmp_path / "judge"))},
        {"use": "builtin:tiny"},
    ]
    train(online_dpo(rewards, tmp_path / "run"))
    metrics, table = (read_lines(tmp_path / "run", f"{name}.jsonl") for name in ("metrics", "completions"))
    assert [line["rewards/sometimes/timeouts"] for line in metrics[:3]] == [0.0, 1.0, 0.0]
    assert [row["step"] for row in table] == [1] * 8 + [2] * 8 + [3] * 8  # two completions for each of four prompts
    assert [row["rewards"]["sometimes"] is None for row in table] == [row["step"] == 2 for row in table]
    assert_sums(table, {"judge": 2.0, "judge_2": 1.0, "sometimes": 0.5, "judge_3": 1.0, "tiny": 1.0})
    assert all(row["rewards"]["judge"] == row["rewards"]["judge_2"] for row in table)
    assert "advantage" not in table[0]


def test_online_dpo_does_not_learn_from_a_batch_without_rewards(tmp_path: Path, hanging_py: Path) -> None:
    rewards = [{"use": f"{hanging_py}:sometimes", "timeout": 1.0}]
    with pytest.raises(WorkError, match="no completion of step 2 got a reward: sometimes gave None for all"):
        train(online_dpo(rewards, tmp_path / "run"))


def test_xpo_has_a_table_too(tmp_path: Path) -> None:
    described = online_dpo([], tmp_path / "run") | {"method": "xpo", "reward_model": {"path": "builtin:tiny"}}
    train(described)
    table = read_lines(tmp_path / "run", "completions.jsonl")
    assert [row["step"] for row in table] == [1] * 4 + [2] * 4 + [3] * 4
    assert all(list(row["rewards"].values()) == [row["reward"]] for row in table)


def test_rewards_of_trl_on_text(tmp_path: Path) -> None:
    """Both raise a TypeError on the strings that completions are there, without ptcli's wrapping."""
    rewards = [{"use": "trl.rewards:accuracy_reward"}, {"use": "trl.rewards:think_format_reward", "timeout": 30}]
    train(recipe(rewards, tmp_path / "run", data=text_prompts(tmp_path)))
    assert_sums(read_lines(tmp_path / "run", "completions.jsonl"), {"accuracy_reward": 1.0, "think_format_reward": 1.0})


def test_problems_are_told_by_the_command_line(
    tmp_path: Path, rewards_py: Path, ptcli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "a-secret-value")
    path = tmp_path / "recipe.yaml"
    described = recipe([], tmp_path / "run")
    lines = [f"{name}: {json.dumps(value)}" for name, value in described.items() if name != "rewards"]
    rewards = [f"  - use: rewards.py:{name}" for name in ("constant", "nan", "raises")]
    path.write_text("\n".join([*lines, "rewards:", *rewards]) + "\n")
    result = ptcli("train", path)
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    number = len(lines) + 2
    assert [line.split(": ")[1] for line in errors] == [f"{path}:{number + 1}:5", f"{path}:{number + 2}:5"]
    assert "Traceback" not in result.err
    assert "a-secret-value" not in result.err
    assert not (tmp_path / "run").exists()
    assert "warning: " in result.err
    assert "for all of 16 different completions" in result.err


def test_the_table_is_bounded(tmp_path: Path) -> None:
    from ptcli.train import completions

    def of(count: int, length: int = 1) -> list[completions.Completion]:
        return [completions.Completion("p", "c" * length, {"a": 1.0}, 1.0) for _ in range(count)]

    def written(*batches: tuple[int, int]) -> int:
        path = tmp_path / "completions.jsonl"
        path.unlink(missing_ok=True)
        recorder = completions.Recorder(path)
        for step, (count, length) in enumerate(batches):
            recorder.note(step // 2, of(count, length), [])
        recorder.on_log(None, TrainerState(global_step=1), None)
        assert path.stat().st_size <= max(completions.MOST_BYTES, 2 * batches[0][1])
        return len(path.read_text().splitlines())

    from transformers import TrainerState

    assert written((3, 1), (4, 1)) == 7  # two batches of one step
    assert written((3, 1), (3, 1), (4, 1)) == 4  # a later step takes the place of one that was not logged
    assert written((50, 1), (50, 1)) == completions.MOST_COMPLETIONS
    assert written((50, completions.MOST_BYTES // 10)) == 9
    assert written((5, 2 * completions.MOST_BYTES)) == 1


def test_a_weighted_sum_is_over_what_applies() -> None:
    from ptcli.train.completions import weighted_sum

    assert weighted_sum([1.0, None, 3.0], [2.0, 5.0, 0.5]) == 3.5
    assert weighted_sum([None, None], [1.0, 1.0]) is None
