"""Runs that are stopped and go on, through the real command line, and what they must then be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
STEPS = 6
_TIMES = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "step_time",
    "train_loss",
    "total_flos",
)
"""What is measured anew by the part of a run that goes on."""
_DATA = {
    "sft": "builtin:arithmetic-messages",
    "dpo": "builtin:arithmetic-preference",
    "reward": "builtin:arithmetic-preference",
    "grpo": "builtin:arithmetic",
}


@dataclass(frozen=True)
class Stage:
    """A folder with a recipe."""

    folder: Path
    module: str = "ptcli"
    recipe: Path | None = None
    """Another than the folder's own."""

    def command(self, run: str, *options: str) -> list[str]:
        recipe = str(self.recipe or self.folder / "recipe.yaml")
        output = f"output_dir={self.folder / run}"
        return [sys.executable, "-m", self.module, "train", recipe, output, *options]

    def train(
        self, run: str, *options: str, code: int = 0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(run, *options), cwd=ROOT, capture_output=True, text=True, timeout=400,
            env=_environment() | dict(environment or {}),
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-4000:]
        return done

    def stop(self, run: str, when: Callable[[Path], bool], *signals: int, pause: float = 0.8) -> Stopped:
        """Start a run, send it signals as soon as something is so, and wait for its end."""
        process = psutil.Popen(
            self.command(run), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
        )
        try:
            deadline = time.monotonic() + 300
            while not when(self.folder / run):
                assert process.poll() is None, process.communicate()[1][-4000:]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            began = time.monotonic()
            for number, signum in enumerate(signals):
                time.sleep(pause if number else 0)
                process.send_signal(signum)
            _, err = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        return Stopped(process.returncode, err, time.monotonic() - began)


@dataclass(frozen=True)
class Stopped:
    code: int
    err: str
    seconds: float
    """From the first signal to the end."""


def stage(folder: Path, method: str = "sft", *, module: str = "ptcli", **sections: Any) -> Stage:
    """A recipe of a few steps that take a while, with dropout where there is an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    training = {
        "max_steps": STEPS, "logging_steps": 1, "save_steps": 100, "learning_rate": 3e-3, "max_length": 128,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "report_to": "none",
    }  # fmt: skip
    recipe: dict[str, Any] = {
        "method": method,
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": _DATA[method]}]},
        "launch": {"device": "cpu"},
        "callbacks": [{"use": "tests.slow_steps:Slowly"}],
    }
    recipe |= {name: value for name, value in sections.items() if name != "training"}
    recipe["training"] = {k: v for k, v in (training | sections.get("training", {})).items() if v is not None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Stage(folder, module)


def at_step(step: int) -> Callable[[Path], bool]:
    """True of a run that has finished that step, by its heartbeat."""
    return lambda run: heartbeat(run).get("step", 0) >= step


def saving(run: Path) -> bool:
    """True of a run that writes a checkpoint right now."""
    return heartbeat(run).get("phase") == "saving"


def heartbeat(run: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads((run / "logs" / "heartbeat.json").read_text()))
    except (OSError, ValueError):
        return {}


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def figures(run: Path) -> list[dict[str, Any]]:
    """Every figure of every logged step but those of the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in _TIMES} for row in rows]


def assert_identical(run: Path, uninterrupted: Path, steps: int = STEPS) -> None:
    """Every figure of every step, and every byte of the final weights."""
    assert [row["step"] for row in figures(run)] == list(range(1, steps + 1))
    assert_goes_on(run, uninterrupted, 0)


def assert_goes_on(run: Path, uninterrupted: Path, step: int) -> None:
    """The same for a run whose directory begins after a step."""
    found, wanted = figures(run), [row for row in figures(uninterrupted) if row["step"] > step]
    assert wanted
    assert found == wanted
    (weights,) = (path.name for path in uninterrupted.glob("*model.safetensors"))
    assert (run / weights).read_bytes() == (uninterrupted / weights).read_bytes()


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


USR1, TERM, INT = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT
