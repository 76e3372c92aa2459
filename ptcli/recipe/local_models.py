"""Models on this machine, read without torch: folders, run directories, `builtin:` names, and the hub's local cache."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ptcli.errors import RequestError

_CHECKPOINT = re.compile(r"(?P<run>.+)@(?P<step>[0-9]+)", re.DOTALL)
_MAX_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
POINTER = b"version https://git-lfs"
"""How the file begins that stands for one that Git LFS has not fetched."""


ADAPTER_CONFIG = "adapter_config.json"


class BadWeights(Exception):
    """A file of weights that cannot be what it should be. The message says why."""


# --- places ----------------------------------------------------------------------------------------------------------


def resolve_model_path(path: str) -> str:
    """The folder that a model path means: of `builtin:NAME`, of `RUN@500` its checkpoint. Hub ids stay as they are.

    A run directory is the folder of its own final model. Raises RequestError for an unknown `builtin:` name.
    """
    if path.startswith("builtin:"):
        from ptcli.builtin import model_path

        try:
            return str(model_path(path))
        except KeyError as error:
            raise RequestError(str(error.args[0])) from error
    run = checkpoint_of(path)
    return str(Path(run[0]) / f"checkpoint-{run[1]}") if run else path


def checkpoint_of(path: str) -> tuple[str, int] | None:
    """`RUN@500` as run directory and step; None for any other path, also for a folder that is really called so."""
    match = _CHECKPOINT.fullmatch(path)
    if match is None or os.path.isdir(path) or path.startswith("builtin:"):
        return None
    return match["run"], int(match["step"])


def base_model_path(path: str) -> str:
    """Folder or hub id of the whole model that a model path stands for; see `find_base`."""
    return find_base(path)[0]


def find_base(path: str, revision: str | None = None) -> tuple[str, str | None]:
    """Where the weights of a model path are, and their revision: of an adapter its base, of any other the model itself.

    A base that is an adapter itself is followed to its own. An adapter that does not say what its base is stands for
    itself, which is for `ptcli.recipe.model_references` to complain about. Raises RequestError for an unknown
    `builtin:` name.
    """
    seen: list[str] = []
    found = resolve_model_path(path)
    while found not in seen:
        seen.append(found)
        folder = local_folder(found, revision)
        config = adapter_config(folder) if folder else None
        base = (config or {}).get("base_model_name_or_path")
        if config is None or not isinstance(base, str) or not base:
            break
        found, revision = base, config.get("revision")
    return found, revision


def local_folder(resolved: str, revision: str | None = None) -> Path | None:
    """Where a resolved model path lies on this machine: its folder, or a hub model's in the cache; None without one."""
    return Path(resolved) if is_local(resolved) else cached_snapshot(resolved, revision)


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """`adapter_config.json` of a folder. Whatever has one is an adapter: transformers loads it as one, too."""
    return read_json(folder / ADAPTER_CONFIG)


def is_local(path: str) -> bool:
    """Whether a resolved model path is a place on this machine, and not a hub id."""
    return os.path.isabs(path) or path.startswith((".", "~")) or os.path.isdir(path)


def cached_snapshot(repository: str, revision: str | None = None) -> Path | None:
    """Folder of a hub model in the local Hugging Face cache; None when it is not there."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision or ""
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and os.path.isdir(snapshot) else None


def hub_cache() -> Path:
    """Folder of the local Hugging Face cache, where the libraries look for it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "hub"


# --- configs ---------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None when it is not there, cannot be read, or is something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_model_config(path: str, revision: str | None = None) -> dict[str, Any] | None:
    """`config.json` of a model, of an adapter's base where the path is an adapter; None when it is not known here."""
    try:
        folder = local_folder(*find_base(path, revision))
    except RequestError:
        return None
    return read_json(folder / "config.json") if folder else None


# --- weights ---------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """Files of a model's weights, those that an index names included; the files need not be there."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        whole = folder / f"{stem}{suffix}"
        if os.path.exists(whole):
            return [whole]
        index = read_json(folder / f"{stem}{suffix}.index.json")
        if index and isinstance(index.get("weight_map"), Mapping):
            return [folder / name for name in sorted(set(map(str, index["weight_map"].values())))]
    return sorted(folder.glob("*.safetensors"))


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a safetensors file. Raises BadWeights when it is cut off or is no such file."""
    header, start, size = read_json_header(path)
    return _shapes(header, size - start)


def read_json_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Header of a safetensors file, the byte at which its tensors begin, and the file's size. Raises BadWeights."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(POINTER))
            if start == POINTER:
                raise BadWeights("is a Git LFS pointer, not the weights: run `git lfs pull`")
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise BadWeights("is not a safetensors file, or is cut off")
            file.seek(8)
            header = json.loads(file.read(length))
    except OSError as error:
        raise BadWeights(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadWeights("is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise BadWeights("is not a safetensors file: its header does not describe tensors")
    return header, 8 + length, size


def _shapes(header: Any, data: int) -> dict[str, tuple[int, ...]]:
    try:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise BadWeights("is not a safetensors file: its header does not describe tensors") from error
    if end > data:
        raise BadWeights(f"is cut off: {end - data} bytes are missing")
    return shapes


@lru_cache(maxsize=8)
def module_shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """Module name -> shape of its weight, for every module of a local safetensors model; empty when that is unknown."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            return {}
        try:
            header = read_header(path)
        except BadWeights:
            return {}
        shapes |= {name.rpartition(".")[0]: shape for name, shape in header.items() if name.endswith(".weight")}
    config = read_json(folder / "config.json") or {}
    if shapes and "lm_head" not in shapes and config.get("tie_word_embeddings", True):
        shapes["lm_head"] = next((shape for name, shape in shapes.items() if name.endswith("embed_tokens")), (1, 1))
    return shapes


def local_modules(path: str) -> Mapping[str, tuple[int, ...]]:
    """`module_shapes` of a model path, of an adapter's base; empty when the model is not on this machine."""
    try:
        folder = local_folder(base_model_path(path))
    except RequestError:
        return {}
    return module_shapes(folder) if folder is not None else {}


def linear_parameters(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Names of the modules whose weight has two dimensions or more, which an adapter can be put on."""
    return (name for name, shape in shapes.items() if len(shape) >= 2)
