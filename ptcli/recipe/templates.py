"""The chat templates that a recipe names, and those that come with its models."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.code import NotFound, find_module
from ptcli.recipe.files import near_sibling, unreadable
from ptcli.recipe.local_models import read_json
from ptcli.recipe.rendering import Fault, find_fault, find_syntax_fault
from ptcli.recipe.suggest import nearest

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A template and where it is written."""

    text: str
    source: Path

    @property
    def marks_answers(self) -> bool:
        """Whether it says which part is the assistant's: what `assistant_only_loss` trains on."""
        return _GENERATION.search(self.text) is not None


def check_template(template: str, key: KeyPath) -> list[Problem]:
    """Problems of `chat_template`: not there, does not parse, or cannot render the simplest chat."""
    path = Path(template)
    if path.is_absolute() or os.path.isfile(path):
        if os.path.isfile(path):
            return _check_file(path, key)
        return [Problem(f"there is no chat template {path}", near_sibling(path), key)]
    shipped = shipped_templates()
    if not shipped or template.removesuffix(".jinja") in shipped:
        return []
    near = nearest(template.removesuffix(".jinja"), shipped)
    fix = f"did you mean `{near}`?" if near else f"TRL has {', '.join(shipped)}; a file is a path that ends in .jinja"
    return [Problem(f"there is no chat template `{template}`", fix, key)]


def check_own_template(folder: Path, key: KeyPath) -> list[Problem]:
    """Problems of the template that comes with a model in `folder`: only that it does not parse."""
    own = read_own_template(folder)
    fault = find_syntax_fault(own.text) if own else None
    if own is None or fault is None:
        return []
    fix = "name another in `model.chat_template`, or mend the file"
    return [Problem(f"the model's own chat template {_placed(own.source, fault)}", fix, key)]


def shipped_templates() -> list[str]:
    """Names of the templates that TRL ships; empty when TRL is not there."""
    folder = _shipped_folder()
    return sorted(path.stem for path in folder.glob("*.jinja")) if folder else []


def read_named_template(name: str) -> ChatTemplate | None:
    """The template that `chat_template` names; None when there is none."""
    folder = _shipped_folder()
    places = [Path(name), *([folder / f"{name.removesuffix('.jinja')}.jinja"] if folder else [])]
    source = next((place for place in places if os.path.isfile(place)), None)
    text = _read(source) if source else None
    return ChatTemplate(text, source) if source and text is not None else None


def read_own_template(folder: Path) -> ChatTemplate | None:
    """The template that a model's folder has, where transformers looks for it; None when it has none."""
    source = folder / "chat_template.jinja"
    text = _read(source)
    if text is not None:
        return ChatTemplate(text, source)
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = (read_json(folder / name) or {}).get("chat_template")
        if isinstance(found, list):  # of several, by name, the one called "default" is used
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return ChatTemplate(found, folder / name)
    return None


def _check_file(path: Path, key: KeyPath) -> list[Problem]:
    why = unreadable(path)
    if why:
        return [Problem(f"the chat template {path} {why}", "", key)]
    text = _read(path)
    if text is None:
        return [Problem(f"the chat template {path} is not UTF-8 text", "", key)]
    fault = find_fault(text)
    return [Problem(f"the chat template {_placed(path, fault)}", "", key)] if fault else []


def _placed(path: Path, fault: Fault) -> str:
    """The fault with its file and, where it is about one of a file of its own, its line."""
    line = f":{fault.line}" if fault.line and path.suffix != ".json" else ""
    inside = f" (its line {fault.line})" if fault.line and path.suffix == ".json" else ""
    return f"{path}{line} {fault.message}{inside}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _shipped_folder() -> Path | None:
    try:
        source = find_module("trl")
    except NotFound:
        return None
    return source.parent / "chat_templates" if source else None
