"""Input and output embeddings that are one tensor, and become two where the adapter changes only one of them.

PEFT 0.21.2 puts the change of one into both (with `modules_to_save` it unties them, too), and adds a change of the
tied pair (`ensure_weight_tying`) twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptcli.merge.base import Base
from ptcli.merge.model import AddLora, Operation, Output, Replace, ReplaceRows
from ptcli.merge.names import Names, is_head, is_input

_Operations = Mapping[str, Sequence[Operation]]
_OF_WRAPPED = ".base_layer."
"""In the key of a tensor that the adapter holds a copy of, because it changes it."""


@dataclass(frozen=True)
class Untied:
    """What becomes of the embeddings."""

    operations: _Operations
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    added: tuple[Output, ...] = ()
    """A head that the base's files do not have."""


def untie(base: Base, operations: _Operations, names: Names, config: Mapping[str, Any]) -> Untied:
    """Divide what is done to tied embeddings among the two, unless an adapter of that config treats them as one."""
    inputs = names.inputs()
    head = next((name for name in operations if is_head(name.removesuffix(".weight"))), None)
    if not base.tied or inputs is None or not (head or operations.get(inputs)):
        return Untied(operations)
    rest = {name: steps for name, steps in operations.items() if name != head}
    if _as_one(operations.get(inputs, ()), operations[head] if head else (), config):
        return Untied(rest | _both(inputs, names.head(), operations.get(inputs) or operations[str(head)]))
    return _divide(base, rest, inputs, names, None if head is None else operations[head])


def _as_one(inputs: Sequence[Operation], head: Sequence[Operation], config: Mapping[str, Any]) -> bool:
    """Whether an adapter treats the pair as one: it says so, or trains the same rows of both, or trains neither, and
    holds them only because the vocabulary has grown. PEFT trains rows of the head with those of the inputs."""
    if config.get("ensure_weight_tying"):
        return True
    saved = any(is_head(each) or is_input(each) for each in config.get("modules_to_save") or ())
    mine, its = ({each.rows for each in done if isinstance(each, ReplaceRows)} for done in (inputs, head))
    return its <= mine and not saved and not any(isinstance(each, AddLora) for each in (*inputs, *head))


def _both(inputs: str, head: str | None, done: Sequence[Operation]) -> dict[str, Sequence[Operation]]:
    """The same for both, where the files hold both."""
    return {inputs: done} | ({head: done} if head else {})


def _divide(
    base: Base, rest: dict[str, Sequence[Operation]], inputs: str, names: Names, done: Sequence[Operation] | None
) -> Untied:
    """`done`: to the head; None where the adapter does nothing to it."""
    head = names.head() or names.new_head()
    if done is None:
        done = [each for each in rest[inputs] if isinstance(each, Replace) and _OF_WRAPPED in each.by.name]
    note = (
        f"{inputs} and {head} were one tensor and are two now, since the adapter changes only one of them, or each in "
        "its own way (PEFT would put a LoRA change of one into both)"
    )
    changes = {"tie_word_embeddings": False}
    if names.head():
        return Untied(rest | {head: done}, changes, (note,))
    source = base.tensors[inputs]
    shape = next((each.by.shape for each in done if isinstance(each, Replace)), source.shape)
    return Untied(rest, changes, (note,), (Output(head, source.dtype, shape, source, tuple(done)),))
