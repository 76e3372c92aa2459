"""The pinned libraries' own fields: what a recipe may write under `training`, `peft` and the like, and of what type.

Read from `catalogue.json`, which `ptcli.recipe.generate_catalogue` writes; nothing heavy is imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.recipe import owned
from ptcli.recipe.model import LaunchSpec, ModelSpec, RolloutsSpec
from ptcli.recipe.suggest import nearest

PATH = Path(__file__).with_name("catalogue.json")

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class FieldSpec:
    """One field of a library's config."""

    schema: Schema
    """JSON-schema fragment of its type; empty: anything."""
    default: Any = None
    """Its default; None also where the default is not a JSON value."""
    help: str = ""
    """What it is for, in one sentence."""
    switch: bool = False
    """A command-line flag that can only be given, not negated."""


# --- reading ---------------------------------------------------------------------------------------------------------


@cache
def _catalogue() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))


@cache
def fields(class_name: str) -> Mapping[str, FieldSpec]:
    """Every field of a class ("trl:GRPOConfig", "peft:LoraConfig", "vllm:serve", ...). KeyError if not catalogued."""
    entry = _catalogue()["classes"][class_name]
    shared = _catalogue()["shared"].get(entry.get("shared"), {})
    return {name: FieldSpec(**value) for name, value in sorted({**shared, **entry["fields"]}.items())}


def versions() -> Mapping[str, str]:
    """The library versions that the catalogue was made from."""
    return _catalogue()["versions"]


def peft_types() -> Mapping[str, str]:
    """What `peft.type` may say, with the class name of each."""
    return _catalogue()["peft_types"]


def accelerate_keys(section: str = "top") -> frozenset[str]:
    """Keys of an accelerate config file: "top", "deepspeed_config", "fsdp_config" or "parallelism_config"."""
    return frozenset(_catalogue()["accelerate"][section])


# --- words -----------------------------------------------------------------------------------------------------------

_WORDS = {
    "boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text", "array": "a list",
    "object": "a mapping", "null": "null",
}  # fmt: skip


def dotted(key: KeyPath) -> str:
    """`("data", "train", 0)` as `data.train.0`."""
    return ".".join(map(str, key))


def _types(schema: Schema) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _branches(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf", [schema]))


def _choices(schema: Schema) -> list[Any]:
    return [choice for branch in _branches(schema) for choice in branch.get("enum", ())]


def _listed(words: Iterable[str], link: str = "or") -> str:
    *head, last = words
    return f"{', '.join(head)} {link} {last}" if head else last


def describe(schema: Schema) -> str:
    """What a value must be, in plain words: "a number or null"."""
    words: list[str] = []
    for branch in _branches(schema):
        if "enum" in branch:
            words += [json.dumps(choice) for choice in branch["enum"]]
        elif "pattern" in branch:
            words.append(f"text like {branch['pattern']}")
        else:
            words += [_WORDS[name] + _items(name, branch) for name in _types(branch)]
    return _listed(sorted(dict.fromkeys(words), key=lambda word: word == "null"))


def _items(name: str, branch: Schema) -> str:
    if name != "array" or not branch.get("items"):
        return ""
    items = branch["items"]
    plural = {"string": "texts", "number": "numbers", "integer": "whole numbers"}.get(items.get("type", ""), "")
    if "enum" in items:
        plural = _listed(json.dumps(choice) for choice in items["enum"])
    return f" of {plural}" if plural else ""


def _bare(word: str) -> str:
    return re.sub(r"[-_ .]", "", word).lower()


_MEANT = {
    "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "adam": "adamw_torch", "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch", "8bit": "adamw_8bit", "never": "no", "epochs": "epoch", "step": "steps",
}  # fmt: skip


def _nearest(word: str, candidates: Iterable[str]) -> str:
    """The candidate that was meant by `word`; "" when none is alike."""
    bare = {_bare(candidate): candidate for candidate in candidates}
    meant = _MEANT.get(word.lower(), "")
    return meant if meant in bare.values() else bare.get(_bare(word)) or nearest(word, bare.values()) or ""


# --- values ----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SECRET = "${oc.env:"


class _Unfit(Exception):
    """The value is not of the type."""


def _is(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    kinds: dict[str, Any] = {"integer": int, "number": int | float, "string": str, "array": list, "object": Mapping}
    return value is None if name == "null" else isinstance(value, kinds.get(name, ()))


def _coerced(name: str, value: Any) -> Any:
    """`value` read as the JSON type `name`: "1e-5" as a number, 8.0 as a whole number, "yes" as true."""
    if isinstance(value, str) and name == "boolean" and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if name not in ("integer", "number") or isinstance(value, bool):
        raise _Unfit
    if isinstance(value, str) and len(value) < 100 and _NUMBER.fullmatch(value.strip()):
        value = float(value) if re.search("[.eE]", value) else int(value)
    if isinstance(value, int | float) and math.isfinite(value) and (name == "number" or value == int(value)):
        return value if name == "number" else int(value)
    raise _Unfit


def _fit_type(name: str, schema: Schema, value: Any, *, exact: bool) -> Any:
    if not _is(name, value):
        if exact:
            raise _Unfit
        return _coerced(name, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _Unfit
    if name == "array":
        return _fit_items(schema, value)
    if name == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return {key: fit(schema["additionalProperties"], item) for key, item in value.items()}
    if name == "string" and not re.search(schema.get("pattern", ""), value):
        raise _Unfit
    return value


def _fit_items(schema: Schema, value: list[Any]) -> list[Any]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        raise _Unfit
    return [fit(schema.get("items", {}), item) for item in value]


def _fit_choice(choices: list[Any], value: Any, *, exact: bool) -> Any:
    for choice in choices:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
        if not exact and isinstance(choice, bool) and isinstance(value, str) and _BOOLEANS.get(value.lower()) is choice:
            return choice
        if not exact and isinstance(choice, int) and str(choice) == value:
            return choice
    raise _Unfit


def fit(schema: Schema, value: Any) -> Any:
    """`value` as the schema's type, as it is if it fits, else read generously. Raises `_Unfit` when it is neither."""
    if not schema or (isinstance(value, str) and _SECRET in value):
        return value
    for exact in (True, False):
        for branch in _branches(schema):
            for name in ["enum"] if "enum" in branch else _types(branch):
                try:
                    if name == "enum":
                        return _fit_choice(branch["enum"], value, exact=exact)
                    return _fit_type(name, branch, value, exact=exact)
                except _Unfit:
                    continue
    raise _Unfit


def _shown(value: Any) -> str:
    """A value as a person wrote it, cut to 60 characters; the text of a secret is never a value here."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that JSON has no words for
        text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _type_fix(schema: Schema, value: Any) -> str:
    choices = [str(choice) for choice in _choices(schema) if isinstance(choice, str)]
    if value is False:
        for word in ("none", "no"):
            if word in choices:
                return f'write "{word}", with quotes'
    if isinstance(value, str) and choices:
        near = _nearest(value, choices)
        return f"did you mean {json.dumps(near)}?" if near else ""
    if isinstance(value, int | float) and "string" in _types(schema):
        return f'write it with quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    types = [name for branch in _branches(schema) for name in _types(branch)]
    return f"write [{value}]" if "array" in types and isinstance(value, str | int | float) and value != "" else ""


def _type_problem(key: KeyPath, schema: Schema, value: Any) -> Problem:
    fix = _type_fix(schema, value)
    wanted = describe(schema)
    if len(_choices(schema)) > 12 and fix:
        wanted = "one of its known values"
    return Problem(f"`{dotted(key)}` must be {wanted}, not {_shown(value)}", fix, key)


# --- keys ------------------------------------------------------------------------------------------------------------

_KINDS = {"trl": "training", "peft": "peft", "vllm": "engine", "transformers": "quantization"}


def _kind(class_name: str) -> str:
    return _KINDS[re.split("[.:]", class_name, maxsplit=1)[0]]


@cache
def methods_with(field: str) -> tuple[str, ...]:
    """The methods whose config has `field`."""
    return tuple(name for name, row in METHODS.items() if field in fields(row.config))


def _takes(method: str | None, place: str) -> bool:
    """Whether a recipe of `method` may have the section that `place` is in."""
    section = place.partition(".")[0]
    row = METHODS.get(method or "")
    if row is None:
        return True
    if section == "rollouts":
        return bool(row.backends)
    return section not in ("rewards", "reward_model", "value_model", "teacher", "ref_model") or section in row.sections


def owner_of(class_name: str, name: str, method: str | None) -> owned.Owner | None:
    """Who owns the library's key `name` in a recipe, if it is not the library's section itself."""
    owner = owned.OWNED[_kind(class_name)].get(name)
    if owner is None or name in fields(class_name):
        return owner
    if owner.place and _takes(method, owner.place):
        return owner
    return None if methods_with(name) else owner


def _owned_problem(key: KeyPath, owner: owned.Owner, method: str | None) -> Problem:
    if owner.reason:
        return Problem(f"`{dotted(key)}` {owner.reason}", owner.fix, key)
    place = next((p for p in (owner.place, owner.otherwise) if p and _takes(method, p)), "")
    if place.startswith("--"):
        return Problem(f"`{dotted(key)}` is an option of the command line, `{place}`", owner.fix, key)
    if place:
        return _misplaced(key, place, owner.fix)
    section = owner.place.partition(".")[0]
    return Problem(f"`{dotted(key)}` has no place with {method}, which takes no `{section}`", "leave it out", key)


def _misplaced(key: KeyPath, place: str, fix: str = "") -> Problem:
    return Problem(f"`{dotted(key)}` is what `{place}` says in a recipe", fix or f"set `{place}` instead", key)


def _successor(class_name: str, name: str) -> str:
    known = fields(class_name)
    return next((new for new in owned.RENAMED[_kind(class_name)].get(name, ()) if new in known or new == "type"), "")


_SECTIONS: Mapping[str, Any] = {"rollouts": RolloutsSpec, "launch": LaunchSpec, "model": ModelSpec}


def _elsewhere(class_name: str, name: str, method: str | None) -> str:
    """The place of a key that is misplaced: a key of another section, or a field of another section's library."""
    for section, spec in _SECTIONS.items():
        if name in spec.model_fields and name not in ("path", "env", "mode") and _takes(method, section):
            return f"{section}.{name}"
    others = {"peft.": "peft:LoraConfig", "model.quantization.": "transformers:BitsAndBytesConfig"}
    if _takes(method, "rollouts"):
        others["rollouts.engine."] = "vllm:serve"
    if method in METHODS:
        others["training."] = METHODS[str(method)].config
    for prefix, other in others.items():
        kind = _kind(other)
        field = next((new for new in (name, *owned.RENAMED[kind].get(name, ())) if new in fields(other)), "")
        if field and kind != _kind(class_name) and field not in owned.OWNED[kind]:
            return prefix + field
    return ""


def _gone_problem(class_name: str, key: KeyPath, method: str | None) -> Problem | None:
    """The problem for a key that was renamed or removed, or that is another method's."""
    name, path = str(key[-1]), dotted(key)
    new = _successor(class_name, name)
    if new:
        return Problem(f"`{path}` is called `{new}` here", owned.RENAMED_FIX.get(name, f"write `{new}`"), key)
    if _kind(class_name) != "training":
        return None
    if name in owned.REMOVED:
        return Problem(f"`{path}` does not exist any more: {owned.REMOVED[name][0]}", owned.REMOVED[name][1], key)
    having = methods_with(name)
    if not having:
        return None
    place = "" if name not in owned.OWNED["training"] else owned.OWNED["training"][name].place
    section = f", which takes no `{place.partition('.')[0]}`" if place and not _takes(method, place) else ""
    message = f"`{path}` belongs to {_listed(having, 'and')}, not to {method or 'this method'}{section}"
    return Problem(message, "leave it out", key)


def _unknown_problem(class_name: str, key: KeyPath, method: str | None) -> Problem:
    gone = _gone_problem(class_name, key, method)
    if gone:
        return gone
    name, path = str(key[-1]), dotted(key)
    near = _nearest(name, [field for field in fields(class_name) if field not in owned.OWNED[_kind(class_name)]])
    place = _elsewhere(class_name, name, method)
    if place and _bare(near) != _bare(name):
        return _misplaced(key, place)
    where = "vllm serve" if class_name == "vllm:serve" else class_name.partition(":")[2]
    return Problem(
        f"`{path}` is not a key: {where} has none of that name", f"did you mean `{near}`?" if near else "", key
    )


# --- sections --------------------------------------------------------------------------------------------------------


def _check_entry(class_name: str, key: KeyPath, value: Any, method: str | None) -> tuple[Any, Problem | None]:
    name = key[-1]
    owner = owner_of(class_name, str(name), method)
    if owner:
        return None, _owned_problem(key, owner, method)
    field = fields(class_name).get(str(name))
    if field is None:
        return None, _unknown_problem(class_name, key, method)
    try:
        return fit(field.schema, value), None
    except _Unfit:
        return None, _type_problem(key, field.schema, value)


def check_section(
    class_name: str, values: Mapping[str, Any], key: KeyPath, *, method: str | None
) -> tuple[dict[str, Any], list[Problem]]:
    """The entries of a section that the library accepts, as values of its types, and a problem for each other one.

    `key` is where the section stands in the recipe, `method` the recipe's, if known. With `class_name` "peft" the
    section's own `type` picks the class and stays in the result.
    """
    clean: dict[str, Any] = {}
    problems: list[Problem] = []
    if class_name.partition(":")[0] == "peft":
        values = dict(values)
        kind = values.pop("type", None)
        class_name, clean, problems = _peft_class(class_name, kind, (*key, "type"))
    if class_name not in _catalogue()["classes"]:
        return dict(values), problems
    for name, value in values.items():
        fitted, problem = _check_entry(class_name, (*key, name), value, method)
        if problem:
            problems.append(problem)
        elif not (fields(class_name)[name].switch and fitted is False):
            clean[name] = fitted
    return clean, problems


def _peft_class(class_name: str, kind: Any, key: KeyPath) -> tuple[str, dict[str, Any], list[Problem]]:
    """The class that `peft.type` names, the clean part of the section so far, and what is wrong with it."""
    if kind is None:
        return "peft:LoraConfig" if class_name == "peft" else class_name, {}, []
    found = peft_types().get(str(kind).lower())
    if found:
        return found, {"type": str(kind).lower()}, []
    near = _nearest(str(kind), peft_types())
    fix = f"did you mean {near}?" if near else f"it is one of {', '.join(peft_types())}"
    return "peft:?", {}, [Problem(f"`{dotted(key)}`: PEFT has no adapter called {_shown(kind)}", fix, key)]
