"""Tokenizers of recipes, from folders that may hold nothing else, and what is known of the models around them.

`from transformers import AutoTokenizer` imports torch where it is installed: 4 s and 400 MiB for nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptcli.errors import Problem, PtcliError, RequestError, WorkError
from ptcli.methods import METHODS
from ptcli.recipe.hub import why_unreachable
from ptcli.recipe.local_models import find_base, is_local, local_folder, read_json, resolve_model_path
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.rendering import find_syntax_fault
from ptcli.recipe.templates import read_named_template, read_own_template
from ptcli.recipe.tokenizers import tokenizer_folder

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class Limits:
    """What is known of the model around a tokenizer; None where it is not."""

    positions: int | None = None
    """Tokens of the longest sequence that the model was made for."""
    embeddings: int | None = None
    """Rows of the embedding: one more than the highest token id it takes."""
    served: int | None = None
    """Longest prompt plus completion of the rollout server."""
    stops: frozenset[int] = frozenset()
    """Token ids that end generation besides the tokenizer's own EOS."""
    vision: bool = False
    """Whether the trainer works with a processor, which wants contents in parts."""

    @property
    def window(self) -> int | None:
        """Tokens of the longest rollout, prompt included."""
        known = [limit for limit in (self.positions, self.served) if limit]
        return min(known) if known else None


def limits_of(recipe: Recipe) -> Limits:
    """What the recipe and the model's config say, which is read without transformers."""
    base = _folder(recipe.model)
    config = (read_json(base / "config.json") if base else None) or {}
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    known = {**config, **(text or {})}
    generation = (read_json(base / "generation_config.json") if base else None) or {}
    return Limits(
        positions=next((value for name in _POSITIONS if (value := _count(known.get(name)))), None),
        embeddings=_count(known.get("vocab_size")),
        served=_served(recipe),
        stops=_stops(generation.get("eos_token_id")),
        vision="vision_config" in config,
    )


def _folder(spec: ModelSpec) -> Path | None:
    try:
        return local_folder(*find_base(spec.path, spec.revision))
    except RequestError:
        return None


def _served(recipe: Recipe) -> int | None:
    asked = recipe.rollouts.max_model_len or recipe.rollouts.engine.get("max_model_len")
    return _count(asked) or _count(recipe.training.get("vllm_max_model_length"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _stops(value: Any) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(each for each in values if isinstance(each, int))


# --- tokenizers ------------------------------------------------------------------------------------------------------


def load_tokenizer(recipe: Recipe, *, hide_torch: bool = False) -> Any:
    """The tokenizer of the recipe's model, with the recipe's template and special tokens, as its trainer gets it.

    Of a vision model its tokenizer, with the processor's template. A missing pad token stays missing: that it is the
    EOS token's part to play then is what a rule says.

    `hide_torch`: import transformers without torch, for a process that never uses torch. It stays without.

    Raises:
        RequestError: for a path or a file that is not there.
        WorkError: for a tokenizer that cannot be loaded, and a token that is not in it.
    """
    spec = recipe.model
    source, revision, folder = _source(spec)
    with without_torch() if hide_torch else nullcontext():
        tokenizer = _load(source, revision, spec, generates=METHODS[recipe.method].online)
    template = _own_template(tokenizer, folder)
    if template is not None:
        tokenizer.chat_template = template
    _apply(tokenizer, spec, recipe)
    return tokenizer


@contextmanager
def without_torch() -> Iterator[None]:
    """While this is entered, libraries that look whether torch is installed do not find it.

    Nothing is hidden where torch is imported already. Whoever enters this must not need torch in this process later.
    """
    if "torch" in sys.modules:
        yield
        return
    find = importlib.util.find_spec
    quiet = os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS")

    def find_others(name: str, package: str | None = None) -> Any:
        return None if name == "torch" or name.startswith("torch.") else find(name, package)

    importlib.util.find_spec = find_others
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would say that no models are available
    try:
        yield
    finally:
        importlib.util.find_spec = find
        if quiet is None:
            os.environ.pop("TRANSFORMERS_NO_ADVISORY_WARNINGS", None)


def _source(spec: ModelSpec) -> tuple[str, str | None, Path | None]:
    """Where the tokenizer is loaded from: a path or hub id, its revision, and its folder on this machine."""
    path = resolve_model_path(spec.path)
    if is_local(path) and not os.path.isdir(path):
        raise RequestError(Problem(f"there is no model {spec.path}", key=("model", "path")))
    folder = tokenizer_folder(spec)
    if folder is not None and any(os.path.exists(folder / name) for name in _VOCABULARIES):
        return str(folder), None, folder  # of a hub model what is cached, which needs no network
    source, revision = find_base(spec.path, spec.revision)
    why = "" if is_local(source) else why_unreachable()
    if why:
        raise WorkError(f"the tokenizer of {spec.path} is not on this machine, and {why}")
    return source, revision, folder


def _load(source: str, revision: str | None, spec: ModelSpec, *, generates: bool) -> Any:
    sides = {"padding_side": "left", "truncation_side": "left"} if generates else {}
    loader = importlib.import_module("transformers").AutoTokenizer
    try:
        return loader.from_pretrained(source, revision=revision, trust_remote_code=spec.trust_remote_code, **sides)
    except PtcliError:
        raise
    except Exception as error:  # a tokenizer's files can be broken in any way, and its code can do anything
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise WorkError(f"the tokenizer of {spec.path} cannot be loaded: {why}") from error


def _own_template(tokenizer: Any, folder: Path | None) -> str | None:
    """A processor's template lies in a file of its own, which a tokenizer does not read in every version."""
    own = read_own_template(folder) if folder else None
    return own.text if own is not None and not tokenizer.chat_template else None


def _apply(tokenizer: Any, spec: ModelSpec, recipe: Recipe) -> None:
    """What the recipe says of template and special tokens: the model's section, then the trainer's own arguments."""
    if spec.chat_template:
        tokenizer.chat_template = _named_template(spec.chat_template, "model.chat_template")
    elif isinstance(tokenizer.chat_template, str):
        _check_syntax(tokenizer.chat_template, f"the chat template of {spec.path}")
    _set_token(tokenizer, "eos_token", spec.eos_token, "model.eos_token")
    _set_token(tokenizer, "pad_token", spec.pad_token, "model.pad_token")
    training = recipe.training
    for name in ("eos_token", "pad_token"):
        _set_token(tokenizer, name, training.get(name), f"training.{name}")
    path = training.get("chat_template_path")
    if path:
        _take_template(tokenizer, str(path))


def _take_template(tokenizer: Any, path: str) -> None:
    """`chat_template_path`: a Jinja file, or a model whose template, added tokens and EOS the trainer takes over."""
    if path.endswith((".jinja", ".j2")):
        tokenizer.chat_template = _named_template(path, "training.chat_template_path")
        return
    other = _load(path, None, ModelSpec(path=path), generates=False)
    tokenizer.chat_template = other.get_chat_template()
    tokenizer.add_tokens([each for each in other.added_tokens_decoder.values() if each.content not in tokenizer.vocab])
    tokenizer.eos_token = other.eos_token


def _named_template(name: str, key: str) -> str:
    template = read_named_template(name)
    if template is None:
        raise WorkError(f"{key}: there is no file or TRL template `{name}`")
    _check_syntax(template.text, str(template.source))
    return template.text


def _check_syntax(template: str, what: str) -> None:
    fault = find_syntax_fault(template)
    if fault:
        raise WorkError(f"{what}, line {fault.line}, {fault.message}; see model.chat_template")


def _set_token(tokenizer: Any, name: str, token: Any, key: str) -> None:
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise WorkError(f"{key}: `{token}` is not in the tokenizer's vocabulary")
    setattr(tokenizer, name, token)
