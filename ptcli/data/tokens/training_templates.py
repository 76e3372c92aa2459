"""The templates that TRL trains with under `assistant_only_loss`: it knows a marked version of its shipped ones."""

from __future__ import annotations

import re
from functools import cache

from ptcli.recipe.templates import read_named_template, shipped_templates

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SUFFIX = "_training"


def training_template(template: str) -> str | None:
    """What the trainer renders with: the template itself where it marks the assistant's parts, the marked version of
    one that TRL ships, and None for any other, at which the trainer stops."""
    return template if _MARKER.search(template) else _versions().get(template)


@cache
def _versions() -> dict[str, str]:
    """Text of a shipped template -> text of its training version, where there is one."""
    names = shipped_templates()
    found: dict[str, str] = {}
    for name in names:
        own, marked = read_named_template(name), read_named_template(name + _SUFFIX)
        if name + _SUFFIX in names and own and marked:
            found[own.text] = marked.text
    return found
