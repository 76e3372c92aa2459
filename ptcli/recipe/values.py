"""Values and their types, as JSON-schema fragments name them: what fits, read generously, and what to say when it
does not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.suggest import nearest
from ptcli.recipe.tree import dotted

Schema = Mapping[str, Any]
"""A JSON-schema fragment."""

# --- words -----------------------------------------------------------------------------------------------------------

_WORDS = {
    "boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text", "array": "a list",
    "object": "a mapping", "null": "null",
}  # fmt: skip


def _types(schema: Schema) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _branches(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf", [schema]))


def _choices(schema: Schema) -> list[Any]:
    return [choice for branch in _branches(schema) for choice in branch.get("enum", ())]


def listed(words: Iterable[str], link: str = "or") -> str:
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
    return listed(sorted(dict.fromkeys(words), key=lambda word: word == "null"))


def _items(name: str, branch: Schema) -> str:
    if name != "array" or not branch.get("items"):
        return ""
    items = branch["items"]
    plural = {"string": "texts", "number": "numbers", "integer": "whole numbers"}.get(items.get("type", ""), "")
    if "enum" in items:
        plural = listed(json.dumps(choice) for choice in items["enum"])
    return f" of {plural}" if plural else ""


def bare_word(word: str) -> str:
    return re.sub(r"[-_ .]", "", word).lower()


_MEANT = {
    "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "adam": "adamw_torch", "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch", "8bit": "adamw_8bit", "never": "no", "epochs": "epoch", "step": "steps",
}  # fmt: skip


def meant_word(word: str, candidates: Iterable[str]) -> str:
    """The candidate that was meant by `word`; "" when none is alike."""
    by_bare = {bare_word(candidate): candidate for candidate in candidates}
    meant = _MEANT.get(word.lower(), "")
    return meant if meant in by_bare.values() else by_bare.get(bare_word(word)) or nearest(word, by_bare.values()) or ""


# --- values ----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SECRET = "${oc.env:"


class Unfit(Exception):
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
        raise Unfit
    if isinstance(value, str) and len(value) < 100 and _NUMBER.fullmatch(value.strip()):
        value = float(value) if re.search("[.eE]", value) else int(value)
    if isinstance(value, int | float) and math.isfinite(value) and (name == "number" or value == int(value)):
        return value if name == "number" else int(value)
    raise Unfit


def _fit_type(name: str, schema: Schema, value: Any, *, exact: bool) -> Any:
    if not _is(name, value):
        if exact:
            raise Unfit
        return _coerced(name, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise Unfit
    if name == "array":
        return _fit_items(schema, value)
    if name == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return {key: fit(schema["additionalProperties"], item) for key, item in value.items()}
    if name == "string" and not re.search(schema.get("pattern", ""), value):
        raise Unfit
    return value


def _fit_items(schema: Schema, value: list[Any]) -> list[Any]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        raise Unfit
    return [fit(schema.get("items", {}), item) for item in value]


def _fit_choice(choices: list[Any], value: Any, *, exact: bool) -> Any:
    for choice in choices:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
        if not exact and isinstance(choice, bool) and isinstance(value, str) and _BOOLEANS.get(value.lower()) is choice:
            return choice
        if not exact and isinstance(choice, int) and str(choice) == value:
            return choice
    raise Unfit


def fit(schema: Schema, value: Any) -> Any:
    """`value` as the schema's type, as it is if it fits, else read generously. Raises `Unfit` when it is neither."""
    if not schema or (isinstance(value, str) and _SECRET in value):
        return value
    for exact in (True, False):
        for branch in _branches(schema):
            for name in ["enum"] if "enum" in branch else _types(branch):
                try:
                    if name == "enum":
                        return _fit_choice(branch["enum"], value, exact=exact)
                    return _fit_type(name, branch, value, exact=exact)
                except Unfit:
                    continue
    raise Unfit


def shown(value: Any) -> str:
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
        near = meant_word(value, choices)
        return f"did you mean {json.dumps(near)}?" if near else ""
    if isinstance(value, int | float) and "string" in _types(schema):
        return f'write it with quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    types = [name for branch in _branches(schema) for name in _types(branch)]
    return f"write [{value}]" if "array" in types and isinstance(value, str | int | float) and value != "" else ""


def type_problem(key: KeyPath, schema: Schema, value: Any) -> Problem:
    fix = _type_fix(schema, value)
    wanted = describe(schema)
    if len(_choices(schema)) > 12 and fix:
        wanted = "one of its known values"
    return Problem(f"`{dotted(key)}` must be {wanted}, not {shown(value)}", fix, key)
