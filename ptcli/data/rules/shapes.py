"""The sets of columns that methods accept, and which of them a row has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ptcli.methods import METHODS, DatasetType, Method

Form = Literal["tokens", "prompt-completion", "messages", "sharegpt", "text", "unpaired", "pairs", "prompt", "steps"]

CHAT_OR_TEXT = ("prompt", "completion", "chosen", "rejected")
FORMAT_COLUMNS = (*CHAT_OR_TEXT, "messages")
"""What TRL's `is_conversational` looks at, one of them at random."""

OPTIONAL = ("prompt", "tools", "chat_template_kwargs", "image", "images")
"""Columns outside an accepted set that change what is trained."""


@dataclass(frozen=True)
class Shape:
    """A set of columns that a method accepts."""

    form: Form
    required: tuple[str, ...]
    family: DatasetType | None = None


_FAMILIES: Mapping[DatasetType, tuple[tuple[Form, tuple[str, ...]], ...]] = MappingProxyType(
    {
        DatasetType.PREFERENCE: (("pairs", ("chosen", "rejected")),),
        DatasetType.UNPAIRED_PREFERENCE: (("unpaired", ("prompt", "completion", "label")),),
        DatasetType.PROMPT_COMPLETION: (("prompt-completion", ("prompt", "completion")),),
        DatasetType.STEPWISE_SUPERVISION: (("steps", ("prompt", "completions", "labels")),),
        DatasetType.LANGUAGE_MODELING: (("messages", ("messages",)), ("text", ("text",))),
        DatasetType.PROMPT_ONLY: (("prompt", ("prompt",)),),
    }
)
"""Family -> its forms; the families with more columns first, so that a part of one is not taken for another."""


def accepted(method: Method, text_field: str = "text") -> tuple[Shape, ...]:
    """The sets of columns that a method takes, in the order in which its trainer looks for them."""
    shapes = [Shape("tokens", columns) for columns in method.data.token_columns]
    for family, forms in _FAMILIES.items():
        if family in method.datasets:
            shapes += [Shape(form, required, family) for form, required in forms]
    if method.data.sharegpt:
        shapes.append(Shape("sharegpt", ("conversations",), DatasetType.LANGUAGE_MODELING))
    if not method.data.text:
        shapes = [shape for shape in shapes if shape.form != "text"]
    if method.data.text_field:
        shapes = [Shape("text", (text_field,), shape.family) if shape.form == "text" else shape for shape in shapes]
    return tuple(shapes)


def shapes_of(columns: Iterable[str], shapes: Iterable[Shape]) -> list[Shape]:
    """Those of the shapes whose columns are all there, the one that the trainer reads first."""
    present = set(columns)
    return [shape for shape in shapes if present.issuperset(shape.required)]


def foreign_families(columns: Iterable[str], method: Method) -> list[tuple[DatasetType, tuple[str, ...]]]:
    """Families of other methods whose columns are all there."""
    present = set(columns)
    found = []
    for family, forms in _FAMILIES.items():
        for _, required in forms:
            if present.issuperset(required) and not (family in method.datasets and _taken(method, required)):
                found.append((family, required))
    return found


def _taken(method: Method, required: tuple[str, ...]) -> bool:
    return any(shape.required == required for shape in accepted(method))


def takers(required: tuple[str, ...]) -> list[str]:
    """Methods that accept exactly this set of columns."""
    return [name for name, method in METHODS.items() if _taken(method, required)]
