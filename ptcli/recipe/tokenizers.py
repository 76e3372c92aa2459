"""Tokenizers of the models on this machine, read without transformers: their tokens, and whether two are the same.

What is not on this machine, or in a form that only its own code can read, is unknown, and nothing is said about it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.methods import METHODS
from ptcli.recipe.local_models import find_base, local_folder, read_json, read_model_config, resolve_model_path
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.suggest import nearest
from ptcli.recipe.templates import check_own_template

Vocabulary = Mapping[str, int]
"""Token -> id, added and special tokens included."""

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def check_tokenizers(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the tokenizers: special tokens that are none, a template that does not parse, vocabularies that
    differ where the method wants one."""
    for name in ("model", "ref_model", "reward_model", "value_model", "teacher"):
        spec = getattr(recipe, name)
        if spec is not None:
            yield from _check_special_tokens(spec, (name,))
    folder = tokenizer_folder(recipe.model)
    if folder and recipe.model.chat_template is None:
        yield from check_own_template(folder, ("model", "path"))
    for section in METHODS[recipe.method].same_vocabulary:
        spec = getattr(recipe, section)
        if spec is not None:
            yield from _check_same_vocabulary(recipe.model, spec, section)


# --- reading ---------------------------------------------------------------------------------------------------------


def tokenizer_folder(spec: ModelSpec) -> Path | None:
    """Where a model's tokenizer lies on this machine: in its folder, of an adapter without one in its base's."""
    try:
        places = [(resolve_model_path(spec.path), spec.revision), find_base(spec.path, spec.revision)]
    except RequestError:
        return None
    folders = [folder for folder in (local_folder(*place) for place in places) if folder]
    return next((each for each in folders if any(os.path.exists(each / name) for name in _FILES)), None)


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The tokens of the tokenizer in `folder`; None when it is in a form that is not read here."""
    for name, read in (("tokenizer.json", _whole), ("vocab.json", _mapping), ("vocab.txt", _lines)):
        path = folder / name
        if os.path.isfile(path):
            tokens = read(path, path.stat().st_mtime_ns)
            return {**tokens, **_added_tokens(folder)} if tokens else None
    return None


def known_tokens(folder: Path) -> frozenset[str] | None:
    """Every token that the tokenizer in `folder` has once loaded: transformers adds the special ones that it lacks."""
    tokens = read_vocabulary(folder)
    if tokens is None:
        return None
    config = read_json(folder / "tokenizer_config.json") or {}
    return frozenset(tokens) | {token for name in _SPECIAL if (token := _content(config.get(name)))}


@lru_cache(maxsize=4)
def _whole(path: Path, changed: int) -> Vocabulary:
    """tokenizer.json. `changed` keeps a file that was written again from being taken for what it was."""
    found = read_json(path) or {}
    model = found.get("model")
    tokens = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(tokens, list):  # Unigram: [token, score], the place is the id
        tokens = {each[0]: number for number, each in enumerate(tokens) if isinstance(each, list) and each}
    if not isinstance(tokens, dict):
        return {}
    added = found.get("added_tokens")
    more = {
        each["content"]: each["id"]
        for each in (added if isinstance(added, list) else ())
        if isinstance(each, dict) and isinstance(each.get("content"), str) and isinstance(each.get("id"), int)
    }
    return {**tokens, **more}


@lru_cache(maxsize=4)
def _mapping(path: Path, changed: int) -> Vocabulary:
    return read_json(path) or {}


@lru_cache(maxsize=4)
def _lines(path: Path, changed: int) -> Vocabulary:
    try:
        return {token: number for number, token in enumerate(path.read_text(encoding="utf-8").splitlines())}
    except (OSError, ValueError):
        return {}


def _added_tokens(folder: Path) -> Vocabulary:
    """What stands beside the vocabulary: added_tokens.json, and the table in tokenizer_config.json."""
    beside = read_json(folder / "added_tokens.json") or {}
    tokens = {token: number for token, number in beside.items() if isinstance(number, int)}
    table = (read_json(folder / "tokenizer_config.json") or {}).get("added_tokens_decoder")
    for number, entry in (table if isinstance(table, dict) else {}).items():
        token = _content(entry)
        if token and number.isdecimal():
            tokens[token] = int(number)
    return tokens


def _content(token: Any) -> str:
    """A token as tokenizer_config.json writes it: its text, or a mapping with it; "" for anything else."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


# --- special tokens --------------------------------------------------------------------------------------------------


def _check_special_tokens(spec: ModelSpec, key: KeyPath) -> Iterator[Problem]:
    named = {name: token for name in ("eos_token", "pad_token") if (token := getattr(spec, name)) is not None}
    folder = tokenizer_folder(spec) if named else None
    tokens = known_tokens(folder) if folder else None
    for name, token in named.items() if tokens else ():
        if token not in (tokens or ()):
            message = f"`{key[0]}.{name}`: the tokenizer of {spec.path} has no token {token!r}"
            yield Problem(message, _near_token(token, tokens or frozenset(), folder), (*key, name))


def _near_token(token: str, tokens: frozenset[str], folder: Path | None) -> str:
    """The token that was meant: the nearest of those that look like special ones, else the tokenizer's own."""
    marked = [each for each in tokens if each[:1] in "<[" and each[-1:] in ">]" and len(each) > 2]
    near = nearest(token, marked)
    if near:
        return f"did you mean {near!r}?"
    own = _content((read_json(folder / "tokenizer_config.json") or {}).get("eos_token")) if folder else ""
    return f"its own end-of-sequence token is {own!r}" if own else ""


# --- two tokenizers --------------------------------------------------------------------------------------------------


def _check_same_vocabulary(policy: ModelSpec, spec: ModelSpec, section: str) -> Iterator[Problem]:
    """Problems of a model that reads the policy's tokens (a scorer) or is compared with it token by token (a teacher).

    TRL compares the sizes, and only of a teacher; of one size but with other tokens, both train on garbage (trl#4562).
    """
    sizes = vocabulary_size(policy), vocabulary_size(spec)
    difference = _difference(tokenizer_folder(policy), tokenizer_folder(spec))
    key = (section, "path")
    exact = section == "teacher"  # its probabilities are compared, one for every row of the output layer
    if sizes[0] and sizes[1] and (sizes[0] != sizes[1] if exact else sizes[0] > sizes[1]):
        message = f"`{section}` has a vocabulary of {sizes[1]} tokens (vocab_size), and `model` one of {sizes[0]}"
        yield Problem(f"{message}{'' if difference is None else f': {difference}'}", _fix(section), key)
    elif difference is not None:
        size = f" of the same size ({sizes[0]})" if sizes[0] == sizes[1] and sizes[0] else ""
        yield Problem(f"`{section}` and `model` have different vocabularies{size}: {difference}", _fix(section), key)


def _fix(section: str) -> str:
    what = "whose tokens are compared one by one" if section == "teacher" else "which reads the policy's tokens"
    return f"name a {section.replace('_', ' ')} with the model's own tokenizer, {what}"


def vocabulary_size(spec: ModelSpec) -> int | None:
    """`vocab_size` of a model's config: the rows of its embedding; None when it is not known here."""
    config = read_model_config(spec.path, spec.revision) or {}
    nested = config.get("text_config")
    size = (nested if isinstance(nested, Mapping) else config).get("vocab_size")
    return size if isinstance(size, int) else None


def _difference(first: Path | None, second: Path | None) -> str | None:
    """The first difference between two tokenizers, in words; None when there is none or one of them is unknown.

    Tokens that only one of them has beyond the other's are no difference: a padding token that was added later.
    """
    if first is None or second is None or first == second:
        return None
    ours, theirs = read_vocabulary(first), read_vocabulary(second)
    if ours is None or theirs is None:
        digests = _digest(first), _digest(second)
        return "their tokenizer.model files differ" if all(digests) and digests[0] != digests[1] else None
    return first_difference(ours, theirs)


def first_difference(ours: Vocabulary, theirs: Vocabulary) -> str | None:
    """The first token of the policy's that is another in the other vocabulary, in words; None without one."""
    by_id = {number: token for token, number in theirs.items()}
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        there, elsewhere = by_id.get(number, token), theirs.get(token, number)
        if there != token:
            return f"token {number} is {there!r} there and {token!r} in `model`"
        if elsewhere != number:
            return f"{token!r} is token {elsewhere} there and {number} in `model`"
    return None


def _digest(folder: Path) -> str:
    """Checksum of a SentencePiece model, which is not read here; "" without one."""
    for name in ("tokenizer.model", "spiece.model"):
        try:
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError:
            continue
    return ""
