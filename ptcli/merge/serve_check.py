"""`--serve-check`: the merged folder in a real vLLM, whose greedy completion must be the one that transformers writes.

In a process of its own, offline, which is ended with all its children.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ptcli.errors import WorkError
from ptcli.merge.model import MergePlan, Progress
from ptcli.plan.model import Step
from ptcli.rollouts.command import engine_environment
from ptcli.run.logs import first_error, tail
from ptcli.run.processes import Processes, adopt_orphans
from ptcli.run.signals import Signals

LIMIT = 900.0
"""Seconds that loading and a few tokens may take."""
_TICK = 0.2


def check_serving(plan: MergePlan, folder: Path, progress: Progress) -> None:
    """Load the folder in vLLM and compare a greedy completion with transformers'.

    Raises:
        WorkError: the model writes nothing, vLLM is not installed or does not load it, or the completions differ.
        Interrupted: on a signal; nothing is left behind.
    """
    if str(plan.adapter_config.get("task_type")) in ("SEQ_CLS", "TOKEN_CLS"):
        raise WorkError("--serve-check compares what a model writes, and this one writes nothing: leave it out")
    built = _vllm_version()
    if built is None:
        raise WorkError("--serve-check needs vLLM, which is not installed: it is the extra `vllm`, or `cpu-rollouts`")
    with tempfile.TemporaryDirectory(prefix="ptcli-serve-check-") as place:
        result, log = Path(place) / "result.json", Path(place) / "vllm.log"
        code = _run(folder, result, log, progress, on_cpu=built.endswith("+cpu"))
        if code or not result.exists():
            last = "\n".join(tail(log))
            raise WorkError(f"vLLM cannot serve the merged model: {first_error(log) or f'exit code {code}'}\n{last}")
        found = json.loads(result.read_text(encoding="utf-8"))
    if not found["same"]:
        raise WorkError(
            f"vLLM completes {found['prompt']!r} with {found['served']!r}, of which transformers thinks token "
            f"{found['worst']} {found['behind']:.2g} nats less likely than its own"
        )


def _run(folder: Path, result: Path, log: Path, progress: Progress, *, on_cpu: bool) -> int:
    argv = (sys.executable, "-m", "ptcli.merge.serve_child", str(folder), str(result))
    env = {"HF_HUB_OFFLINE": "1"} | engine_environment("cpu" if on_cpu else "cuda", {})
    end = time.monotonic() + LIMIT
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        group = processes.start(Step("check", 0, argv, env, ()), log)
        while (code := group.poll()) is None:
            signals.check()
            processes.record()
            progress("serving it with vLLM", 0, 0)
            if time.monotonic() > end:
                raise WorkError(f"vLLM did not complete a prompt within {LIMIT:.0f} s")
            time.sleep(_TICK)
    return code


def _vllm_version() -> str | None:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return None
