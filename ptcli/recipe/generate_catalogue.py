"""Writes `catalogue.json`: every field of the pinned libraries that a recipe may set, with its type and default.

    python -m ptcli.recipe.generate_catalogue            write it
    python -m ptcli.recipe.generate_catalogue --check    exit 1 when it is stale

Heavy: imports trl, transformers, peft, accelerate and vllm. `ptcli.recipe.catalogue` reads the result without any.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import importlib
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ptcli.methods import METHODS
from ptcli.recipe.by_hand import Schema, by_hand, choices_of
from ptcli.recipe.catalogue import PATH

Fields = dict[str, dict[str, Any]]

LIBRARIES = ("trl", "transformers", "peft", "accelerate", "vllm")

_SIMPLE: Mapping[Any, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array", type(None): "null",
}  # fmt: skip


# --- types -----------------------------------------------------------------------------------------------------------


def schema_of(hint: Any) -> Schema:
    """JSON schema of a type annotation; `{}` (anything) where there is no JSON type for it."""
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _schema_of_union(arguments)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (list, set, tuple):
        return _schema_of_array(origin, arguments)
    if origin is dict:
        return _schema_of_mapping(arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    return {"type": "object"} if dataclasses.is_dataclass(hint) else {}


def _schema_of_array(origin: Any, arguments: tuple[Any, ...]) -> Schema:
    schema: Schema = {"type": "array"}
    if origin is tuple and Ellipsis not in arguments:
        schema |= {"minItems": len(arguments), "maxItems": len(arguments)}
    items = schema_of(arguments[0]) if arguments else {}
    return schema | ({"items": items} if items else {})


def _schema_of_mapping(arguments: tuple[Any, ...]) -> Schema:
    values = schema_of(arguments[1]) if arguments else {}
    return {"type": "object"} | ({"additionalProperties": values} if values else {})


def _schema_of_union(arguments: Iterable[Any]) -> Schema:
    arguments = list(arguments)
    # `SchedulerType | str`: the library turns the string into the enum and refuses any other.
    if any(isinstance(a, type) and issubclass(a, enum.Enum) for a in arguments):
        arguments = [a for a in arguments if a is not str]
    return any_of([schema_of(a) for a in arguments])


def any_of(schemas: Iterable[Schema]) -> Schema:
    """The union of schemas, as short as it goes: one list of types where nothing else is said."""
    plain, other = [], []
    for schema in schemas:
        for branch in schema.get("anyOf", [schema]):
            if not branch:
                return {}
            if set(branch) == {"type"}:
                plain += branch["type"] if isinstance(branch["type"], list) else [branch["type"]]
            elif branch not in other:
                other.append(branch)
    # {"type": "object", "additionalProperties": ...} says nothing more beside a plain {"type": "object"}.
    other = [branch for branch in other if branch.get("type") not in plain]
    if other and plain == ["null"] and len(other) == 1 and "enum" in other[0]:
        return {"enum": [*other[0]["enum"], None]}
    types_ = list(dict.fromkeys(plain))
    branches = [*other, *([{"type": types_[0] if len(types_) == 1 else types_}] if types_ else [])]
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


# --- help texts ------------------------------------------------------------------------------------------------------


def one_line(text: Any) -> str:
    """The first sentence of a help text, on one line, at most 200 characters."""
    if isinstance(text, tuple):  # a stray comma in PEFT's source makes some help texts tuples
        text = " ".join(text)
    text = " ".join(text.replace("%%", "%").split())
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"])", text, maxsplit=1)[0]
    return sentence if len(sentence) <= 200 else sentence[:199].rsplit(" ", 1)[0] + "…"


def documented(cls: type) -> dict[str, str]:
    """Field name -> help text, out of the `name (`type`): text` entries of a class's docstring."""
    entry = re.compile(r"^[ \t]+(\w+) ?\(.*\):[ \t]*\n?((?:.+\n?)+?)(?=^[ \t]+\w+ ?\(.*\):|\n[ \t]*\n|\Z)", re.M)
    return {name: one_line(text) for name, text in entry.findall(inspect.getdoc(cls) or "")}


# --- dataclasses -----------------------------------------------------------------------------------------------------


def _jsonable(value: Any) -> Any:
    """`value` as JSON would give it back; raises TypeError where it cannot."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, set | tuple):
        value = sorted(value) if isinstance(value, set) else list(value)
    return json.loads(json.dumps(value, allow_nan=False))


def _entry(schema: Schema, default: Any, help_text: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"schema": schema}
    with contextlib.suppress(TypeError, ValueError):  # an object of the library's own, or no default at all
        entry["default"] = _jsonable(default)
    if help_text:
        entry["help"] = help_text
    return entry


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def dataclass_fields(class_name: str, cls: Any) -> Fields:
    """The init fields of a dataclass."""
    hints, docs = typing.get_type_hints(cls), documented(cls)
    fields: Fields = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        schema = schema_of(hints[field.name])
        choices = field.metadata.get("choices")
        if choices:
            schema = choices_of(*choices, *([None] if "null" in schema.get("type", ()) else []))
        help_text = one_line(field.metadata.get("help") or "") or docs.get(field.name, "")
        fields[field.name] = _entry(by_hand(class_name, field.name, schema), _default(field), help_text)
    return fields


def signature_fields(class_name: str, cls: type) -> Fields:
    """The keyword arguments of a class that is not a dataclass, typed by their defaults."""
    docs = documented(cls)
    fields: Fields = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        schema = {"type": _SIMPLE[type(parameter.default)]} if parameter.default is not None else {}
        fields[name] = _entry(by_hand(class_name, name, schema), parameter.default, docs.get(name, ""))
    return fields


# --- vllm serve ------------------------------------------------------------------------------------------------------


def _parser_schema(kind: Any) -> Schema:
    """The schema of an argparse `type`: a Python type, or one of vLLM's own readers, known by name."""
    if kind in _SIMPLE:
        return {"type": _SIMPLE[kind]}
    name = getattr(kind, "__name__", "")
    if name == "_optional_type":  # vLLM's wrapper around the reader of an Optional
        inner = inspect.getclosurevars(kind).nonlocals["return_type"]
        return any_of([_parser_schema(inner), {"type": "null"}])
    if name.startswith("human_readable"):
        return {"type": ["integer", "string"]}  # 8192 or 8k
    if name == "parse_dataclass":
        return {"type": "object"}
    if name in ("loads", "_parse_type", "union_dict_and_str"):
        return {"type": ["object", "array", "string"] if name == "loads" else ["object", "string"]}
    return {"type": "string"}


def _flag_schema(action: argparse.Action) -> Schema:
    if isinstance(action, argparse.BooleanOptionalAction):
        return {"type": "boolean"}
    if action.const is True and action.nargs == 0:
        return {"type": "boolean"}
    if action.choices:
        choices = [None if c == "None" else c for c in action.choices]
        item: Schema = {"enum": sorted(choices, key=lambda c: (c is None, str(c)))}
    else:
        item = _parser_schema(action.type)
    if action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction):
        return any_of([{"type": "array", "items": item} if "enum" in item else {"type": "array"}, item])
    return item


def vllm_fields() -> Fields:
    """The flags of `vllm serve`, by the name with underscores."""
    from vllm.engine import arg_utils
    from vllm.entrypoints.openai import cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arg_utils.NEEDS_HELP = True  # else vLLM leaves the help texts out
    engine = {field.name for field in dataclasses.fields(arg_utils.EngineArgs)}
    fields: Fields = {}
    for action in cli_args.make_arg_parser(FlexibleArgumentParser())._actions:
        if action.dest in ("help", "config") or not action.option_strings:
            continue
        entry = _entry(_flag_schema(action), action.default, one_line(action.help or ""))
        if isinstance(action, argparse._StoreTrueAction):
            entry["switch"] = True  # there is no --no-... for it
        if action.dest not in engine:
            entry["frontend"] = True
        fields[action.dest] = entry
    return fields


# --- accelerate ------------------------------------------------------------------------------------------------------


def accelerate_keys() -> dict[str, list[str]]:
    """Keys of an accelerate config file: at the top, and in the sections whose unknown keys accelerate ignores."""
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    groups = {g.title: sorted(a.dest for a in g._group_actions) for g in parser._action_groups}
    return {
        "top": sorted(f.name for f in dataclasses.fields(ClusterConfig)),
        "deepspeed_config": groups["DeepSpeed Arguments"],
        "fsdp_config": [key for key in groups["FSDP Arguments"] if key.startswith("fsdp_")],
        "parallelism_config": [k for k in groups["ParallelismConfig Arguments"] if k.startswith("parallelism_config_")],
    }


# --- the catalogue ---------------------------------------------------------------------------------------------------


def load(name: str) -> Any:
    """The object behind an import string `module:attribute`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def share(classes: Mapping[str, Fields]) -> tuple[Fields, dict[str, Fields]]:
    """Splits fields into those that all `classes` have in common, exactly, and each one's own."""
    first, *others = classes.values()
    common = {name: entry for name, entry in first.items() if all(other.get(name) == entry for other in others)}
    own = {name: {k: v for k, v in fields.items() if k not in common} for name, fields in classes.items()}
    return common, own


def _family(name: str, classes: Mapping[str, Fields]) -> dict[str, Any]:
    common, own = share(classes)
    return {"shared": {name: common}, "classes": {key: {"shared": name, "fields": f} for key, f in own.items()}}


def trl_classes() -> dict[str, Fields]:
    return {row.config: dataclass_fields(row.config, load(row.config)) for row in METHODS.values()}


def peft_classes() -> tuple[dict[str, str], dict[str, Fields]]:
    """PEFT's `type` names with their class names, and the fields of these classes."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as mapping

    names = {kind.value.lower(): f"peft:{cls.__name__}" for kind, cls in mapping.items()}
    return names, {f"peft:{c.__name__}": dataclass_fields(f"peft:{c.__name__}", c) for c in mapping.values()}


def _reporters() -> list[str]:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return sorted(INTEGRATION_TO_CALLBACK)


def _name_reporters(classes: Mapping[str, Fields]) -> None:
    item = choices_of("none", "all", *_reporters())
    for fields in classes.values():
        fields["report_to"]["schema"] = {"anyOf": [item, {"type": "array", "items": item}, {"type": "null"}]}


def generate() -> dict[str, Any]:
    """The whole catalogue."""
    trl = trl_classes()
    _name_reporters(trl)
    peft_types, peft = peft_classes()
    families = [_family("trl", trl), _family("peft", peft)]
    quantization = "transformers:BitsAndBytesConfig"
    single = {quantization: signature_fields(quantization, load(quantization)), "vllm:serve": vllm_fields()}
    return {
        "versions": {name: version(name).partition("+")[0] for name in LIBRARIES},
        "shared": {key: value for family in families for key, value in family["shared"].items()},
        "classes": {key: value for family in families for key, value in family["classes"].items()}
        | {key: {"fields": fields} for key, fields in single.items()},
        "peft_types": peft_types,
        "accelerate": accelerate_keys(),
    }


def render(catalogue: Mapping[str, Any]) -> str:
    """The catalogue as text: sorted, one field a line, so that an upgrade reads well as a diff."""
    compact: Callable[[Any], str] = lambda v: json.dumps(v, sort_keys=True, ensure_ascii=False)  # noqa: E731

    def lines(value: Any, depth: int) -> str:
        if not isinstance(value, dict) or not value or "schema" in value or depth == 0:
            return compact(value)
        body = ",\n".join(f"{compact(key)}: {lines(value[key], depth - 1)}" for key in sorted(value))
        return "{\n" + body + "\n}"

    return lines(dict(catalogue), 4) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ptcli.recipe.generate_catalogue", description="Write the catalogue."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the catalogue is stale")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    text = render(generate())
    if not options.check:
        PATH.write_text(text, encoding="utf-8")
        return 0
    stale = not Path(PATH).exists() or PATH.read_text(encoding="utf-8") != text
    if stale:
        print(f"{PATH} is stale: run `make catalogue`", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
