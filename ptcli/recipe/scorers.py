"""The models that a recipe wants a score of: one number a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.local_models import adapter_config, local_folder, read_model_config, resolve_model_path
from ptcli.recipe.model import Recipe

SCORERS = ("reward_model", "value_model")
"""Sections whose model gives a score."""

_TEXT_HEAD, _TOKEN_HEAD, _NO_HEAD = "ForSequenceClassification", "ForTokenClassification", "ForCausalLM"
_USUAL_LABELS = 2
"""What transformers means by a config that does not say how many labels there are."""


def check_scorers(recipe: Recipe) -> Iterator[Problem]:
    """A problem for each reward or value model on this machine that was trained to give something else than a score.

    A model without such a head is none: it gets one, whose weights are random.
    """
    for key, path, revision in _scorers(recipe):
        yield from _check_head(path, revision, key)


def scorer_paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Place in the recipe (dotted) and path of every model that gives a score."""
    return ((".".join(map(str, key)), path) for key, path, _ in _scorers(recipe))


def gets_new_head(path: str) -> bool:
    """Whether the model is known to have no head that could give a score: a language model, not an adapter."""
    folder = local_folder(resolve_model_path(path))
    if folder is None or adapter_config(folder):
        return False
    return any(head.endswith(_NO_HEAD) for head in _heads(read_model_config(path) or {}))


def _scorers(recipe: Recipe) -> Iterator[tuple[KeyPath, str, str | None]]:
    for section in SCORERS:
        spec = getattr(recipe, section)
        if spec is not None:
            yield (section, "path"), spec.path, spec.revision
    for index, reward in enumerate(recipe.rewards):
        if is_reward_model(reward.use):
            yield ("rewards", index, "use"), reward.use, None


def is_reward_model(use: str) -> bool:
    """Whether a reward's `use` names a model and not a function."""
    return use.startswith("builtin:") or ":" not in use


def _check_head(path: str, revision: str | None, key: KeyPath) -> Iterator[Problem]:
    config = read_model_config(path, revision) or {}
    heads = _heads(config)
    fix = "name a reward model: what method `reward` trains"
    if any(head.endswith(_TOKEN_HEAD) for head in heads):
        yield Problem(f"{path} labels tokens ({heads[0]}), and a score is one number a text", fix, key)
    elif any(head.endswith(_TEXT_HEAD) for head in heads) and _labels(config) != 1:
        yield Problem(f"{path} is a classifier of {_labels(config)} labels, and a score is one number a text", fix, key)


def _heads(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(each) for each in named] if isinstance(named, list) else []


def _labels(config: Mapping[str, Any]) -> int:
    names, count = config.get("id2label"), config.get("num_labels")
    if isinstance(names, Mapping):
        return len(names)
    return count if isinstance(count, int) else _USUAL_LABELS
