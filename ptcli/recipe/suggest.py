"""Which key somebody meant who wrote another."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel

from ptcli.recipe.model import Recipe, keys_of

NOT_BUILT = {
    "": frozenset({"tools", "environment", "evaluate"}),
    "launch": frozenset({"nccl"}),
}
"""Keys that are kept for what is not built yet, by section."""

_OTHER_NAMES = {
    "base_model": "model.path",
    "batch_size": "training.per_device_train_batch_size",
    "dataset": "data.train",
    "dataset_name": "data.train.0.path",
    "datasets": "data.train",
    "epochs": "training.num_train_epochs",
    "lora": "peft",
    "lora_config": "peft",
    "lr": "training.learning_rate",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "num_epochs": "training.num_train_epochs",
    "peft_config": "peft",
    "reward_funcs": "rewards",
    "reward_functions": "rewards",
    "teacher_model": "teacher",
    "train_dataset": "data.train",
    "eval_dataset": "data.eval",
    "trainer": "method",
    "vllm": "rollouts",
}

_SYNONYMS = {
    "model": dict.fromkeys(("name", "model", "model_name_or_path", "repo"), "path"),
    "data.train": {
        **dict.fromkeys(("data_files", "dataset", "dataset_name", "file", "files"), "path"),
        **dict.fromkeys(("format", "type"), "from"),
        **dict.fromkeys(("probability", "ratio"), "weight"),
        **dict.fromkeys(("limit", "max_samples", "num_samples", "head"), "take"),
        "roles": "map_roles",
        "select_columns": "columns",
    },
    "rewards": dict.fromkeys(("function", "name", "path"), "use"),
    "callbacks": dict.fromkeys(("class", "name", "path"), "use"),
    "guards": {
        "nan": "non_finite",
        "zero_std": "reward_variance",
        "frac_reward_zero_std": "reward_variance",
        "clipped": "clipped_completions",
        "clipped_ratio": "clipped_completions",
        "adapter": "adapter_moves",
    },
}
"""By section, what other programs call a key of it."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that `word` looks like most, or None when it looks like none."""
    known = {_normal(known): known for known in words}
    found = difflib.get_close_matches(_normal(word), known, n=1, cutoff=0.7)
    return known[found[0]] if found else None


def quote_nearest(word: str, words: Iterable[str]) -> str:
    """A question that names the nearest of `words`, or nothing."""
    close = nearest(word, words)
    return f"did you mean `{close}`?" if close else ""


def is_meant(key: str, wanted: str, place: str) -> bool:
    """Whether who wrote the unknown `key` in the section at `place` meant the key `wanted` of it."""
    return nearest(key, [wanted]) is not None or _SYNONYMS.get(place, {}).get(_normal(key)) == wanted


def advise_on_key(key: str, known: Iterable[str], place: str, library_home: Callable[[str], str]) -> str:
    """What to do about the unknown `key` of the section at `place` (dotted, no indices), whose keys are `known`.

    `library_home` gives the recipe key for a library's key, or nothing.
    """
    known = list(known)
    word = _normal(key)
    if word in _SYNONYMS.get(place, {}):
        return f"did you mean `{_SYNONYMS[place][word]}`?"
    other_name = _OTHER_NAMES.get(word, "")
    close = nearest(key, known)
    if close and not other_name:
        return f"did you mean `{close}`?"
    homes = [home for home in (other_name, *_homes(key, library_home)) if home]
    if homes:
        return f"in a recipe that is `{homes[0]}`" if other_name else f"it belongs under `{homes[0]}`"
    return f"the keys here are {', '.join(known)}" if known else ""


def _homes(key: str, library_home: Callable[[str], str]) -> Iterator[str]:
    """Where in a recipe a key is at home, the likeliest place first."""
    word = _normal(key)
    if word in Recipe.model_fields:
        yield word
    yield from (place for place in _PLACES if place.rpartition(".")[2] == word)
    yield library_home(word)


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def _places(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        for section in sections_in(field.annotation):
            yield from (f"{prefix}{name}.{inner}" for inner in keys_of(section))
            yield from _places(section, f"{prefix}{name}.")


def _normal(word: str) -> str:
    return word.strip().lower().replace("-", "_")


_PLACES = tuple(dict.fromkeys(_places(Recipe, "")))
