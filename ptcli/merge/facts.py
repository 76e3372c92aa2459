"""What verification and serving files need to know of a merge, apart from the plan that brought it about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Facts:
    """A merge that has been written to a folder and is not published yet."""

    base: Path
    """Folder of the base: its config and weights."""
    base_name: str
    """The base as a person knows it: a hub id, or the folder."""
    adapter: Path
    """Folder of the adapter."""
    base_revision: str | None = None
    dtype: str | None = None
    """Type that all floating-point tensors were cast to, as `bfloat16`; None: each as in the base."""
    changed: frozenset[str] = frozenset()
    """Checkpoint names of the tensors that the adapter changes, those of `added` included."""
    added: frozenset[str] = frozenset()
    """Checkpoint names of tensors that the base has not: an untied head."""
    untied: bool = False
    """True where input and output embeddings were one tensor in the base and are two now."""
    vocab_size: int | None = None
    """Rows of the embeddings, where they are others than the base's."""
    streamed: bool = True
    """False where PEFT did the merge, with the whole model in memory."""
