"""The checkpoints of a run directory, and which of them are whole. Reads files; imports no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run directory, the latest first."""
    found = [path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint folder is named after."""
    name = _NAME.fullmatch(checkpoint.name)
    return int(name[1]) if name else -1


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """`trainer_state.json`; None when it is not there or cut short."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and isinstance(state.get("global_step"), int) else None
