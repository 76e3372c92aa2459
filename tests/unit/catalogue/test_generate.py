"""How the catalogue is made, on classes of the test's own: no library is imported."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any, Literal, Optional, Union

import pytest

from ptcli.recipe.generate_catalogue import any_of, dataclass_fields, one_line, render, schema_of, share


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (int, {"type": "integer"}),
        (float | None, {"type": ["number", "null"]}),
        (Optional[Union[str, dict]], {"type": ["string", "object", "null"]}),  # noqa: UP007, UP045
        (dict[str, Any] | str | None, {"type": ["object", "string", "null"]}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (Literal["a"] | None, {"enum": ["a", None]}),
        (Colour | str, {"enum": ["red", "blue"]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (
            list[str] | str,
            {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]},
        ),
        (tuple[float, float], {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (Any, {}),
        (complex, {}),
        (complex | str, {}),
    ],
)
def test_schema_of_annotations(hint: Any, schema: dict[str, Any]) -> None:
    assert schema_of(hint) == schema


def test_any_of_keeps_one_branch_of_a_type() -> None:
    assert any_of([{"type": "object"}, {"type": "object", "additionalProperties": {"type": "string"}}]) == {
        "type": "object"
    }


@dataclasses.dataclass
class Config:
    """A config.

    Args:
        rate (`float`, *optional*):
            How fast. More words.
    """

    rate: float = 1.0
    level: str = dataclasses.field(default="low", metadata={"help": "How\n  high. Ever.", "choices": ["low", "high"]})
    names: list[str] = dataclasses.field(default_factory=list)
    derived: int = dataclasses.field(default=0, init=False)
    opaque: Any = object()  # noqa: RUF009


def test_fields_of_a_dataclass() -> None:
    fields = dataclass_fields("here:Config", Config)
    assert fields["rate"] == {"schema": {"type": "number"}, "default": 1.0, "help": "How fast."}
    assert fields["level"] == {"schema": {"enum": ["low", "high"]}, "default": "low", "help": "How high."}
    assert fields["names"]["default"] == []
    assert "derived" not in fields
    assert "default" not in fields["opaque"]


def test_shared_fields_are_those_that_are_equal_everywhere() -> None:
    one, two = {"schema": {"type": "integer"}}, {"schema": {"type": "string"}}
    common, own = share({"a": {"x": one, "y": one}, "b": {"x": one, "y": two}})
    assert common == {"x": one}
    assert own == {"a": {"y": one}, "b": {"y": two}}


def test_help_is_one_short_sentence() -> None:
    assert one_line("Use 50%% of\n it. And more.") == "Use 50% of it."
    assert len(one_line("word " * 100)) <= 200


def test_rendering_is_sorted_and_reads_back() -> None:
    catalogue = {"shared": {"b": {"x": {"schema": {"type": "integer"}}}, "a": {}}, "classes": {}}
    assert json.loads(render(catalogue)) == catalogue
    assert render(catalogue) == render(dict(reversed(catalogue.items())))
