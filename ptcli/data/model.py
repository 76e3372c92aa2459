"""The nouns of the data checks: what is known of a run, what is seen in rows, what is found. Light: no library."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ptcli.methods import Method

Row = dict[str, Any]
"""One row as its file has it, after the entry's transforms: JSON values only."""

Severity = Literal["error", "warning"]

Kind = Literal["null", "str", "bool", "int", "float", "dict", "empty list", "chat", "list", "other"]
"""What a value is. `chat`: a list whose first element is an object; `list`: any other list that is not empty. `other`:
what JSON has not, as dates and bytes of other formats."""

MOST_ROWS = 5
"""Row numbers that a finding names at most."""
OTHER_COLUMNS = ("…",)
MOST_TALLIES = 512
"""Variants of rules that are told apart, all together: garbage may have a new one in every row."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth a look, in a set of rows."""

    rule: str
    severity: Severity
    message: str
    """What is wrong, in one sentence without a full stop."""
    count: int = 1
    """Rows concerned; of rules about the whole set, all of them or 1."""
    rows: tuple[int, ...] = ()
    """Zero-based numbers of the first few, counted over the entries of the split, as they are in the files."""
    fix: str = ""
    """What to do; where a transform mends it, the line to paste into the recipe."""
    share: float = 0.0
    """`count` as a share of the rows looked at, 0 to 1."""
    split: str = "train"


@dataclass(frozen=True)
class RewardNeeds:
    """What a reward function asks for by name."""

    name: str
    required: tuple[str, ...]
    """Parameters without a default, besides what the trainer itself passes."""
    named: tuple[str, ...]
    """All its named parameters, besides what the trainer itself passes."""


@dataclass(frozen=True)
class Context:
    """What the rules know besides the rows."""

    method: Method
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Every argument of the method's TRL config, the recipe's or TRL's default."""
    split: str = "train"
    """`train`, `eval`, or `eval.NAME`."""
    world: int = 1
    """Trainer processes."""
    prompts_per_generation: int | None = None
    """Prompts of one generation batch, for methods that know it; fewer rows mean zero steps."""
    rewards: tuple[RewardNeeds, ...] = ()
    tokenizer: bool = False
    """True when the token rules run too, which then decide what needs a tokenizer."""
    vision: bool | None = None
    """Whether the model takes images; None when it is not known."""
    shuffled: bool = False
    """True when the recipe shuffles every entry, so that the order of the file does not matter."""
    has_eval: bool = False

    def argument(self, name: str, fallback: Any = None) -> Any:
        value = self.arguments.get(name)
        return fallback if value is None else value


@dataclass(frozen=True)
class Hit:
    """What a rule says of one row."""

    rule: str
    severity: Severity
    detail: str
    """The finding's message, in the words of this row."""
    fix: str = ""
    variant: str = ""
    """Variants of one rule are tallied apart, and become findings of their own."""


@dataclass
class Tally:
    """The hits of one kind: how many rows, the first few, and what was said of the first."""

    count: int
    rows: list[int]
    detail: str
    fix: str = ""


@dataclass
class Profile:
    """What was seen in a run of rows. Picklable; the profiles of consecutive runs are merged in their order."""

    rows: int = 0
    columns: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Sorted column names of a row -> rows with exactly these (at most 256 different; others under OTHER_COLUMNS)."""
    first_columns: dict[tuple[str, ...], int] = field(default_factory=dict)
    """Key of `columns` -> the first row with it."""
    kinds: dict[str, Counter[Kind]] = field(default_factory=dict)
    """Column -> kinds of its values -> rows."""
    first: dict[tuple[str, Kind], int] = field(default_factory=dict)
    """(column, kind) -> the first row with it."""
    hits: dict[tuple[str, Severity, str], Tally] = field(default_factory=dict)
    """(rule, severity, variant) -> its tally; variants of one rule are findings of their own."""
    leaves: dict[str, dict[str, int]] = field(default_factory=dict)
    """Path of a leaf (`answer`, `messages[].tool_calls[].function.arguments.x`) -> JSON type -> first row with it."""
    labels: bytearray = field(default_factory=bytearray)
    """For methods with a label: one byte a row, 0 or 1, or 2 for anything else."""
    digests: array[int] = field(default_factory=lambda: array("Q"))
    """xxh3_64 of what the trainer reads of each row, for duplicates; not all rows where there are too many."""
    counts: Counter[str] = field(default_factory=Counter)
    """Whatever else rules count. `renumbered`: row numbers are not those of `labels` and `digests`."""
    ends: tuple[int, int] | None = None
    """For methods that pair a completion with its neighbour's prompt: digests of the first and the last completion."""

    def hit(self, hit: Hit, row: int) -> None:
        key = (hit.rule, hit.severity, hit.variant)
        if key not in self.hits and len(self.hits) >= MOST_TALLIES:
            key = (hit.rule, hit.severity, "")
        tally = self.hits.get(key)
        if tally is None:
            self.hits[key] = Tally(1, [row], hit.detail, hit.fix)
            return
        tally.count += 1
        if len(tally.rows) < MOST_ROWS and tally.rows[-1] != row:
            tally.rows.append(row)


@dataclass(frozen=True)
class Report:
    """What `ptcli validate-data` says."""

    method: str
    rows: int
    """Training rows; an estimate with `--sample`."""
    checked: int
    """Rows that the structure rules saw, all splits together."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What was not looked at, and why."""
    tokenized: int = 0
    summary: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)
