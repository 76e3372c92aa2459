"""`ptcli train` as a user runs it: real accelerate, real TRL, a real vLLM server, on this machine's CPU."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.smoke_runs import assert_finished, metrics_of, processes_of


def test_demo_recipe(root: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    """The demo, a fifth of it: synced weights, finished state, machine-readable result, nothing left behind."""
    run = tmp_path / "run"
    result = ptcli_process("train", root / "recipes/demo.yaml", "training.max_steps=20", f"output_dir={run}", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads((run / "status.json").read_text())
    assert_finished(run)
    metrics = [line for line in metrics_of(run) if "reward" in line]
    assert [line["step"] for line in metrics] == list(range(1, 21))
    assert max(line["sampling/sampling_logp_difference/max"] for line in metrics) < 1e-3
    plan = json.loads((run / "plan.json").read_text())
    port = urlsplit(plan["server"]["url"]).port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_crash_of_the_trainer(root: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    """A reward that raises ends the run with exit code 1, the cause in status.json and the error on the terminal."""
    code = "def score(completions, trainer_state, **kwargs):\n    if trainer_state.global_step:\n"
    code += "        raise RuntimeError('no such answer')\n    return [1.0] * len(completions)\n"
    (tmp_path / "bad.py").write_text(code)
    run = tmp_path / "run"
    result = ptcli_process(
        "train", root / "recipes/grpo.yaml", "--smoke", f"output_dir={run}", f"rewards.0.use={tmp_path}/bad.py:score",
        "rollouts.backend=transformers",
    )  # fmt: skip
    assert result.code == 1, result.err
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert "no such answer" in status["cause"]
    assert "no such answer" in result.err
    assert processes_of(run) == []


def test_a_second_run_is_refused_and_overwritten_on_request(
    root: Path, tmp_path: Path, ptcli_process: Callable
) -> None:
    recipe, run = root / "recipes/sft.yaml", tmp_path / "run"
    arguments = ("train", recipe, "launch.device=cpu", "model.path=builtin:tiny", "training.bf16=false")
    data = ("data.train.0.path=builtin:arithmetic-messages", "data.eval=null", "training.eval_strategy=no")
    few = ("training.max_steps=1", "training.save_strategy=no", "training.max_length=256", f"output_dir={run}")
    assert ptcli_process(*arguments, *data, *few).code == 0
    before = (run / "status.json").read_text()
    refused = ptcli_process(*arguments, *data, *few)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (run / "status.json").read_text() == before
    assert ptcli_process(*arguments, *data, *few, "--overwrite").code == 0
    assert (run / "status.json").read_text() != before


def test_a_result_that_nobody_reads_and_no_standard_streams(root: Path, tmp_path: Path) -> None:
    """The exit code is that of the run, also when stdout is a pipe without a reader, or there is none at all."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{method: sft, model: {path: 'builtin:tiny'}, data: {train: [{path: 'builtin:arithmetic-messages'}]}, "
        "launch: {device: cpu}, training: {max_steps: 1, save_strategy: 'no', max_length: 128}}"
    )
    command = [sys.executable, "-m", "ptcli", "train", recipe]
    for number, redirection in enumerate(('| true; exit "${PIPESTATUS[0]}"', "<&- >&- 2>&-")):
        run = tmp_path / f"run{number}"
        shell = f"{shlex.join([*map(str, command), f'output_dir={run}'])} {redirection}"
        done = subprocess.run(["bash", "-c", shell], cwd=root, stderr=subprocess.PIPE, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_reward_that_calls_exit_has_not_finished_the_run(root: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    code = "calls = []\ndef score(completions, **kwargs):\n    calls.append(1)\n"
    (tmp_path / "bad.py").write_text(
        code + "    exit(0) if len(calls) > 2 else None\n    return [1.0] * len(completions)\n"
    )
    run = tmp_path / "run"
    result = ptcli_process(
        "train", root / "recipes/grpo.yaml", "--smoke", f"output_dir={run}", f"rewards.0.use={tmp_path}/bad.py:score",
        "rollouts.backend=transformers",
    )  # fmt: skip
    assert result.code == 1, result.err
    assert "SystemExit" in json.loads((run / "status.json").read_text())["cause"]
