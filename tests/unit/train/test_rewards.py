"""Reward functions loaded from files and modules."""

import asyncio
import inspect
import subprocess
import sys

import pytest

from ptcli.errors import WorkError
from ptcli.recipe.model import RewardSpec
from ptcli.train.objects import is_object_reference, load_object
from ptcli.train.rewards import load_reward, load_rewards


@pytest.fixture
def rewards_py(tmp_path):
    (tmp_path / "lengths_of_g.py").write_text("def measure(text):\n    return float(len(text))\n")
    path = tmp_path / "rewards.py"
    path.write_text(
        "from lengths_of_g import measure\n"
        "CALLS = []\n"
        "def length(completions, target=0, **columns):\n"
        "    return [measure(text) - target for text in completions]\n"
        "async def slow(completions, factor=1, **columns):\n"
        "    return [factor * measure(text) for text in completions]\n"
        "def strict(completions, target):\n"
        "    return [target for _ in completions]\n"
        "number = 3\n"
    )
    return path


def test_a_function_of_a_file_with_its_neighbours(rewards_py):
    reward = load_reward(RewardSpec(use=f"{rewards_py}:length"))
    assert reward(completions=["ab", "abc"], answer=["x", "y"]) == [2.0, 3.0]


def test_arguments_are_bound_and_the_name_stays(rewards_py):
    reward = load_reward(RewardSpec(use=f"{rewards_py}:length", args={"target": 2}))
    assert reward(completions=["ab", "abc"]) == [0.0, 1.0]
    assert reward.__name__ == "length"


def test_a_bound_argument_wins_over_a_column_of_the_same_name(rewards_py):
    reward = load_reward(RewardSpec(use=f"{rewards_py}:length", args={"target": 2}))
    assert reward(completions=["ab"], target=[9]) == [0.0]


def test_a_secret_argument_is_revealed_when_it_is_bound(rewards_py, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "open sesame")
    reward = load_reward(RewardSpec(use=f"{rewards_py}:strict", args={"target": "${oc.env:JUDGE_API_KEY}"}))
    assert reward(completions=["a"]) == ["open sesame"]


def test_an_async_function_stays_async(rewards_py):
    reward = load_reward(RewardSpec(use=f"{rewards_py}:slow", args={"factor": 2}))
    assert inspect.iscoroutinefunction(reward)
    assert asyncio.run(reward(completions=["ab"])) == [4.0]


def test_a_function_used_twice_has_two_names(rewards_py):
    use = f"{rewards_py}:length"
    rewards = load_rewards([RewardSpec(use=use), RewardSpec(use=use, args={"target": 1}), RewardSpec(use=use)])
    assert [reward.__name__ for reward in rewards] == ["length", "length_2", "length_3"]
    assert [reward(completions=["ab"]) for reward in rewards] == [[2.0], [1.0], [2.0]]


def test_a_model_path_is_handed_on():
    assert load_reward(RewardSpec(use="org/reward-model")) == "org/reward-model"
    assert load_reward(RewardSpec(use="builtin:tiny")) == "builtin:tiny"


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("rewards.py:f", True),
        ("/a b/c-d.py:f", True),
        ("trl.rewards:accuracy_reward", True),
        ("builtin:tiny", False),
        ("org/model", False),
        ("/models/reward", False),
        ("runs/rm@500", False),
    ],
)
def test_functions_and_models_are_told_apart(use, expected):
    assert is_object_reference(use) is expected


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rewards.py").write_text(f"def where(**columns):\n    return {folder!r}\n")
    assert [load_object(f"{tmp_path}/{folder}/rewards.py:where")() for folder in ("a", "b")] == ["a", "b"]


def test_a_file_is_executed_once(rewards_py):
    load_object(f"{rewards_py}:CALLS").append(1)
    assert load_object(f"{rewards_py}:CALLS") == [1]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("absent", {}, "has no `absent`"),
        ("number", {}, "not a function"),
        ("strict", {"traget": 1}, "takes no argument `traget`"),
    ],
)
def test_what_cannot_be_called_says_why(rewards_py, name, args, message):
    with pytest.raises(WorkError, match=message):
        load_reward(RewardSpec(use=f"{rewards_py}:{name}", args=args))


def test_a_file_that_does_not_import_says_why(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_at_all\n")
    with pytest.raises(WorkError, match="no_such_module_at_all"):
        load_reward(RewardSpec(use=f"{path}:f"))


def test_a_reward_that_hangs_ends_the_process_and_names_itself(tmp_path):
    path = tmp_path / "hang.py"
    path.write_text("import time\ndef hang(**columns):\n    time.sleep(60)\n")
    code = (
        "from ptcli.recipe.model import RewardSpec\nfrom ptcli.train.rewards import load_reward\n"
        f"load_reward(RewardSpec(use={str(path) + ':hang'!r}, timeout=0.2))(completions=[])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "hang.py" in done.stderr.splitlines()[-1]
    assert "timeout of 0.2 s" in done.stderr


def test_a_reward_that_is_quick_enough_is_left_alone(rewards_py):
    assert load_reward(RewardSpec(use=f"{rewards_py}:length", timeout=5.0))(completions=["ab"]) == [2.0]
