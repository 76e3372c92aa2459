"""The chat templates that a recipe names."""

from __future__ import annotations

import os
from pathlib import Path

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.code import NotFound, find_module
from ptcli.recipe.files import near_sibling, unreadable
from ptcli.recipe.suggest import nearest


def check_template(template: str, key: KeyPath) -> list[Problem]:
    path = Path(template)
    if path.is_absolute() or os.path.isfile(path):
        if os.path.isfile(path):
            why = unreadable(path)
            return [Problem(f"the chat template {path} {why}", "", key)] if why else []
        return [Problem(f"there is no chat template {path}", near_sibling(path), key)]
    shipped = shipped_templates()
    if not shipped or template.removesuffix(".jinja") in shipped:
        return []
    near = nearest(template.removesuffix(".jinja"), shipped)
    fix = f"did you mean `{near}`?" if near else f"TRL has {', '.join(shipped)}; a file is a path that ends in .jinja"
    return [Problem(f"there is no chat template `{template}`", fix, key)]


def shipped_templates() -> list[str]:
    """Names of the templates that TRL ships; empty when TRL is not there."""
    try:
        source = find_module("trl")
    except NotFound:
        return []
    return sorted(path.stem for path in source.parent.glob("chat_templates/*.jinja")) if source else []
