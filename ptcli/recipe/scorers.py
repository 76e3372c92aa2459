"""The models that a recipe wants a score of: one number a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.local_models import read_model_config
from ptcli.recipe.model import Recipe

SCORERS = ("reward_model", "value_model")
"""Sections whose model gives a score."""

_TEXT_HEAD, _TOKEN_HEAD = "ForSequenceClassification", "ForTokenClassification"
_USUAL_LABELS = 2
"""What transformers means by a config that does not say how many labels there are."""


def check_scorers(recipe: Recipe) -> Iterator[Problem]:
    """A problem for each reward or value model on this machine that was trained to give something else than a score.

    A model without such a head is none: it gets one, whose weights are random.
    """
    for section in SCORERS:
        spec = getattr(recipe, section)
        if spec is not None:
            yield from _check_head(spec.path, spec.revision, (section, "path"))
    for index, reward in enumerate(recipe.rewards):
        if is_reward_model(reward.use):
            yield from _check_head(reward.use, None, ("rewards", index, "use"))


def is_reward_model(use: str) -> bool:
    """Whether a reward's `use` names a model and not a function."""
    return use.startswith("builtin:") or ":" not in use


def _check_head(path: str, revision: str | None, key: KeyPath) -> Iterator[Problem]:
    config = read_model_config(path, revision) or {}
    named = config.get("architectures")
    heads = [str(each) for each in named] if isinstance(named, list) else []
    fix = "name a reward model: what method `reward` trains"
    if any(head.endswith(_TOKEN_HEAD) for head in heads):
        yield Problem(f"{path} labels tokens ({heads[0]}), and a score is one number a text", fix, key)
    elif any(head.endswith(_TEXT_HEAD) for head in heads) and _labels(config) != 1:
        yield Problem(f"{path} is a classifier of {_labels(config)} labels, and a score is one number a text", fix, key)


def _labels(config: Mapping[str, Any]) -> int:
    names, count = config.get("id2label"), config.get("num_labels")
    if isinstance(names, Mapping):
        return len(names)
    return count if isinstance(count, int) else _USUAL_LABELS
