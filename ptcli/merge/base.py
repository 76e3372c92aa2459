"""The model that an adapter belongs to: where it is, whether it can be merged into, and what its headers say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptcli.errors import Problem, RequestError
from ptcli.merge.headers import read_tensors
from ptcli.merge.hub import download as fetch
from ptcli.merge.model import Tensor
from ptcli.recipe.files import near_sibling
from ptcli.recipe.local_models import (
    ADAPTER_CONFIG,
    BadWeights,
    is_local,
    local_folder,
    read_json,
    resolve_model_path,
    weight_files,
)

INDEX = "model.safetensors.index.json"
_OF = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_BNB_NAME = re.compile(r"(-unsloth)?-bnb-(4|8)bit$")


@dataclass(frozen=True)
class Base:
    """A base on this machine."""

    folder: Path
    name: str
    """A hub id, or the folder as it was given."""
    revision: str | None
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """By name, in the order of the files; empty where the weights are pickled."""
    notes: tuple[str, ...] = ()
    original: bool = False
    """It is what the quantised model was made from that was asked for."""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(each.file for each in self.tensors.values()))

    @property
    def tied(self) -> bool:
        """Whether input and output embeddings are one tensor. A config that says nothing leaves it to the files."""
        text = self.config.get("text_config")
        told = self.config.get("tie_word_embeddings")
        if told is None and isinstance(text, Mapping):
            told = text.get("tie_word_embeddings")
        return bool(told) if told is not None else not any(name.endswith("lm_head.weight") for name in self.tensors)


def read_base(path: str, revision: str | None, *, download: bool = False) -> Base:
    """The base at a path: a folder, a run directory, a hub id.

    Raises RequestError when it is not there, is quantised, or its files cannot be what they should be.
    """
    name, folder, notes = _find_unquantised(path, revision, download)
    config = read_json(folder / "config.json")
    if config is None:
        raise RequestError(f"the base {name} is not a model: {folder} has no config.json that is a JSON mapping")
    files, told = _find_files(folder, name)
    pickled = any(each.suffix != ".safetensors" for each in files)
    tensors = {} if pickled else _read_files(files, name)
    _check_index(folder, tensors, name)
    return Base(folder, name, revision, config, tensors, (*notes, *told), original=bool(notes))


def _check_index(folder: Path, tensors: Mapping[str, Tensor], name: str) -> None:
    """Every tensor that the index names is in the files."""
    places = (read_json(folder / INDEX) or {}).get("weight_map") if tensors else None
    missing = [each for each in places if each not in tensors] if isinstance(places, Mapping) else []
    if missing and not (folder / "model.safetensors").exists():
        message = f"the base {name} lacks weights: {', '.join(missing[:3])} of its index is in none of its files"
        raise RequestError(Problem(message, "download it again"))


def _find_unquantised(path: str, revision: str | None, download: bool) -> tuple[str, Path, list[str]]:
    folder = _find_folder(path, revision, download)
    quantised = (read_json(folder / "config.json") or {}).get("quantization_config")
    if not quantised:
        return path, folder, []
    method = _method(quantised)
    if not method.startswith("bitsandbytes"):
        message = f"the base {path} is quantised ({method}), and a merge into quantised weights would lose the change"
        raise RequestError(Problem(message, "give the model it was made from: --base ORIGINAL (bf16 or fp16)"))
    original = _original_of(path, folder)
    if original is None:
        message = f"the base {path} is quantised ({method}); an adapter is merged into the model as it was before"
        raise RequestError(Problem(message, "give that one: --base ORIGINAL (bf16 or fp16)"))
    found = _find_folder(original, None, download)
    if (read_json(found / "config.json") or {}).get("quantization_config"):
        raise RequestError(Problem(f"the base {path} is quantised, and so is {original}", "give --base ORIGINAL"))
    note = f"the base {path} is quantised ({method}); merged into the model it was made from, {original}"
    return original, found, [note]


def _method(quantised: Any) -> str:
    """What quantised a model, in a word: `gptq`, `fp8`, `bitsandbytes, 4 bit`."""
    values = quantised if isinstance(quantised, Mapping) else {}
    bits = next((bit for bit in (4, 8) if values.get(f"load_in_{bit}bit") or values.get(f"_load_in_{bit}bit")), None)
    method = str(values.get("quant_method") or ("bitsandbytes" if bits else "in a way that its config does not name"))
    return f"{method}, {bits} bit" if bits and method == "bitsandbytes" else method


def _original_of(path: str, folder: Path) -> str | None:
    """The model that a bitsandbytes one was made from, as its config, its model card or its name says."""
    told = (read_json(folder / "config.json") or {}).get("_name_or_path")
    card = _base_of_card(folder / "README.md")
    by_name = _BNB_NAME.sub("", path)
    candidates = (told, card, by_name)
    return next((str(each) for each in candidates if each and each not in (path, str(folder))), None)


def _base_of_card(card: Path) -> str | None:
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    match = re.search(r"^base_model:\s*(?:-\s*)?([\w./-]+)\s*$", text, re.MULTILINE)
    return match[1] if match else None


def _find_folder(path: str, revision: str | None, download: bool) -> Path:
    resolved = resolve_model_path(os.path.expanduser(path))
    if is_local(resolved):
        folder = Path(resolved)
        if not folder.is_dir():
            raise RequestError(
                Problem(f"there is no model folder {folder}", near_sibling(folder) or "give --base PATH")
            )
        if (folder / ADAPTER_CONFIG).exists():
            raise RequestError(
                Problem(f"the base {path} is an adapter itself", "merge that one first, and give --base")
            )
        return folder
    found = local_folder(resolved, revision)
    if found is not None and _whole(found):
        return found
    if not download:
        fix = "download it first, or leave out --dry-run; or give a folder with --base"
        raise RequestError(Problem(f"the base {path} is not on this machine", fix))
    return fetch(path, revision, "the base", "give a folder with --base")


def _whole(snapshot: Path) -> bool:
    """Whether a hub model's weights are in the cache, and not only its config."""
    files = weight_files(snapshot)
    return bool(files) and all(os.path.exists(each) for each in files)


def _find_files(folder: Path, name: str) -> tuple[list[Path], list[str]]:
    """Files of the weights, and what is to be said of them."""
    files = [each for each in weight_files(folder) if not each.name.startswith("adapter_")]
    if not files and any(folder.glob("*.gguf")):
        raise RequestError(Problem(f"the base {name} is a GGUF file", "give the safetensors model: --base ORIGINAL"))
    if not files:
        raise RequestError(f"the base {name} has no weights: {folder} has neither model.safetensors nor shards")
    missing = [each.name for each in files if not os.path.exists(each)]
    if missing:
        raise RequestError(Problem(f"the base {name} lacks weights: {', '.join(missing[:3])}", "download it again"))
    if len(files) > 1 and files[0].suffix == ".safetensors" and not (folder / INDEX).exists():
        return _without_index(files, name), [f"the base's shards have no index ({INDEX}); the merged model gets one"]
    return files, []


def _without_index(files: list[Path], name: str) -> list[Path]:
    """The shards among the files of a folder without an index: `consolidated.safetensors` and the like hold the same
    weights once more."""
    files = [each for each in files if each.name.startswith("model")] or files
    numbered = [match for each in files if (match := _OF.fullmatch(each.name))]
    for match in numbered:
        wanted = [f"{match['stem']}-{number:05}-of-{match['count']}.safetensors"
                  for number in range(1, int(match["count"]) + 1)]  # fmt: skip
        missing = sorted(set(wanted) - {each.name for each in files})
        if missing:
            raise RequestError(Problem(f"the base {name} lacks weights: {', '.join(missing[:3])}", "download it again"))
    return files


def _read_files(files: list[Path], name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    problems = []
    for path in files:
        try:
            tensors = read_tensors(path)
        except BadWeights as error:
            problems.append(Problem(f"the base {name}: {path.name} {error}"))
            continue
        twice = next((each for each in tensors if each in found), None)
        if twice:
            problems.append(Problem(f"the base {name}: {twice} is both in {found[twice].file.name} and {path.name}"))
        found |= tensors
    if problems:
        raise RequestError(problems)
    return found
