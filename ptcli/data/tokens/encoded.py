"""What a row becomes as tokens: the sequences that the trainer reads of it, and what is trained of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ptcli.data.model import Hit

Chat = Sequence[dict[str, Any]]
Ids = list[int]


class Unreadable(Exception):
    """The row is not what the method reads; what is wrong with it is for the structure rules to say."""


class TemplateFault(Exception):
    """The chat template raised. The message says what, in one line."""


class NoTemplate(TemplateFault):
    """There is no chat template."""


@dataclass(slots=True)
class Sample:
    """One sequence as the trainer reads it."""

    ids: Ids
    start: int
    """Where the trained tokens begin; `len(ids)` where none is."""
    name: str = ""
    """`chosen`, `rejected` and the like, where a row gives more than one."""
    mask: list[bool] | None = None
    """Which tokens are trained, where that is not all from `start` on."""
    cut: Ids = field(default_factory=list)
    """Tokens that the trainer's length limit takes away."""
    cut_at: int = 0
    """Where in `ids` they would be."""
    lost: int = 0
    """How many of `cut` would have been trained."""

    @property
    def length(self) -> int:
        """Tokens before anything was cut."""
        return len(self.ids) + len(self.cut)

    @property
    def trained(self) -> int:
        """Tokens that are trained."""
        return len(self.ids) - self.start if self.mask is None else sum(self.mask)

    @property
    def flags(self) -> list[bool]:
        """For every token, whether it is trained."""
        return [place >= self.start for place in range(len(self.ids))] if self.mask is None else self.mask


@dataclass(slots=True)
class Draft:
    """A row rendered, before it is tokenised."""

    texts: list[str]
    """What is to be tokenised."""
    shortened: bool = False
    """Whether the texts are only the beginning of very long ones."""
    special: bool = False
    """Whether the tokenizer adds its special tokens (BOS and the like)."""
    chats: list[tuple[Chat, str]] = field(default_factory=list)
    """Chats that the trainer reads in whole, and what the template made of them."""
    plain: list[str] = field(default_factory=list)
    """Text of the row outside of chats, in which no special token is meant to be."""
    tools: Any = None
    """The tools that the chats were rendered with."""
    data: Any = None
    """Whatever the encoder needs to put the tokens together."""


@dataclass(slots=True)
class Encoded:
    """A row as tokens."""

    samples: tuple[Sample, ...]
    dropped: str = ""
    """Why the trainer leaves the row out; "" when it does not."""
    hits: list[Hit] = field(default_factory=list)
    """What went wrong on the way, as the encoder itself sees it."""


def cut_sample(sample: Sample, limit: int | None, *, keep: str = "start") -> Sample:
    """The sample after truncation to `limit` tokens, of which the first (`start`) or the last (`end`) are kept.

    As `ids[:limit]` and `ids[-limit:]`, of which the latter keeps everything for a limit of 0.
    """
    if limit is None or len(sample.ids) <= limit:
        return sample
    whole, ids = sample.flags, sample.ids
    keeps_start = keep == "start"
    kept = slice(None, limit) if keeps_start else slice(-limit, None)
    flags, rest = whole[kept], ids[limit:] if keeps_start else ids[:-limit]
    mask = None if sample.mask is None else flags
    start = min(sample.start, limit) if keeps_start else max(sample.start - len(rest), 0)
    lost = sum(whole) - sum(flags)
    return Sample(ids[kept], start, sample.name, mask, rest, limit if keeps_start else 0, lost)
