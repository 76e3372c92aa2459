"""The README is true: its commands plan, its recipes load."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _lines(program: str) -> list[str]:
    return [line for block in _blocks("bash") for line in block.splitlines() if line.startswith(program + " ")]


@pytest.mark.parametrize("line", _lines("ptcli"))
def test_command(line: str, ptcli: Callable, ptcli_process: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line)[1:]
    if arguments[0] == "validate-data":  # it leaves a process without torch
        assert ptcli_process(*arguments).code == 0
        return
    if arguments[0] == "serve-rollouts":  # its dry form is the same recipe's plan
        arguments[0] = "train"
    if arguments[0] in ("doctor", "merge"):  # they run in tests of their own; here their options must be there
        arguments.append("--help")
    if arguments[0] == "train" and "--dry-run" not in arguments:
        machine = "2x8x80GiB" if "launch.nodes=2" in arguments else "8x80GiB"
        arguments += ["--dry-run"] if "--smoke" in arguments else ["--dry-run", "--assume-gpus", machine]
    result = ptcli(*arguments)
    assert result.code == 0, result.err


@pytest.mark.parametrize("line", _lines("make"))
def test_make_target(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("text", _blocks("yaml"))
def test_recipe(text: str, tmp_path: Path, ptcli: Callable) -> None:
    (rows,), (reward,) = _blocks("json"), _blocks("python")
    (tmp_path / "my.jsonl").write_text(rows * 100)
    (tmp_path / "my_rewards.py").write_text(reward)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    result = ptcli("train", recipe, "--dry-run", "--assume-gpus", "8x80GiB")
    assert result.code == 0, result.err


def test_reward() -> None:
    """It runs on the row that stands above it."""
    row = json.loads(_blocks("json")[0])
    names: dict[str, Callable] = {}
    exec(_blocks("python")[0], names)
    completions = [[{"role": "assistant", "content": text}] for text in ("It is 7.", "It is 8.")]
    rewards = names["contains_answer"](completions, [row["answer"]] * 2, points=2.0, prompts=[row["prompt"]] * 2)
    assert rewards == [2.0, 0.0]


def test_error_message(tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = re.findall(r"^error: recipes/.*$", README, re.MULTILINE)
    broken = tmp_path / "recipes/grpo.yaml"
    broken.parent.mkdir()
    broken.write_text((ROOT / "recipes/grpo.yaml").read_text().replace("learning_rate:", "learning_rat:"))
    monkeypatch.chdir(tmp_path)
    assert said in ptcli("train", "recipes/grpo.yaml", "--dry-run", "--assume-gpus", "8").err.splitlines()


def test_report_on_data(tmp_path: Path, ptcli_process: Callable) -> None:
    """Forty sums, of which two have the same answer twice."""
    (block,) = (block for block in _blocks("text") if block.startswith("$ ptcli validate-data"))
    command, _, said = block.partition("\n")
    rows = tmp_path / "my.jsonl"
    with rows.open("w") as file:
        for number in range(40):
            right, wrong = (f"It is {2 * number + more}." for more in (1, 1 if number in (3, 17) else 3))
            row = {"prompt": f"What is {number} + {number + 1}?", "chosen": right, "rejected": wrong}
            file.write(json.dumps(row) + "\n")
    result = ptcli_process(*shlex.split(command.replace("my.jsonl", str(rows)))[2:])
    assert (result.code, result.out) == (1, said)


def test_every_command_is_mentioned(ptcli: Callable) -> None:
    commands = re.findall(r"^  ([a-z-]+)  +", ptcli("--help").out.partition("Commands:")[2], re.MULTILINE)
    assert len(commands) >= 4
    assert [name for name in commands if f"ptcli {name}" not in README] == []
