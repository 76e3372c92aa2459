"""The padding token of a method whose trainer takes prompts as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.recipe.local_models import read_json
from ptcli.recipe.model import Recipe
from ptcli.recipe.tokenizers import known_tokens, tokenizer_folder

_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def check_padding(recipe: Recipe) -> Iterator[Problem]:
    """A problem when padding and end of sequence are one token, as they are where a tokenizer has no padding token.

    Trainers of tokens tell padding by its id alone. They would hide every end of a turn in a prompt, and leave the end
    of an answer out of the loss, so that the policy never learns to stop.
    """
    folder = tokenizer_folder(recipe.model) if METHODS[recipe.method].prompts == "tokens" else None
    if folder is None:
        return
    end = recipe.model.eos_token or _own_token(folder, "eos_token")
    padding = recipe.model.pad_token or _own_token(folder, "pad_token") or end
    if end and padding == end:
        others = sorted(each for each in known_tokens(folder) or () if "pad" in each.lower() and each[:1] in "<[")
        fix = f"set it to {others[0]!r}" if others else "name a token that texts do not have"
        message = f"`model.pad_token`: {recipe.method} needs a padding token that is not the end of sequence {end!r}"
        yield Problem(message, fix, ("model", "pad_token"))


def _own_token(folder: Path, name: str) -> str:
    """A special token of the tokenizer in `folder`; empty when it has none."""
    for file in _FILES:
        token: Any = (read_json(folder / file) or {}).get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            return token
    return ""
