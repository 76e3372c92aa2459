"""What the row rules know of a run, worked out once, and how a row is laid before them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ptcli.data.model import Context, Row
from ptcli.data.rules.shapes import OPTIONAL, Shape, accepted
from ptcli.data.rules.table import RULES, prompts, rewarded
from ptcli.methods import DataTraits, Method

ROLES = frozenset(("system", "user", "assistant", "tool"))
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What trainers pass to reward functions by keyword."""
_NOT_PASSED = ("prompt", "completion", "completion_ids", "image", "images")


@dataclass(frozen=True)
class Facts:
    """What the rules need of a Context, at hand."""

    context: Context

    @cached_property
    def method(self) -> Method:
        return self.context.method

    @cached_property
    def traits(self) -> DataTraits:
        return self.context.method.data

    @cached_property
    def text_field(self) -> str:
        return str(self.context.argument("dataset_text_field", "text")) if self.traits.text_field else "text"

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return accepted(self.method, self.text_field)

    @cached_property
    def served(self) -> frozenset[str]:
        """Ids of the rules that serve the method."""
        return frozenset(id for id, rule in RULES.items() if self.method.name in rule.methods)

    @cached_property
    def rewarded(self) -> bool:
        """True when the columns of a row are passed to reward functions."""
        return rewarded(self.method)

    @cached_property
    def reward_columns(self) -> tuple[str, ...]:
        """Columns that reward functions name; empty when they are not known."""
        names = (name for need in self.context.rewards for name in (*need.required, *need.named))
        return tuple(dict.fromkeys(names))

    @cached_property
    def label_form(self) -> str:
        """The form of rows with labels; empty when the method has none."""
        forms = ("unpaired", "steps")
        return next((shape.form for shape in self.shapes if shape.form in forms), "")

    @cached_property
    def repeats_prompts(self) -> bool:
        """True when prompts are all that is read of a row."""
        return prompts(self.method)

    def passed(self, column: str) -> bool:
        """Whether reward functions are handed the column."""
        return self.rewarded and column not in _NOT_PASSED


@dataclass
class Seen:
    """A row as the rules see it."""

    row: Row
    facts: Facts
    shape: Shape | None
    """What the trainer reads of it; None where it has no accepted set of columns."""
    columns: tuple[str, ...]
    """Its sorted column names."""
    read: tuple[str, ...]
    """Columns that enter training, in a fixed order."""
    roles: dict[str, list[Any]] = field(default_factory=dict)
    """Column -> roles of its messages, for lists of objects with known roles only."""

    @property
    def form(self) -> str:
        return self.shape.form if self.shape else ""


def read_columns(shape: Shape | None, columns: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
    """The columns whose values are what the trainer reads of a row, but for labels: equal ones make rows duplicates."""
    if shape is None:
        return columns
    names = dict.fromkeys((*shape.required, *OPTIONAL, "completion_mask" if shape.form == "tokens" else ""))
    ignored: set[str] = {"label"}
    if not facts.traits.tools:
        ignored.add("tools")
    if not facts.traits.template_kwargs:
        ignored.add("chat_template_kwargs")
    if shape.form not in ("pairs", "prompt", "prompt-completion", "unpaired", "steps"):
        ignored.add("prompt")
    return tuple(name for name in names if name in columns and name not in ignored)
