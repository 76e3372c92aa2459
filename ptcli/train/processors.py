"""Load tokenizers as a recipe describes them."""

from __future__ import annotations

from typing import Any

import transformers

from ptcli.errors import WorkError
from ptcli.recipe.local_models import find_base
from ptcli.recipe.model import ModelSpec
from ptcli.recipe.references import resolve_model_path
from ptcli.recipe.rendering import find_syntax_fault
from ptcli.recipe.templates import read_named_template
from ptcli.train.models import has_tokenizer


def load_processor(spec: ModelSpec, *, generates: bool) -> Any:
    """The tokenizer (or a vision model's processor), with the recipe's template and special tokens.

    Padding and truncation on the left where the trainer generates: a prompt must end where its completion begins.
    """
    path = resolve_model_path(spec.path)
    sides = {"padding_side": "left", "truncation_side": "left"} if generates else {}
    source, revision = (path, spec.revision) if has_tokenizer(path) else find_base(spec.path, spec.revision)
    processor = transformers.AutoProcessor.from_pretrained(
        source, revision=revision, trust_remote_code=spec.trust_remote_code, **sides
    )
    if spec.chat_template:
        processor.chat_template = _read_template(spec.chat_template)
    _check_template(processor, spec.path)
    _set_special_tokens(getattr(processor, "tokenizer", processor), spec)
    return processor


def _read_template(name: str) -> str:
    """A Jinja file, or one of the templates that TRL ships, by name."""
    template = read_named_template(name)
    if template is None:
        raise WorkError(f"model.chat_template: there is no file or TRL template `{name}`")
    return template.text


def _check_template(processor: Any, path: str) -> None:
    """A model's own template is read here for the first time when it came from the hub."""
    template = getattr(processor, "chat_template", None)
    fault = find_syntax_fault(template) if isinstance(template, str) else None
    if fault:
        raise WorkError(f"the chat template of {path}, line {fault.line}, {fault.message}; see model.chat_template")


def _set_special_tokens(tokenizer: Any, spec: ModelSpec) -> None:
    for key in ("eos_token", "pad_token"):
        token = getattr(spec, key)
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise WorkError(f"model.{key}: `{token}` is not in the tokenizer's vocabulary")
        setattr(tokenizer, key, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
