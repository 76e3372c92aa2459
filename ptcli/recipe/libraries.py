"""Checks the sections that are passed on to a library against the catalogue of its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.methods import Method
from ptcli.recipe import catalogue
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.suggest import sections_in
from ptcli.recipe.tree import Node, Scalar, Table

_MODELS = tuple(name for name, field in Recipe.model_fields.items() if ModelSpec in sections_in(field.annotation))


def check_libraries(method: Method, tree: Table, values: dict[str, Any]) -> Iterator[Problem]:
    """Puts the checked values of `training`, `peft`, ... in the place of those in `values`; yields what is wrong."""
    for class_name, key in _passed_on(method):
        *above, last = key
        holder: Any = values
        for part in above:
            holder = holder.get(part) or {}
        if not isinstance(holder.get(last), dict):
            continue
        given = _numbers_as_text(class_name, holder[last], _node_at(tree, key))
        holder[last], problems = catalogue.check_section(class_name, given, key, method=method.name)
        yield from problems


def _passed_on(method: Method) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The library class and the key of every such section."""
    yield method.config, ("training",)
    yield "peft", ("peft",)
    yield "vllm:serve", ("rollouts", "engine")
    for name in _MODELS:
        yield "transformers:BitsAndBytesConfig", (name, "quantization")


def _numbers_as_text(class_name: str, values: Mapping[str, Any], node: Node | None) -> dict[str, Any]:
    """`values` with the text that was written where a number stands for a field that takes only text."""
    result = dict(values)
    fields = catalogue.fields(class_name) if class_name != "peft" else {}
    for name, entry in node.entries.items() if isinstance(node, Table) else ():
        is_number = isinstance(entry.node, Scalar) and isinstance(entry.node.value, int | float)
        if name in result and name in fields and is_number and _takes_only_text(fields[name].schema):
            assert isinstance(entry.node, Scalar)
            result[name] = entry.node.text
    return result


def _takes_only_text(schema: Mapping[str, Any]) -> bool:
    types: set[str] = set()
    for branch in schema.get("anyOf", [schema]):
        found = branch.get("type", "any")
        types |= {found} if isinstance(found, str) else set(found)
    return "string" in types and types <= {"string", "null"} and "enum" not in str(schema)


def _node_at(tree: Table, key: KeyPath) -> Node | None:
    node: Node = tree
    for part in key:
        if not isinstance(node, Table) or part not in node.entries:
            return None
        node = node.entries[str(part)].node
    return node
