"""`ptcli serve-rollouts` in one terminal, `ptcli train` with `rollouts.url` in another, on this machine's CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ptcli.builtin import MODEL
from ptcli.plan.model import Server
from tests.rollouts_server import largest_difference_of


@pytest.mark.timeout(600)
def test_a_server_of_its_own(root: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    """It says where it is, serves a run, outlives it, and goes with all its processes on Ctrl-C."""
    recipe, stderr = str(root / "recipes/demo.yaml"), tmp_path / "stderr"
    with stderr.open("wb") as file:
        server = psutil.Popen(
            [sys.executable, "-m", "ptcli", "serve-rollouts", recipe], stdout=file, stderr=file, cwd=root,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, start_new_session=True,
        )  # fmt: skip
    try:
        url = _url(server, stderr)
        run = tmp_path / "run"
        trained = ptcli_process(
            "train", recipe, f"rollouts.url={url}", "training.max_steps=3", f"output_dir={run}", "--json"
        )
        assert trained.code == 0, trained.err
        assert json.loads(trained.out)["step"] == 3
        assert not (run / "logs" / "rollouts.log").exists()
        assert server.poll() is None
        _assert_serves_what_was_trained(run)
        processes = server.children(recursive=True)
        assert len(processes) > 1
        server.send_signal(signal.SIGINT)
        assert server.wait(15) == 130
        assert [p for p in processes if p.is_running()] == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(30)


def _assert_serves_what_was_trained(run: Path) -> None:
    """After the last sync, log-probabilities of the server and of the saved model are the same; before training they
    were not."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    server = Server(**json.loads((run / "plan.json").read_text())["server"])
    tokenizer = AutoTokenizer.from_pretrained(run)
    differences = [
        largest_difference_of(server, AutoModelForCausalLM.from_pretrained(path, dtype="float32"), tokenizer)
        for path in (run, MODEL)
    ]
    assert differences[0] < 1e-4 < differences[1], differences


def _url(server: subprocess.Popen[bytes], stderr: Path) -> str:
    deadline = time.monotonic() + 240
    while not (found := re.search(r"rollouts\.url=(\S+)", stderr.read_text())):
        assert server.poll() is None, stderr.read_text()[-3000:]
        assert time.monotonic() < deadline, stderr.read_text()[-3000:]
        time.sleep(0.1)
    return found[1]
