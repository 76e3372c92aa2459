"""JSON schema of a recipe, for editors: the pydantic sections, with the catalogue's fields where they pass on.

python -m ptcli.recipe.schema --write recipes/schema      the committed copies, one a method and one for all
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ptcli.methods import METHODS, Method
from ptcli.recipe.catalogue import FieldSpec, fields, owner_of, peft_types
from ptcli.recipe.model import Recipe

Schema = dict[str, Any]

_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{.+\}", "description": "A reference, as `${name}`."}
_NUMBER: Schema = {
    "type": "string",
    "pattern": r"\$\{.+\}|^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$",
    "description": "A number that YAML 1.1 reads as text, as 1e-5, or a reference, as `${name}`.",
}
_BOOLEAN: Schema = {
    "type": "string",
    "pattern": r"\$\{.+\}|^([Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF)$",
    "description": "YAML 1.1's other words for true and false, or a reference, as `${name}`.",
}
_MODELS = ("model", "ref_model", "reward_model", "value_model", "teacher")
_EXTENDS: Schema = {
    "description": "Recipes that this one adds to: later ones win, this file wins over all.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def recipe_schema(method: str | None = None) -> Schema:
    """JSON schema (2020-12) of a recipe of `method`, or of any. KeyError for an unknown method."""
    row = METHODS[method] if method else None
    schema = Recipe.model_json_schema()
    properties, definitions = schema["properties"], schema["$defs"]
    for section in _absent(row):
        del properties[section]
    properties["method"] |= {"const": method} if method else {"enum": list(METHODS)}
    properties["training"] |= _training(row)
    del properties["peft"]["anyOf"]
    properties["peft"] |= _peft()
    _fill(definitions["ModelSpec"], "quantization", _section(["transformers:BitsAndBytesConfig"], None), null=True)
    _fill(definitions["RolloutsSpec"], "engine", _section(["vllm:serve"], method))
    # `OMP_NUM_THREADS: 8` needs no quotes: what was written is the text.
    definitions["LaunchSpec"]["properties"]["env"]["additionalProperties"]["type"] = ["string", "number", "boolean"]
    _free_of_extended(schema, definitions, row)
    schema["properties"] = {"extends": _EXTENDS, **properties}
    return _finished(schema, row)


def _absent(row: Method | None) -> Iterator[str]:
    """Sections that the method does not take."""
    if row is None:
        return
    yield from {"rewards", "reward_model", "value_model", "teacher", "ref_model"} - set(row.sections)
    if not row.backends:
        yield "rollouts"


def _fill(definition: Schema, name: str, section: Schema, *, null: bool = False) -> None:
    """Puts the schema of a library's section in the place of pydantic's "any mapping"."""
    kept = {k: v for k, v in definition["properties"][name].items() if k in ("description", "default", "title")}
    definition["properties"][name] = kept | section | ({"type": ["object", "null"]} if null else {})


# --- the libraries' sections -----------------------------------------------------------------------------------------


def _training(row: Method | None) -> Schema:
    return _section([row.config], row.name) if row else _section([row.config for row in METHODS.values()], None)


def _section(class_names: list[str], method: str | None) -> Schema:
    """A section whose keys are the fields of one class, or of any of several."""
    names = sorted({name for each in class_names for name in fields(each) if not owner_of(each, name, method)})
    specs = {name: [fields(each)[name] for each in class_names if name in fields(each)] for name in names}
    properties = {name: _field(each) for name, each in specs.items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _field(specs: list[FieldSpec]) -> Schema:
    """The schema of a field; where several classes have one of its name, any of theirs."""
    schemas = list({json.dumps(spec.schema, sort_keys=True): dict(spec.schema) for spec in specs}.values())
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    defaults = {json.dumps(spec.default) for spec in specs}
    about = {"description": specs[0].help} if specs[0].help else {}
    if len(defaults) == 1 and specs[0].default is not None:
        about["default"] = specs[0].default
    return about | schema


def _peft() -> Schema:
    """LoRA's fields with their types; for any other type of adapter, only the names of the fields."""
    names = sorted({name for kind in peft_types().values() for name in fields(kind) if not owner_of(kind, name, None)})
    lora = _section([peft_types()["lora"]], None)
    del lora["type"]
    lora["properties"] = {"type": {"const": "lora"}} | lora["properties"]
    return {
        "type": ["object", "null"],
        "properties": {"type": {"description": "Kind of adapter. Default: lora.", "enum": list(peft_types())}},
        "if": {"properties": {"type": {"const": "lora"}}},
        "then": lora,
        "else": {"propertyNames": {"enum": ["type", *names]}},
    }


# --- the whole -------------------------------------------------------------------------------------------------------


def _free_of_extended(schema: Schema, definitions: Schema, row: Method | None) -> None:
    """Nothing is required of a recipe with `extends`: its bases may say it. `name` and `output_dir` have defaults."""
    needs = [key for key in schema.pop("required") if key not in ("name", "output_dir")] + list(
        row.needs if row else ()
    )
    sections: Schema = {
        name: {"required": definitions["ModelSpec"]["required"]} for name in _MODELS if name in schema["properties"]
    }
    sections["data"] = {"required": definitions["DataSpec"].pop("required")}
    definitions["ModelSpec"].pop("required")
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = {"required": needs, "properties": sections}


def _finished(schema: Schema, row: Method | None) -> Schema:
    definitions = {name: _loosened(each) for name, each in schema.pop("$defs").items()}
    schema["properties"] = {
        name: each if name in ("extends", "method") else _loosened(each) for name, each in schema["properties"].items()
    }
    definitions |= {"reference": _REFERENCE, "number_as_text": _NUMBER, "boolean_as_text": _BOOLEAN}
    used = _reachable(schema, definitions)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"ptcli recipe: {row.title} ({row.name})" if row else "ptcli recipe",
    }
    tail = {"$defs": {name: each for name, each in definitions.items() if name in used}}
    return head | {key: value for key, value in schema.items() if key != "title"} | tail


def _loosened(schema: Any) -> Any:
    """The schema with `${...}`, and a number or boolean that YAML 1.1 reads otherwise, allowed wherever a scalar is."""
    if not isinstance(schema, dict):
        return schema
    inner = {key: _loosened_part(key, value) for key, value in schema.items() if key != "title"}
    text = _text_for(inner)
    if not text:
        return inner
    about = {key: inner.pop(key) for key in ("description", "default") if key in inner}
    return about | {"anyOf": [*inner.pop("anyOf", [inner] if inner else []), {"$ref": f"#/$defs/{text}"}]}


def _loosened_part(key: str, value: Any) -> Any:
    if key in ("properties", "$defs"):
        return {name: _loosened(each) for name, each in value.items()}
    if key == "anyOf":  # the alternative goes beside the branches, once; only what is inside them is loosened
        return [_loosened(each) if not _is_scalar(each) else each for each in value]
    return _loosened(value) if key in ("items", "additionalProperties", "then", "else") else value


def _is_scalar(schema: Schema) -> bool:
    return "enum" in schema or "const" in schema or bool(_types(schema) - {"object", "array"})


def _types(schema: Schema) -> set[str]:
    types = schema.get("type", ())
    return {types} if isinstance(types, str) else set(types)


def _text_for(schema: Schema) -> str:
    """The definition of the texts that may stand in for a scalar; "" where any text may, or no scalar."""
    if "properties" in schema:  # a section, or null
        return ""
    branches = [branch for branch in schema.get("anyOf", [schema]) if _is_scalar(branch)]
    types = set().union(*map(_types, branches)) if branches else set()
    anything = any("string" in _types(each) and not {"enum", "const", "pattern"} & set(each) for each in branches)
    if anything or not branches or types == {"null"}:
        return ""
    if types & {"number", "integer"}:
        return "number_as_text"
    return "boolean_as_text" if "boolean" in types else "reference"


def _reachable(schema: Any, definitions: Mapping[str, Schema]) -> set[str]:
    """Names of the definitions that `schema` needs, directly or through others."""
    found: set[str] = set()
    pending = list(_references(schema))
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += _references(definitions[name])
    return found


def _references(schema: Any) -> Iterator[str]:
    children: Iterable[Any] = (
        schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    )
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"].rpartition("/")[2]
    for child in children:
        yield from _references(child)


# --- the committed copies --------------------------------------------------------------------------------------------


def render(schema: Schema) -> str:
    """A schema as text, as `ptcli schema` prints it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def copies() -> Iterator[tuple[str, str]]:
    """File name and text of every committed copy."""
    yield "recipe.json", render(recipe_schema())
    for method in METHODS:
        yield f"{method}.json", render(recipe_schema(method))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ptcli.recipe.schema", description="Write the committed copies.")
    parser.add_argument("--write", metavar="DIR", type=Path, required=True, help="folder to write them into")
    folder = parser.parse_args(arguments).write
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in copies():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
