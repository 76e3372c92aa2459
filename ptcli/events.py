"""What a guard saw in a run: made in the trainer, read by the supervisor. Written as JSON on the way between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """One entry of `events` in `status.json` and of `guards` in a line of `metrics.jsonl`."""

    guard: str
    """Key of the guard under `guards` in the recipe."""
    step: int
    """The step that it was seen at, counted from 1."""
    action: Literal["warn", "stop"]
    message: str
    """What was seen, what usually causes it and what to change."""
    value: float | None = None
    """The figure that was judged; None when it is no finite number."""

    def as_dict(self) -> dict[str, Any]:
        finite = self.value is not None and math.isfinite(self.value)
        return asdict(self) | {"value": self.value if finite else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Event:
        """Raises KeyError or TypeError for what no event is."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})
