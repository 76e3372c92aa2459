"""Tokenizers of hub models, compared once they can be: before any weights are downloaded or loaded."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.recipe.local_models import find_base, is_local
from ptcli.recipe.model import Recipe
from ptcli.recipe.tokenizers import first_difference


def check_vocabularies(recipe: Recipe, processor: Any) -> None:
    """Raises WorkError when a model that must share the policy's vocabulary has other tokens.

    What lies on this machine was compared when the recipe was read (`ptcli.recipe.tokenizers`).
    """
    ours = getattr(processor, "tokenizer", processor).get_vocab()
    for section in METHODS[recipe.method].same_vocabulary:
        spec = getattr(recipe, section)
        path, revision = find_base(spec.path, spec.revision) if spec is not None else ("", None)
        if not path or is_local(path):
            continue
        try:
            other = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=spec.trust_remote_code)
        except (OSError, ValueError):  # it comes without one, and is given the policy's tokens
            continue
        difference = first_difference(ours, other.get_vocab())
        if difference:
            raise WorkError(f"`{section}` and `model` have different vocabularies: {difference}")
