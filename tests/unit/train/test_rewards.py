"""Reward functions loaded from files and modules, and those that run in a process of their own."""

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from ptcli.errors import WorkError
from ptcli.recipe.model import RewardSpec
from ptcli.train.objects import is_object_reference, load_object
from ptcli.train.reward_calls import read_scores
from ptcli.train.reward_loading import MOST_TIMEOUTS_IN_A_ROW, TimedReward, load_rewards
from ptcli.train.reward_process import RewardFailed, RewardProcess, TimedOut
from ptcli.train.rewards import as_chats, is_async, is_factory, make_reward, name_of

REWARDS = """
import asyncio
import os
import time

from lengths_of_g import measure

CALLS = []
def length(completions, target=0, **columns):
    return [measure(text) - target for text in completions]
async def slow(completions, factor=1, **columns):
    return [factor * measure(text) for text in completions]
def strict(completions, target):
    return [target for _ in completions]
def make_length(target, scale=1.0):
    def near(completions, **columns):
        return [scale * (measure(text) - target) for text in completions]
    return near
def make_nothing(target):
    return target
def make_badly(target):
    return len(target)
def make_judge(url="http://judge"):
    async def judged(completions, **columns):
        return [1.0 for _ in completions]
    return judged
class Judge:
    def __init__(self, favourite="yes"):
        self.favourite = favourite
    async def __call__(self, completions, **columns):
        return [float(self.favourite in text) for text in completions]
shout = lambda completions, **columns: [float(text.isupper()) for text in completions]
number = 3

def hang(completions, **columns):
    if "hang" in completions:
        time.sleep(60)
    return [1.0 for _ in completions]
def chatty(completions, trainer_state, log_extra, log_metric, **columns):
    print("this goes to the log")
    log_extra("seen", list(completions))
    log_metric("length", 2.5)
    return [float(trainer_state.global_step) for _ in completions]
def unlucky(completions, **columns):
    if completions[0] == "exit":
        os._exit(7)
    raise ValueError("no luck with " + os.environ.get("JUDGE_API_KEY", "it"))
def shape(completions, **columns):
    return [float(completion[0]["content"] == "ab") for completion in completions]
"""


@pytest.fixture
def rewards_py(tmp_path):
    (tmp_path / "lengths_of_g.py").write_text("def measure(text):\n    return float(len(text))\n")
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    return path


def test_a_function_of_a_file_with_its_neighbours(rewards_py):
    reward = make_reward(RewardSpec(use=f"{rewards_py}:length"))
    assert reward(completions=["ab", "abc"], answer=["x", "y"]) == [2.0, 3.0]


def test_arguments_are_bound_and_the_name_stays(rewards_py):
    reward = make_reward(RewardSpec(use=f"{rewards_py}:length", args={"target": 2}))
    assert reward(completions=["ab", "abc"]) == [0.0, 1.0]
    assert reward.__name__ == "length"


def test_a_bound_argument_wins_over_a_column_of_the_same_name(rewards_py):
    reward = make_reward(RewardSpec(use=f"{rewards_py}:length", args={"target": 2}))
    assert reward(completions=["ab"], target=[9]) == [0.0]


def test_a_secret_argument_is_revealed_when_it_is_bound(rewards_py, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "open sesame")
    reward = make_reward(RewardSpec(use=f"{rewards_py}:strict", args={"target": "${oc.env:JUDGE_API_KEY}"}))
    assert reward(completions=["a"]) == ["open sesame"]


def test_an_async_function_stays_async(rewards_py):
    reward = make_reward(RewardSpec(use=f"{rewards_py}:slow", args={"factor": 2}))
    assert inspect.iscoroutinefunction(reward)
    assert asyncio.run(reward(completions=["ab"])) == [4.0]


def test_a_trainer_that_does_not_await_gets_a_function_that_blocks(rewards_py):
    for use in ("slow", "Judge"):
        (reward,) = load_rewards([RewardSpec(use=f"{rewards_py}:{use}")], awaits=False)
        assert not inspect.iscoroutinefunction(reward)
        assert reward.__name__ == use
        assert reward(completions=["yes"]) == ([3.0] if use == "slow" else [1.0])


@pytest.mark.parametrize(
    ("name", "args", "logged_as", "scores"),
    [
        ("make_length", {"target": 2}, "near", [0.0, 1.0]),
        ("make_length", {"target": 2, "scale": 2.0}, "near", [0.0, 2.0]),
        ("make_judge", {}, "judged", [1.0, 1.0]),
        ("Judge", {"favourite": "c"}, "Judge", [0.0, 1.0]),
        ("shout", {}, "shout", [0.0, 0.0]),
    ],
)
def test_factories_make_the_function(rewards_py, name, args, logged_as, scores):
    reward = make_reward(RewardSpec(use=f"{rewards_py}:{name}", args=args))
    result = reward(completions=["ab", "abc"], answer=["x", "y"])
    assert (asyncio.run(result) if inspect.iscoroutinefunction(reward) else result) == scores
    assert name_of(reward) == logged_as


def test_the_factories_of_trl(rewards_py):
    spec = RewardSpec(
        use="trl.rewards:get_soft_overlong_punishment", args={"max_completion_len": 100, "soft_punish_cache": 20}
    )
    assert make_reward(spec)(completions=["a"], completion_ids=[[1] * 90]) == [-0.5]
    penalty = make_reward(RewardSpec(use="trl.rewards:get_repetition_penalty_reward"))
    assert penalty(completions=["a", "b"], completion_ids=[[1, 2, 3, 4], [5] * 5]) == [0.0, pytest.approx(-2 / 3)]
    assert name_of(penalty) == "repetition_penalty_reward"


def test_what_takes_completions_is_no_factory(rewards_py):
    kinds = {name: is_factory(load_object(f"{rewards_py}:{name}")) for name in ("length", "strict", "Judge")}
    assert kinds == {"length": False, "strict": False, "Judge": True}
    assert not is_async(load_object(f"{rewards_py}:length"))


def test_rewards_of_trl_score_plain_completions_too():
    """Without the shape that they want, accuracy_reward and think_format_reward raise a TypeError on a string."""
    accuracy = make_reward(RewardSpec(use="trl.rewards:accuracy_reward"))
    right, wrong = r"\boxed{4}", r"\boxed{5}"
    assert accuracy(completions=[right, wrong], solution=["$4$", "$4$"]) == [1.0, 0.0]
    chats = as_chats({"completions": [right, wrong]})["completions"]
    assert accuracy(completions=chats, solution=["$4$", "$4$"]) == [1.0, 0.0]
    form = make_reward(RewardSpec(use="trl.rewards:think_format_reward"))
    assert form(completions=["<think>so</think>4", "4"]) == [1.0, 0.0]


def test_a_function_used_twice_has_two_names(rewards_py):
    use = f"{rewards_py}:length"
    rewards = load_rewards(
        [RewardSpec(use=use), RewardSpec(use=use, args={"target": 1}), RewardSpec(use=use, timeout=20.0)]
    )
    assert [reward.__name__ for reward in rewards] == ["length", "length_2", "length_3"]
    assert [reward(completions=["ab"]) for reward in rewards] == [[2.0], [1.0], [2.0]]


def test_a_model_path_is_handed_on():
    assert load_rewards([RewardSpec(use="org/reward-model"), RewardSpec(use="builtin:tiny")]) == [
        "org/reward-model",
        "builtin:tiny",
    ]


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
        ("make_length", {}, "no parameter `completions`.* missing 1 required positional argument: 'target'"),
        ("make_length", {"target": 1, "scales": 2}, "takes no argument `scales`"),
        ("make_nothing", {"target": 1}, "it made a int"),
    ],
)
def test_what_cannot_be_called_says_why(rewards_py, name, args, message):
    with pytest.raises(WorkError, match=message):
        make_reward(RewardSpec(use=f"{rewards_py}:{name}", args=args))


def test_an_error_inside_a_factory_is_its_own(rewards_py):
    with pytest.raises(TypeError, match="has no len"):
        make_reward(RewardSpec(use=f"{rewards_py}:make_badly", args={"target": 1}))


def test_a_file_that_does_not_import_says_why(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_at_all\n")
    with pytest.raises(WorkError, match="no_such_module_at_all"):
        make_reward(RewardSpec(use=f"{path}:f"))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (3.0, "a float instead of a list"),
        (None, "None instead of a list"),
        ("high", "a str instead of a list"),
        ([1.0], "1 number for 2 completions"),
        ([1.0, "high"], r"a str \('high'\) among its rewards"),
        ([1.0, [2.0]], "a list"),
    ],
)
def test_results_that_are_no_scores(result, message):
    with pytest.raises(WorkError, match=message):
        read_scores(result, 2)


def test_results_that_are_scores():
    assert read_scores((True, None), 2) == [1.0, None]


# --- in a process of its own -----------------------------------------------------------------------------------------


@pytest.fixture
def process(rewards_py):
    """Makes reward processes, and ends them."""
    made = []

    def make(name, **args):
        made.append(RewardProcess(RewardSpec(use=f"{rewards_py}:{name}", args=args)))
        return made[-1]

    yield make
    for each in made:
        each.end()


def test_a_process_says_what_the_function_takes(process):
    ready = process("strict").wait_until_ready()
    assert ([(each.name, each.required) for each in ready.parameters], ready.takes_all) == (
        [("completions", True), ("target", True)], False,
    )  # fmt: skip
    assert process("Judge").wait_until_ready().is_async


def test_scores_logs_and_state_cross_over_and_prints_do_not(process, capfd):
    columns = {
        "completions": ["ab", "c"],
        "trainer_state": SimpleNamespace(global_step=4, callbacks=object()),
        "log_extra": print,
        "log_metric": print,
    }
    answer = process("chatty").call(columns, 20)
    assert answer.scores == [4.0, 4.0]
    assert answer.logged == (("log_extra", "seen", ["ab", "c"]), ("log_metric", "length", 2.5))
    assert "this goes to the log" in capfd.readouterr().err


def test_an_async_function_in_a_process(process):
    judge = process("Judge", favourite="c")
    assert [judge.call({"completions": ["ab", "c"]}, 20).scores for _ in range(2)] == [[0.0, 1.0]] * 2


def test_a_call_that_hangs_is_killed_with_its_stack_and_the_next_one_answered(process, capfd):
    hanging = process("hang")
    hanging.wait_until_ready()
    before = time.monotonic()
    with pytest.raises(TimedOut):
        hanging.call({"completions": ["hang"]}, 0.5)
    assert time.monotonic() - before < 5
    assert "rewards.py" in capfd.readouterr().err
    assert hanging.call({"completions": ["go on"]}, 20).scores == [1.0]


def test_a_process_that_does_not_listen_is_killed_too(process):
    """More than a socket holds waits for its reader."""
    length = process("length")
    length.wait_until_ready()
    os.kill(length._popen.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(TimedOut):
        length.call({"completions": ["x" * 10**7]}, 0.5)
    assert time.monotonic() - began < 10
    assert length.call({"completions": ["x" * 10**7]}, 30).scores == [10.0**7]


def test_failures_name_the_line_and_hide_secrets(process, rewards_py, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "open sesame")
    unlucky = process("unlucky")
    with pytest.raises(RewardFailed) as raised:
        unlucky.call({"completions": ["a"]}, 20)
    line = 1 + REWARDS.splitlines().index(
        '    raise ValueError("no luck with " + os.environ.get("JUDGE_API_KEY", "it"))'
    )
    assert raised.value.failure.place == f"{rewards_py}:{line}"
    assert raised.value.failure.message == "ValueError: no luck with ${oc.env:JUDGE_API_KEY}"
    with pytest.raises(RewardFailed, match=r"ended its process \(exit code 7\)"):
        unlucky.call({"completions": ["exit"]}, 20)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit(3)", "exit.3.*broken.py:2"),
        ("import os\nos._exit(3)", "exit code 3"),
        ("x = 1 / 0", r"ZeroDivisionError.*broken.py:1"),
        ("def f(:", r"SyntaxError.*broken.py:1"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ],
)
def test_a_module_that_does_not_survive_its_import(tmp_path, code, message):
    (tmp_path / "broken.py").write_text(code + "\n")
    with pytest.raises(RewardFailed, match=message):
        RewardProcess(RewardSpec(use=f"{tmp_path}/broken.py:f")).wait_until_ready()


def test_an_import_that_hangs_is_ended(tmp_path):
    (tmp_path / "forever.py").write_text("import time\ntime.sleep(60)\n")
    hanging = RewardProcess(RewardSpec(use=f"{tmp_path}/forever.py:f"))
    with pytest.raises(TimedOut):
        hanging.wait_until_ready(1.5)


def test_a_process_dies_with_its_trainer_also_while_it_hangs(rewards_py, tmp_path):
    code = (
        "import os, threading, time\nfrom ptcli.recipe.model import RewardSpec\n"
        "from ptcli.train.reward_process import RewardProcess\n"
        f"process = RewardProcess(RewardSpec(use={str(rewards_py) + ':hang'!r}))\nprocess.wait_until_ready()\n"
        "threading.Thread(target=process.call, args=({'completions': ['hang']}, 50), daemon=True).start()\n"
        "time.sleep(0.5)\nprint(process._popen.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# --- with a timeout --------------------------------------------------------------------------------------------------


def timed(rewards_py, name, timeout=0.5, **more):
    return TimedReward(RewardSpec(use=f"{rewards_py}:{name}", timeout=timeout, **more))


def test_timeouts_are_counted_named_and_forgiven_when_an_answer_comes(rewards_py, capfd, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    reward = timed(rewards_py, "hang")
    metrics = []
    given = {"log_metric": lambda *logged: metrics.append(logged), "trainer_state": SimpleNamespace(global_step=6)}
    for _ in range(2):
        for _ in range(MOST_TIMEOUTS_IN_A_ROW - 1):
            assert reward(completions=["hang", "x"], **given) == [None, None]
        assert reward(completions=["x", "y"], **given) == [1.0, 1.0]
    assert reward.timeouts == 2 * (MOST_TIMEOUTS_IN_A_ROW - 1)
    assert metrics == [("rewards/hang/timeouts", value) for value in (2.0, 2.0, 0.0)] * 2
    said = capfd.readouterr().err
    assert f"reward `hang` ({rewards_py}:hang) took longer than its timeout of 0.5 s in step 7" in said
    assert "(4 so far)" in said


def test_too_many_timeouts_in_a_row_end_the_run(rewards_py):
    reward = timed(rewards_py, "hang", 0.2)
    for _ in range(MOST_TIMEOUTS_IN_A_ROW - 1):
        reward(completions=["hang"])
    with pytest.raises(WorkError, match=r"reward `hang` .* 3 times in a row"):
        reward(completions=["hang"])


def test_a_reward_that_fails_in_its_process_ends_the_run(rewards_py):
    with pytest.raises(WorkError, match=r"unlucky`: ValueError: no luck with it \(.*rewards.py:\d+\)"):
        timed(rewards_py, "unlucky", 20.0)(completions=["a"])


def test_async_rewards_with_a_timeout_run_at_once_where_the_trainer_awaits(rewards_py):
    specs = [RewardSpec(use=f"{rewards_py}:{name}", timeout=20.0) for name in ("Judge", "slow")]
    rewards = load_rewards(specs)
    assert all(map(inspect.iscoroutinefunction, rewards))

    async def score():
        return await asyncio.gather(*(reward(completions=["yes"]) for reward in rewards))

    assert asyncio.run(score()) == [[1.0], [3.0]]
    (blocking,) = load_rewards(specs[:1], awaits=False)
    assert not inspect.iscoroutinefunction(blocking)
    assert blocking(completions=["yes"]) == [1.0]
