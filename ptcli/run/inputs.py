"""What a run reads must not be what it clears away before it starts: a trained model would be lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.recipe.local_models import base_model_path, is_local, resolve_model_path
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.references import data_lists
from ptcli.run.rundir import is_cleared


def check_inputs(recipe: Recipe, output_dir: Path) -> Iterator[Problem]:
    """A problem for each model or data file of the recipe that a run in `output_dir` would remove or replace."""
    run = output_dir.resolve()
    for key, path in _inputs(recipe):
        if is_cleared(run, path.resolve()):
            name = ".".join(map(str, key))
            message = f"`{name}` is read from {path}, whose files a run in {output_dir} removes before it starts"
            yield Problem(message, "choose another output_dir", key)


def _inputs(recipe: Recipe) -> Iterator[tuple[KeyPath, Path]]:
    """The local models, and of adapters their bases, and the local data of a recipe."""
    for name in Recipe.model_fields:
        if isinstance(spec := getattr(recipe, name), ModelSpec):
            yield from (((name, "path"), place) for place in _places(spec.path))
    for index, reward in enumerate(recipe.rewards):
        if ":" not in reward.use:
            yield from ((("rewards", index, "use"), place) for place in _places(reward.use))
    for key, entries in data_lists(recipe):
        for index, entry in enumerate(entries):
            if is_local(entry.path):
                yield (*key, index, "path"), Path(entry.path)


def _places(path: str) -> Iterator[Path]:
    """The folders that loading a model reads. None for a shipped model that is not there."""
    with suppress(RequestError):
        resolved = dict.fromkeys((resolve_model_path(path), base_model_path(path)))
        yield from (Path(each) for each in resolved if is_local(each))
