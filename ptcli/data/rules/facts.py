"""What the row rules know of a run, worked out once, and how a row is laid before them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ptcli.data.model import Context, Row
from ptcli.data.rules.shapes import CHAT_OR_TEXT, OPTIONAL, Shape, accepted
from ptcli.data.rules.table import RULES, answers, prompts, rewarded
from ptcli.methods import DataTraits, Method

Message = dict[str, Any]

ROLES = frozenset(("system", "user", "assistant", "tool"))
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What trainers pass to reward functions by keyword."""


@dataclass(frozen=True)
class Facts:
    """What the rules need of a Context, at hand."""

    context: Context
    total: int | None = None
    """Rows of the split, where only a sample of them is looked at."""

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
    def train(self) -> bool:
        return self.context.split == "train"

    @cached_property
    def answers(self) -> bool:
        """True when the rows hold the answers that are trained."""
        return answers(self.method)

    @cached_property
    def rewarded(self) -> bool:
        """True when the columns of a row are passed to reward functions."""
        return rewarded(self.method)

    @cached_property
    def reward_columns(self) -> frozenset[str]:
        """Columns that reward functions name; empty when they are not known."""
        return frozenset(name for need in self.context.rewards for name in (*need.required, *need.named))

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
        return self.rewarded and column not in self.traits.withheld


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from the names of a row's columns alone."""

    columns: tuple[str, ...]
    """Sorted."""
    shape: Shape | None
    """What the trainer reads of the row; None where it has no accepted set of columns."""
    read: tuple[str, ...]
    """Columns whose values make rows duplicates when they are equal: what is read, but for labels; the prompt first, as
    files have it."""
    values: tuple[str, ...]
    """Columns with text or chats that are trained on, or prompts."""
    explicit: bool
    """True where the row has a `prompt` column."""

    @property
    def form(self) -> str:
        return self.shape.form if self.shape else ""


def plan_of(columns: tuple[str, ...], facts: Facts) -> Plan:
    """How rows with these columns (sorted) are read."""
    present = set(columns)
    shape = next((shape for shape in facts.shapes if present.issuperset(shape.required)), None)
    values: tuple[str, ...] = ()
    if shape is not None and shape.form != "tokens":
        values = tuple(name for name in shape.required if name not in ("label", "labels"))
        if shape.form == "pairs" and "prompt" in present:
            values = ("prompt", *values)
    return Plan(columns, shape, _read(shape, columns, facts), values, "prompt" in present)


def _read(shape: Shape | None, columns: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
    if shape is None:
        return columns
    ignored: set[str] = {"label"}
    if not facts.traits.tools:
        ignored.add("tools")
    if not facts.traits.template_kwargs:
        ignored.add("chat_template_kwargs")
    if shape.form in ("messages", "sharegpt", "text", "tokens"):
        ignored.add("prompt")
    names = dict.fromkeys((*shape.required, *OPTIONAL, *(("completion_mask",) if shape.form == "tokens" else ())))
    read = [name for name in names if name in columns and name not in ignored]
    return tuple(sorted(read, key=lambda name: name != "prompt"))


class Seen:
    """A row as the rules see it."""

    __slots__ = ("chats", "facts", "plan", "roles", "row", "split", "texts")

    def __init__(self, row: Row, plan: Plan, facts: Facts) -> None:
        self.row = row
        self.plan = plan
        self.facts = facts
        self.chats: dict[str, list[Message]] = {}
        """Column -> its messages, for values that are lists of objects and nothing else."""
        self.roles: dict[str, list[str]] = {}
        """Column -> the roles of its messages, where all are known; `developer` counts as system."""
        self.texts: list[tuple[str, str]] = []
        """(column, text) for every text that is trained on or a prompt; of chats, the contents of the messages."""
        self.split: tuple[Any, Any, Any] | None = None
        """Prompt, chosen and rejected as the trainer has them, where it cuts the prompt off; both texts or chats."""
        for name in plan.values:
            value = row[name]
            if isinstance(value, str):
                self.texts.append((name, value))
            elif isinstance(value, list) and value:
                self._chat(name, value)
        if plan.form == "pairs" and self._implicit():
            self.split = extract_prompt(row["chosen"], row["rejected"])

    def _chat(self, name: str, value: list[Any]) -> None:
        if not all(isinstance(message, dict) for message in value):
            self.texts += [(name, step) for step in value if isinstance(step, str)]
            return
        if self.plan.form == "sharegpt":
            value = [_from_sharegpt(message) for message in value]
        self.chats[name] = value
        roles = []
        for message in value:
            role = message.get("role")
            if isinstance(role, str):
                roles.append("system" if role == "developer" else role)
            content = message.get("content")
            if isinstance(content, str):
                self.texts.append((name, content))
            elif isinstance(content, list):
                self.texts += [(name, text) for text in part_texts(content)]
        if len(roles) == len(value) and ROLES.issuperset(roles):
            self.roles[name] = roles

    def _implicit(self) -> bool:
        """Whether the trainer cuts the prompt off this pair, both sides of which are text or chats."""
        if self.facts.traits.implicit_prompt == "kept":
            return False
        both_chats = "chosen" in self.chats and "rejected" in self.chats
        both_texts = isinstance(self.row["chosen"], str) and isinstance(self.row["rejected"], str)
        if not (both_chats or both_texts):
            return False
        if not self.plan.explicit:
            return True
        return both_chats and isinstance(self.row["prompt"], str) and self.beside_chats

    @property
    def beside_chats(self) -> bool:
        """Whether a text `prompt` may stand beside chats, because it is cut off them anyway."""
        return self.facts.traits.implicit_prompt == "row by row"

    def text_answers(self) -> list[tuple[str, str]]:
        """(column, text) of the answers of a row that gives its prompt as text."""
        names = ("completion", "chosen", "rejected")
        return [
            (name, self.row[name]) for name in self.plan.values if name in names and isinstance(self.row[name], str)
        ]


def extract_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """TRL's `extract_prompt`, which takes texts letter by letter and chats message by message.

    Like there, a space before the first difference goes to the answers (at the very beginning, by way of an index of
    -1, almost all of `chosen` becomes the prompt), and without a difference all but the last common element does.
    """
    at, shorter = common(chosen, rejected), min(len(chosen), len(rejected))
    if at == shorter:
        at = max(shorter - 1, 0)
    elif chosen[at - 1] == " ":
        at -= 1
    return chosen[:at], chosen[at:], rejected[at:]


def common(one: Any, other: Any) -> int:
    """How many elements two texts or lists share at their beginning."""
    low, high = 0, min(len(one), len(other))
    if not isinstance(one, str):
        return next((at for at in range(high) if one[at] != other[at]), high)
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def part_texts(parts: list[Any]) -> list[str]:
    """The texts among a message's parts."""
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return [text for text in texts if isinstance(text, str)]


def _from_sharegpt(message: Message) -> Message:
    """TRL's `maybe_convert_to_chatml`: keys are renamed, roles stay as they are."""
    renamed = {"from": "role", "value": "content"}
    return {renamed.get(key, key): value for key, value in message.items()}


TEXT_OR_CHAT = frozenset(CHAT_OR_TEXT)
