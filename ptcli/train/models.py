"""Load models as a recipe describes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import peft
import transformers
from transformers import BitsAndBytesConfig, PreTrainedModel
from trl.trainer.utils import create_model_from_path

from ptcli.errors import WorkError
from ptcli.methods import Head
from ptcli.recipe.catalogue import peft_types
from ptcli.recipe.model import ModelSpec
from ptcli.recipe.references import resolve_model_path
from ptcli.recipe.secrets import reveal
from ptcli.train.config import model_arguments
from ptcli.train.objects import import_class

_CLASSES: Mapping[Head, str] = MappingProxyType(
    {
        "causal_lm": "AutoModelForCausalLM",
        "sequence_classification": "AutoModelForSequenceClassification",
        "token_classification": "AutoModelForTokenClassification",
    }
)
_LABELS: Mapping[Head, Mapping[str, int]] = MappingProxyType(
    {
        "causal_lm": {},
        "sequence_classification": {"num_labels": 1},  # a score
        "token_classification": {"num_labels": 2},  # a step is right or wrong
    }
)
_TASKS: Mapping[Head, str] = MappingProxyType(
    {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS", "token_classification": "TOKEN_CLS"}
)


def load_model(spec: ModelSpec, head: Head, *, trainable: bool = True) -> PreTrainedModel:
    """The model with the given head; an adapter at `spec.path` is continued or merged, as `spec.adapter` says."""
    path = resolve_model_path(spec.path)
    if not _is_adapter(path):
        return _load_plain(path, spec, head)
    base = _load_plain(base_path(spec), spec, head)
    if spec.adapter == "new":
        return base
    model = peft.PeftModel.from_pretrained(base, path, is_trainable=trainable and spec.adapter == "continue")
    return model.merge_and_unload() if spec.adapter == "merge" else model


def base_path(spec: ModelSpec) -> str:
    """Folder or hub id of the weights: `spec.path`, or the base of the adapter that it is."""
    path = resolve_model_path(spec.path)
    if not _is_adapter(path):
        return path
    base = peft.PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise WorkError(f"the adapter {path} does not say what its base model is (adapter_config.json)")
    return str(base)


def is_adapter(spec: ModelSpec) -> bool:
    """True when the path is a local PEFT adapter whose weights are wanted, not only its base."""
    return _is_adapter(resolve_model_path(spec.path)) and spec.adapter != "new"


def quantization_config(spec: ModelSpec) -> BitsAndBytesConfig | None:
    """How to quantise the model while it is loaded; None when the recipe does not ask for it."""
    return BitsAndBytesConfig(**spec.quantization) if spec.quantization else None


def peft_config(section: Mapping[str, Any] | None, head: Head) -> Any:
    """The PEFT config that the recipe's `peft` section stands for; None without one."""
    if section is None:
        return None
    config_class = import_class(peft_types()[section.get("type", "lora")])
    arguments = {"task_type": _TASKS[head]} | {key: value for key, value in section.items() if key != "type"}
    return config_class(**arguments)


def _load_plain(path: str, spec: ModelSpec, head: Head) -> PreTrainedModel:
    arguments = reveal(model_arguments(spec)) | dict(_LABELS[head])
    quantization = quantization_config(spec)
    if quantization is not None:
        arguments["quantization_config"] = quantization
    return create_model_from_path(path, getattr(transformers, _CLASSES[head]), **arguments)


def _is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").exists()


def has_tokenizer(path: str) -> bool:
    """False only for a local adapter that was saved without its tokenizer."""
    return not _is_adapter(path) or (Path(path) / "tokenizer_config.json").exists()
