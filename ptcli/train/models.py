"""Load models as a recipe describes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import peft
import torch
import transformers
from transformers import BitsAndBytesConfig, PreTrainedModel
from trl.trainer.utils import create_model_from_path

from ptcli.errors import WorkError
from ptcli.methods import Head
from ptcli.recipe.adapter_folders import TASKS, adapter_folder
from ptcli.recipe.catalogue import peft_types
from ptcli.recipe.local_models import ADAPTER_CONFIG, adapter_config, find_base
from ptcli.recipe.model import ModelSpec
from ptcli.recipe.secrets import reveal
from ptcli.train.config import model_arguments
from ptcli.train.fresh import load_fresh
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


_NEW_HEADS = ("score", "classifier")
"""Names of a new head. PEFT trains it whole, so no adapter goes on it; only for this task it forgets that."""


def auto_class(head: Head) -> Any:
    """The transformers class that loads a model with this head."""
    return getattr(transformers, _CLASSES[head])


def load_policy(spec: ModelSpec, head: Head) -> Any:
    """The model to train: of an adapter that is to be continued, its base with it on, trainable."""
    folder = adapter_folder(spec) if spec.adapter == "continue" else None
    model = _load_plain(spec, head)
    return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True) if folder else model


def load_model(spec: ModelSpec, head: Head, *, trainable: bool = False) -> PreTrainedModel:
    """A model that gets no adapter of its own: frozen unless `trainable`. What its path adds to a base is merged in."""
    folder = adapter_folder(spec)
    model = _load_plain(spec, head)
    if folder is not None:
        model = merge_adapter(model, folder)
    return model.requires_grad_(trainable)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`model` with the adapter of a folder merged into its weights: W + scale x B A for LoRA.

    Input and output embeddings that are one tensor are two while an adapter is merged into one of them, or both would
    get its change, and stay two if they then differ (user-pain.md C5; PEFT sees to it only for `modules_to_save`).
    """
    config = model.config.get_text_config()
    together = bool((adapter_config(folder) or {}).get("ensure_weight_tying"))
    outputs = model.get_output_embeddings()
    tied = outputs is not None and outputs.weight is model.get_input_embeddings().weight and not together
    if tied:
        outputs.weight = torch.nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
    merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    if tied and merged.get_output_embeddings().weight.equal(merged.get_input_embeddings().weight):
        merged.get_output_embeddings().weight = merged.get_input_embeddings().weight
        config.tie_word_embeddings = merged.config.tie_word_embeddings = True
    return merged


def keep_precision(trainer: Any) -> None:
    """Hold what is trained beside quantised weights in float32 where the run computes in float32.

    TRL casts it to bfloat16 (as the QLoRA paper does), which only works under mixed precision: the score head of a
    reward model, or whatever is in `modules_to_save`, would meet float32 inputs.
    """
    model, arguments = trainer.model, trainer.args
    if arguments.bf16 or arguments.fp16 or getattr(model, "quantization_method", None) is None:
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


def base_path(spec: ModelSpec) -> str:
    """Folder or hub id of the weights: `spec.path`, or the base of the adapter that it is."""
    return find_base(spec.path, spec.revision)[0]


def is_adapter(spec: ModelSpec) -> bool:
    """True when the path is an adapter that is to be trained on, which no trainer loads by itself."""
    return spec.adapter == "continue" and adapter_folder(spec) is not None


def quantization_config(spec: ModelSpec) -> BitsAndBytesConfig | None:
    """How to quantise the model while it is loaded; None when the recipe does not ask for it."""
    return BitsAndBytesConfig(**spec.quantization) if spec.quantization else None


def peft_config(section: Mapping[str, Any] | None, head: Head) -> Any:
    """The PEFT config that the recipe's `peft` section stands for; None without one. Raises WorkError as PEFT refuses.

    PEFT makes its own dataclasses of the mappings in it (`velora_config` and the like), of all but one.
    """
    if section is None:
        return None
    config_class = import_class(peft_types()[section.get("type", "lora")])
    arguments = {"task_type": TASKS[head]} | {key: value for key, value in section.items() if key != "type"}
    takes = config_class.__dataclass_fields__
    if (
        head == "token_classification"
        and arguments.get("target_modules") == "all-linear"
        and "exclude_modules" in takes
    ):
        arguments = {"exclude_modules": list(_NEW_HEADS)} | arguments
    try:
        if isinstance(arguments.get("runtime_config"), Mapping):
            arguments["runtime_config"] = peft.LoraRuntimeConfig(**arguments["runtime_config"])
        return config_class(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise WorkError(f"peft: {error}") from error


def _load_plain(spec: ModelSpec, head: Head) -> PreTrainedModel:
    """The model without an adapter, of random weights where the recipe says so; of an adapter its base."""
    path, revision = find_base(spec.path, spec.revision)
    arguments = reveal(model_arguments(spec.model_copy(update={"revision": revision}))) | dict(_LABELS[head])
    if spec.from_ == "config":
        return load_fresh(path, _CLASSES[head], arguments)
    quantization = quantization_config(spec)
    if quantization is not None:
        arguments["quantization_config"] = quantization
    return create_model_from_path(path, auto_class(head), **arguments)


def has_tokenizer(path: str) -> bool:
    """False only for a local adapter that was saved without its tokenizer."""
    folder = Path(path)
    return not (folder / ADAPTER_CONFIG).exists() or (folder / "tokenizer_config.json").exists()
