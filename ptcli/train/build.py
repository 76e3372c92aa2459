"""From a recipe to a TRL trainer, by the method's row and the trainer's own constructor; no method is named here."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, set_seed

from ptcli.errors import WorkError
from ptcli.methods import METHODS, Head, Method
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.secrets import reveal
from ptcli.train.config import training_arguments
from ptcli.train.models import (
    base_path,
    is_adapter,
    keep_precision,
    load_model,
    load_policy,
    peft_config,
    quantization_config,
)
from ptcli.train.objects import import_class
from ptcli.train.peft_sync import send_plain_names
from ptcli.train.plain_lora import remember_start
from ptcli.train.prepared import load as load_prepared
from ptcli.train.processors import load_processor
from ptcli.train.prompts import check_padding, tokenize_prompts
from ptcli.train.reference import complete_reference, own_reference
from ptcli.train.rendered import load_rows
from ptcli.train.reward_loading import load_rewards, name_models
from ptcli.train.rewards import Reward
from ptcli.train.start import with_start
from ptcli.train.vocabularies import check_vocabularies
from ptcli.train.whole import load_whole
from ptcli.train.wrapped import show_policy

SECTION_OF = {"reward_funcs": "rewards", "teacher_model": "teacher"}
"""Trainer argument -> recipe section, where the names differ and METHODS does not say otherwise."""

SCORERS = frozenset({"reward_model", "value_model"})
"""Sections whose model gives a score instead of a next token."""

TRAINED = frozenset({"value_model"})
"""Sections whose model is trained beside the policy."""


def build_trainer(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> Any:
    """The method's trainer, ready for `train()`. Raises WorkError for what the recipe's parts turn out not to be."""
    row, recipe = METHODS[recipe.method], with_start(recipe)
    trainer_class = import_class(row.trainer)
    parameters = inspect.signature(trainer_class).parameters
    by_path = loads_by_path(recipe.model, parameters)
    load_whole(recipe)
    arguments = build_arguments(recipe, row, by_path=by_path)
    set_seed(recipe.seed)  # before the models: a new head starts at random
    processor = load_processor(recipe.model, generates=row.online)
    check_vocabularies(recipe, processor)
    with PartialState().local_main_process_first():  # it reads the files, the others find its cache
        train, evaluation = load_rows(recipe, processor)
    prepared = load_prepared(recipe, arguments, processor, train, evaluation)
    if row.prompts != "text":
        check_padding(processor)
        train, evaluation = (train, evaluation) if prepared else _as_tokens(train, evaluation, processor)
    given = {
        "args": arguments,
        "processing_class": processor,
        "peft_config": peft_config(recipe.peft, row.head),
        "callbacks": list(callbacks),
        **_policy(recipe, row, parameters, by_path=by_path),
        **_sections(recipe, row, parameters),
        **own_reference(recipe),
    }
    with prepared.kept_by(trainer_class) if prepared else nullcontext((train, evaluation)) as rows:
        given |= dict(zip(("train_dataset", "eval_dataset"), rows, strict=True))
        trainer = trainer_class(**{name: value for name, value in given.items() if name in parameters})
    complete_reference(trainer)
    name_models(trainer, recipe.rewards)
    keep_precision(trainer)
    send_plain_names(trainer)
    remember_start(trainer)
    show_policy(trainer)
    return trainer


def _as_tokens(train: Any, evaluation: Any, processor: Any) -> tuple[Any, Any]:
    """Training and evaluation rows for a trainer that wants prompts as tokens."""
    with PartialState().local_main_process_first():
        train = tokenize_prompts(train, processor, "data.train")
        return train, tokenize_prompts(evaluation, processor, "data.eval") if evaluation else None


def build_arguments(recipe: Recipe, row: Method, *, by_path: bool) -> TrainingArguments:
    """The method's TRL config, secrets revealed.

    A hub token goes into the environment instead: whatever is in the config is pickled to training_args.bin.
    """
    arguments = reveal(training_arguments(recipe))
    tokens = [arguments.pop("hub_token", None), arguments.get("model_init_kwargs", {}).pop("token", None)]
    for token in filter(None, tokens):
        os.environ["HF_TOKEN"] = str(token)
    if not by_path:
        arguments.pop("model_init_kwargs", None)
    try:
        return import_class(row.config)(**arguments)
    except (TypeError, ValueError) as error:
        raise WorkError(f"training: {error}") from error


def loads_by_path(spec: ModelSpec, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """True when the trainer can load this model itself; it then makes its reference in the same way."""
    annotation = parameters["model"].annotation
    named = annotation.split(" | ") if isinstance(annotation, str) else typing.get_args(annotation)
    quantizes = not spec.quantization or "quantization_config" in parameters
    return ("str" in named or str in named) and quantizes and not is_adapter(spec)


def _policy(
    recipe: Recipe, row: Method, parameters: Mapping[str, inspect.Parameter], *, by_path: bool
) -> dict[str, Any]:
    if by_path:
        return {"model": base_path(recipe.model), "quantization_config": quantization_config(recipe.model)}
    return {"model": load_policy(recipe.model, row.head)}


def _sections(recipe: Recipe, row: Method, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The arguments that the method's own sections stand for: rewards, reference, teacher, reward and value model."""
    given: dict[str, Any] = {}
    for name, parameter in parameters.items():
        section = row.arguments.get(name) or SECTION_OF.get(name, name)
        if section in row.sections and getattr(recipe, section):
            given[name] = _section(recipe, section)
        elif section in row.takes and parameter.default is parameter.empty:
            given[name] = None
    return given | _reward_processors(recipe, given, parameters)


def _section(recipe: Recipe, section: str) -> Any:
    value = getattr(recipe, section)
    if section == "rewards":
        rewards = load_rewards(value, awaits=METHODS[recipe.method].awaits_rewards)
        return [_as_reward(reward, recipe) for reward in rewards]
    head: Head = "sequence_classification" if section in SCORERS else "causal_lm"
    return _load_beside(value, head, trainable=section in TRAINED)


def _as_reward(reward: Reward | str, recipe: Recipe) -> Any:
    """A reward model is loaded here: TRL would load it with the policy's own `model_init_kwargs`, revision included."""
    if callable(reward):
        return reward
    return _load_beside(_reward_spec(reward, recipe), "sequence_classification")


def _reward_spec(path: str, recipe: Recipe) -> ModelSpec:
    return ModelSpec(path=path, dtype=recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code)


def _load_beside(spec: ModelSpec, head: Head, *, trainable: bool = False) -> PreTrainedModel:
    """A model beside the policy: frozen, unless it is trained too."""
    model = load_model(spec, head, trainable=trainable)
    if model.config.pad_token_id is None and head != "causal_lm":
        tokenizer = load_processor(spec, generates=False)
        model.config.pad_token_id = tokenizer.pad_token_id  # it scores the last token that is not padding
    return model


def _reward_processors(
    recipe: Recipe, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Each reward model's own tokenizer: TRL would look for it where the model's config says it came from."""
    scores = given.get("reward_funcs")
    if "reward_processing_classes" not in parameters or scores is None:
        return {}
    if not isinstance(scores, list):
        assert recipe.reward_model is not None
        return {"reward_processing_classes": load_processor(recipe.reward_model, generates=False)}
    paths = [
        reward.use if isinstance(score, PreTrainedModel) else None
        for reward, score in zip(recipe.rewards, scores, strict=True)
    ]
    return {
        "reward_processing_classes": [
            path and load_processor(_reward_spec(path, recipe), generates=False) for path in paths
        ]
    }
