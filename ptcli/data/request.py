"""From what a person typed for `ptcli validate-data` to a recipe, whose data are then checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptcli.errors import Problem, RequestError
from ptcli.methods import METHODS, Method, find_method
from ptcli.recipe.catalogue import fields
from ptcli.recipe.code_references import check_reward
from ptcli.recipe.loading import SourceMap, load_recipe
from ptcli.recipe.local_models import is_local, resolve_model_path
from ptcli.recipe.model import DataEntry, DataSpec, ModelSpec, Recipe, RolloutsSpec
from ptcli.recipe.model_references import check_model
from ptcli.recipe.references import check_data_entries
from ptcli.recipe.templates import check_own_template
from ptcli.recipe.tokenizers import tokenizer_folder

NO_MODEL = ""
"""`model.path` of a request that names no model: its rows are checked without a tokenizer."""


@dataclass(frozen=True)
class DataRequest:
    """A recipe, or a file and a method."""

    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    data: str | None = None
    method: str | None = None
    model: str | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class AcceptedData:
    """A recipe whose data can be checked."""

    recipe: Recipe
    sources: SourceMap
    named_model: bool = False
    """True when a person named the model for its tokenizer, which then must be there."""


def accept_data(request: DataRequest) -> AcceptedData:
    """The recipe that is asked for, or one around the file that is named. Raises RequestError with all problems."""
    if request.recipe is None:
        return AcceptedData(_around_file(request), SourceMap(), named_model=request.model is not None)
    if request.data or request.method or request.model or request.max_length:
        fix = "override the recipe with KEY=VALUE, or leave the recipe out"
        raise RequestError(Problem("--data, --method, --model and --max-length stand in the place of a recipe", fix))
    loaded = load_recipe(request.recipe, request.overrides, references=check_what_data_need)
    return AcceptedData(loaded.require(), loaded.sources)


def check_what_data_need(recipe: Recipe) -> list[Problem]:
    """What a check of the data reads of all that a recipe names: rows, reward functions, and the model's tokenizer.

    Weights need not be there, nor any other model.
    """
    problems = list(check_data_entries(recipe))
    passed = METHODS[recipe.method].reward_arguments
    for index, reward in enumerate(recipe.rewards):
        if ":" in reward.use:
            problems += check_reward(reward, ("rewards", index, "use"), passed)
    return [*problems, *_check_tokenizer(recipe.model)]


def _check_tokenizer(spec: ModelSpec) -> Iterator[Problem]:
    folder = tokenizer_folder(spec)
    if folder is None:
        yield from check_model(spec, ("model",))
    elif spec.chat_template is None:
        yield from check_own_template(folder, ("model", "path"))
    else:
        yield from check_model(ModelSpec(path="builtin:tiny", chat_template=spec.chat_template), ("model",))


def _around_file(request: DataRequest) -> Recipe:
    if request.overrides:
        message = f"KEY=VALUE overrides a recipe, and there is none: {request.overrides[0]}"
        raise RequestError(Problem(message, "write the recipe first: ptcli validate-data RECIPE KEY=VALUE"))
    if request.data is None or request.method is None:
        fix = "ptcli validate-data RECIPE, or ptcli validate-data --data PATH --method METHOD"
        raise RequestError(Problem("there is nothing to check", fix))
    method = find_method(request.method)
    training, rollouts = _with_length(method, request.max_length)
    recipe = Recipe(
        name="data",
        method=method.name,
        output_dir=os.path.abspath("runs/data"),
        model=ModelSpec(path=_model_path(request.model)),
        data=DataSpec(train=[DataEntry(path=_absolute(request.data))]),
        training=training,
        rollouts=rollouts,
    )
    problems = [*check_data_entries(recipe), *(_check_tokenizer(recipe.model) if request.model else ())]
    if problems:
        raise RequestError([Problem(each.message, each.fix) for each in problems])
    return recipe


def _with_length(method: Method, max_length: int | None) -> tuple[dict[str, int], RolloutsSpec]:
    """Where `--max-length` goes: to the trainer, or, where that has none, to what generates for it."""
    if max_length is None:
        return {}, RolloutsSpec()
    if max_length < 1:
        raise RequestError(Problem(f"--max-length is a number of tokens, at least 1; it is {max_length}"))
    if "max_length" in fields(method.config):
        return {"max_length": max_length}, RolloutsSpec()
    return {}, RolloutsSpec(max_model_len=max_length)


def _model_path(path: str | None) -> str:
    if not path:
        return NO_MODEL
    return path if path.startswith("builtin:") or not is_local(resolve_model_path(path)) else _absolute(path)


def _absolute(path: str) -> str:
    """A place on this machine by its whole path; a hub id or a shipped set as it is."""
    expanded = os.path.expanduser(path)
    looks_local = os.path.exists(expanded) or path.startswith((".", "/", "~")) or Path(path).suffix
    return path if path.startswith("builtin:") or not looks_local else os.path.abspath(expanded)
