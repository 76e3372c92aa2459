"""Keeps secrets of the environment out of everything that is written or printed."""

from __future__ import annotations

import os
from collections.abc import Mapping

_SHORTEST = 8
"""Shorter values are more often words (`true`, `none`) than secrets."""


def mask(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text with every secret of the environment replaced by `${oc.env:NAME}`, which a recipe reads back.

    A secret is the value of a variable whose name says so (HF_TOKEN, WANDB_API_KEY), unless it is a path.
    """
    from ptcli.recipe.secrets import is_secret_name

    environ = os.environ if environ is None else environ
    for name, value in sorted(environ.items(), key=lambda item: -len(item[1])):
        if len(value) >= _SHORTEST and not value.startswith(("/", "~", "./")) and is_secret_name(name):
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text
