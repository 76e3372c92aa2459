"""What a run says of itself while it trains: `logs/heartbeat.json` and `metrics.jsonl`, written by rank 0 alone.

The files are written without torch, so that the first heartbeat comes before the heavy imports; the TrainerCallback
that feeds them is `ptcli.train.callback.ProgressCallback`.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

Phase = Literal["loading", "training", "saving", "stopped", "finished"]
"""`stopped`: a checkpoint that was asked for is saved, and the training ended before its last step."""


SHORTEST_BEAT = 0.2
"""Seconds between two heartbeats of steps. Replacing a file costs up to a millisecond, too much for a step of 20."""


class Heartbeat:
    """`logs/heartbeat.json`: the phase, the last finished step and its figures.

    One small file, replaced by a rename, so that a reader always sees a whole one.
    """

    def __init__(self, output_dir: Path):
        self._path = output_dir / "logs" / "heartbeat.json"
        self._draft = self._path.with_suffix(".json.part")
        self._state: dict[str, Any] = dict.fromkeys(("phase", "step", "total", "time", "tokens", "loss", "reward"))
        self._state |= {"phase": "loading", "step": 0}
        self._written = -math.inf
        self._lock = threading.Lock()
        self._late: threading.Timer | None = None
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def tick(self, step: int) -> None:
        """Note a finished step. Steps that follow each other faster than SHORTEST_BEAT share a heartbeat."""
        self._state["step"] = step
        early = self._written + SHORTEST_BEAT - time.monotonic()
        if early <= 0:
            self.beat()
        elif self._late is None:  # without it, nobody would hear of this step if the next one hangs or kills us
            self._late = threading.Timer(early, self._beat_late)
            self._late.daemon = True
            self._late.start()

    def beat(self, **changes: Any) -> None:
        """Take over the changes (`phase`, `step`, `total`, `tokens`, `loss`, `reward`, `events`) and write the file."""
        with self._lock:
            self._cancel_late()
            self._state |= changes
            self._state["time"] = time.time()
            self._draft.write_text(json.dumps(self._state), encoding="utf-8")
            os.replace(self._draft, self._path)
            self._written = time.monotonic()

    def _beat_late(self) -> None:
        with suppress(OSError):  # a disk that refuses is told of by the next regular beat
            self.beat()

    def _cancel_late(self) -> None:
        late, self._late = self._late, None
        if late:
            late.cancel()

    def note(self, logs: Mapping[str, Any]) -> None:
        """Take over the figures of a logged step, for the next beat."""
        for name in ("loss", "reward"):
            if name in logs:
                self._state[name] = plain(logs[name])
        if "num_tokens" in logs:
            self._state["tokens"] = int(logs["num_tokens"])


class Metrics:
    """`metrics.jsonl`: one object a logged step, with `step` and TRL's own names.

    What is logged again for the same step (evaluation, the summary at the end) is merged into its line. A number that
    is not finite becomes null: JSON has no NaN.
    """

    def __init__(self, output_dir: Path):
        self._path = output_dir / "metrics.jsonl"
        self._file: int | None = None
        self._start = 0
        self._row: dict[str, Any] = {}

    def open(self, step: int) -> None:
        """Begin after `step`: the lines of an earlier part of the run up to it stay, later ones are trained again."""
        kept = [line for line in self._read_lines() if step_of(line) <= step] if step else []
        self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = os.open(self._path, os.O_WRONLY)
        self._start = os.lseek(self._file, 0, os.SEEK_END)
        self._row = {}

    def log(self, step: int, logs: Mapping[str, Any]) -> None:
        """Append the logs of a step, or merge them into its line. Readable by others at once."""
        if self._file is None:
            self.open(0)
        if self._row.get("step") != step:
            self._start = os.lseek(self._file, 0, os.SEEK_END)  # type: ignore[arg-type]
            self._row = {"step": step}
        self._row |= {key: plain(value) for key, value in logs.items()}
        line = (json.dumps(self._row, allow_nan=False) + "\n").encode()
        os.pwrite(self._file, line, self._start)  # type: ignore[arg-type]
        os.ftruncate(self._file, self._start + len(line))  # type: ignore[arg-type]

    def _read_lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []


def read_rows(output_dir: Path, step: int) -> list[dict[str, Any]]:
    """What `metrics.jsonl` has of the steps up to `step`."""
    path = output_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if step_of(line) <= step]


def step_of(line: str) -> float:
    """The step of a line; infinite for one that was cut short, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def plain(value: Any) -> Any:
    """The value as JSON has it: numbers finite or null, containers by their items, anything else as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
