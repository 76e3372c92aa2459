"""The nouns of a merge: where tensors lie, what is done to each, and what comes of it. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Progress = Callable[[str, int, int], None]
"""What is told while a merge goes on: the activity, bytes done, bytes in all (0: not known)."""

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "C64": 8,
}  # fmt: skip
"""safetensors' names of dtypes -> bytes an element."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file."""

    name: str
    dtype: str
    """As safetensors writes it: `BF16`."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """Byte of the file at which it begins."""
    nbytes: int


@dataclass(frozen=True)
class Expert:
    """One expert's part of a B that holds those of all, (outputs, rank x experts): columns index, index + count, ..."""

    index: int
    count: int
    first: int
    """Row of B at which the tensor begins: gate and up are one tensor in memory, and two in files."""


@dataclass(frozen=True)
class AddLora:
    """W += scale x B A, in float32 and rounded once to the weight's dtype: PEFT's default merge.

    A is (rank, inputs), B is (outputs, rank), W is (outputs, inputs).
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool = False
    """W is (inputs, outputs): Conv1D of GPT-2, and embeddings, whose rows are tokens."""
    rounded: bool = False
    """The change itself is rounded to the weight's dtype first, as PEFT does for embeddings and experts."""
    expert: Expert | None = None


@dataclass(frozen=True)
class AddBias:
    """bias += scale x the bias of lora_B (`lora_bias`)."""

    bias: Tensor
    scale: float


@dataclass(frozen=True)
class Replace:
    """The adapter holds the whole tensor (`modules_to_save`, biases), cast to the dtype of the output."""

    by: Tensor


@dataclass(frozen=True)
class ReplaceRows:
    """The adapter holds some rows of the tensor (`trainable_token_indices`)."""

    rows: tuple[int, ...]
    by: Tensor


Operation = AddLora | AddBias | Replace | ReplaceRows


def tensors_of(operation: Operation) -> tuple[Tensor, ...]:
    """The tensors of the adapter that an operation reads."""
    if isinstance(operation, AddLora):
        return operation.a, operation.b
    return (operation.bias,) if isinstance(operation, AddBias) else (operation.by,)


@dataclass(frozen=True)
class Output:
    """A tensor of the merged model: a tensor of the base, and what is done to it in order. Without operations, a copy.

    `source` is None for a tensor that the base does not have (a head that the adapter brings).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Tensor | None
    operations: tuple[Operation, ...] = ()

    @property
    def nbytes(self) -> int:
        size = ITEM_BYTES[self.dtype]
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class Shard:
    """A file of the merged model. The tensors lie in it in this order."""

    name: str
    """File name in the output folder."""
    tensors: tuple[Output, ...]
    like: Path | None = None
    """A file of the base with the very same header, which is then copied byte by byte; None: the header is new."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, without the header."""
        return sum(each.nbytes for each in self.tensors)


@dataclass(frozen=True)
class MergePlan:
    """What a merge reads, computes and writes. Made from headers by `ptcli.merge.plan.plan_merge`."""

    mode: Literal["stream", "handover", "consolidate"]
    """`stream`: computed here, tensor by tensor. `handover`: by PEFT, with the whole model in memory. `consolidate`:
    no merge, but the parts of a sharded checkpoint (`adapter`) put together."""
    reason: str
    """Why it is handed over; "" for a stream."""
    adapter: Path
    """Folder of the adapter."""
    adapter_config: Mapping[str, Any]
    base: Path
    """Folder of the base, on this machine."""
    base_name: str
    """What the base is called: a hub id, or the folder as it was given."""
    base_revision: str | None
    base_config: Mapping[str, Any]
    dtype: str | None
    """torch's name of the dtype that was asked for; None: as the base has it."""
    shards: tuple[Shard, ...]
    """Files to write. For a handover: what of the base's files can be told (PEFT writes its own)."""
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json that the merged model has otherwise than the base (`tie_word_embeddings`, `vocab_size`)."""
    notes: tuple[str, ...] = ()
    """What a person should know of this merge."""
    max_shard_bytes: int | None = None
    allow_missing: bool = False
    """The adapter may lack tensors that its config targets."""
    memory: int = 0
    """Bytes of memory that it takes, about."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors to write."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def outputs(self) -> Iterator[Output]:
        return (each for shard in self.shards for each in shard.tensors)


@dataclass(frozen=True)
class Verification:
    """What verification came to."""

    max_abs_diff: float | None
    """Largest difference of two logits; None where numbers could not be compared."""
    kl: float | None = None
    """Mean Kullback-Leibler divergence over the positions, in nats: of the merged model from the reference."""
    top1: float | None = None
    """Share of positions where both think the same token most likely."""
    relative: float | None = None
    """Root mean square of the difference, over that of the reference's logits around their mean. Of the positions the
    median: rounding may send a token to another expert, which says nothing of the weights."""
    way: str = "layer by layer"
    """How it was compared, or why it was not."""

    compared: bool = True
    """False where there is nothing to compare with, as for a consolidated checkpoint."""

    @property
    def complete(self) -> bool:
        """Whether all was looked at that there is to look at."""
        return self.max_abs_diff is not None or not self.compared

    def line(self) -> str:
        """What to tell a person."""
        if not self.compared:
            return f"verified: {self.way}"
        if self.max_abs_diff is None:
            return f"verified in structure only: {self.way}"
        return (
            f"verified {self.way}: largest difference of logits {self.max_abs_diff:.3g} (relative "
            f"{self.relative:.2g}), KL {self.kl:.2g}, top-1 agreement {self.top1:.1%}"
        )


@dataclass(frozen=True)
class Merged:
    """What came of a merge: `ptcli merge --json`."""

    out: str
    base: str
    tensors_merged: int
    tensors_copied: int
    verified: bool
    max_abs_diff: float | None
    seconds: float
    verification: str = ""
    """What verification says to a person; not in JSON."""

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "verification"}
