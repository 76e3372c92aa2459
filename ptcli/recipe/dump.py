"""Writes a `Recipe` as YAML that reads back to an equal one."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml as pyyaml

from ptcli.recipe.model import Recipe
from ptcli.recipe.secrets import REFERENCE, is_secret_name
from ptcli.recipe.tree import read_scalar

_ALWAYS = ("name", "method", "seed", "output_dir")
"""Written also where they are the defaults, because the defaults depend on the file's name and place or matter most."""
_ESCAPED = re.compile(r"(\\*)\$\{")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, in the order of its sections, with what was set and no defaults. Secrets stay references."""
    values = recipe.model_dump(exclude_unset=True)
    always = {name: getattr(recipe, name) for name in _ALWAYS}
    ordered = {name: (values | always)[name] for name in Recipe.model_fields if name in values or name in always}
    return pyyaml.dump(_escape(ordered), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _escape(value: Any) -> Any:
    """`value` with every `${` that is not a secret's escaped, since loading would resolve it."""
    if isinstance(value, dict):
        return {key: _escape(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_escape(child) for child in value]
    return _escape_text(value) if isinstance(value, str) and "${" in value else value


def _escape_text(text: str) -> str:
    def escape(found: re.Match[str]) -> str:
        backslashes = found[1] * 2
        reference = REFERENCE.match(text, found.end(1))
        is_secret = reference is not None and is_secret_name(reference[1])
        return f"{backslashes}{'' if is_secret else chr(92)}${{"

    return _ESCAPED.sub(escape, text)


class _Dumper(pyyaml.SafeDumper):
    """Safe YAML 1.1 that is YAML 1.2 too: quotes whatever either would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: pyyaml.SafeDumper, text: str) -> pyyaml.ScalarNode:
    style = "'" if text == "<<" or not isinstance(read_scalar(text), str) else None
    if not text.isprintable():
        # Only double quotes have escapes; in single ones U+0085 and its like come back as spaces.
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_number(dumper: pyyaml.SafeDumper, number: float) -> pyyaml.ScalarNode:
    text = repr(number)
    if math.isinf(number):
        text = ".inf" if number > 0 else "-.inf"
    elif "e" in text and "." not in text:
        # Without the point, YAML 1.1 readers take 1e-06 for text.
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_number)
