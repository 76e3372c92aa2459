"""Load tokenizers as a recipe describes them."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import transformers

from ptcli.errors import WorkError
from ptcli.recipe.model import ModelSpec
from ptcli.recipe.references import resolve_model_path
from ptcli.train.models import base_path, has_tokenizer


def load_processor(spec: ModelSpec, *, generates: bool) -> Any:
    """The tokenizer (or a vision model's processor), with the recipe's template and special tokens.

    Padding and truncation on the left where the trainer generates: a prompt must end where its completion begins.
    """
    path = resolve_model_path(spec.path)
    sides = {"padding_side": "left", "truncation_side": "left"} if generates else {}
    source = path if has_tokenizer(path) else base_path(spec)
    processor = transformers.AutoProcessor.from_pretrained(
        source, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **sides
    )
    if spec.chat_template:
        processor.chat_template = _read_template(spec.chat_template)
    _set_special_tokens(getattr(processor, "tokenizer", processor), spec)
    return processor


def _read_template(name: str) -> str:
    """A Jinja file, or one of the templates that TRL ships, by name."""
    if Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    folder = Path(str(importlib.resources.files("trl"))) / "chat_templates"
    shipped = folder / f"{name.removesuffix('.jinja')}.jinja"
    if not shipped.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.jinja")))
        raise WorkError(f"model.chat_template: there is no file or TRL template `{name}`; TRL has {known}")
    return shipped.read_text(encoding="utf-8")


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
