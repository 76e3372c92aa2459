"""Whether a base is the one that an adapter was trained on: by a fingerprint that the run recorded, else by its name.

A base of the same shape takes any adapter without a word, and what comes out is neither model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptcli.errors import Problem
from ptcli.merge.headers import read_tensors
from ptcli.merge.model import Tensor
from ptcli.recipe.local_models import BadWeights, find_base, local_folder, read_json, weight_files

RECORD = "stack.json"
_TENSORS, _BYTES = 64, 1024
"""Tensors that are looked at, spread evenly over the names, and bytes of each."""


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, dtypes, shapes and the first bytes of some tensors: the same however the files are cut."""
    digest = hashlib.sha256()
    names = sorted(tensors)
    for name in names:
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
    for name in names[:: max(1, len(names) // _TENSORS)]:
        tensor = tensors[name]
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            digest.update(file.read(min(_BYTES, tensor.nbytes)))
    return digest.hexdigest()


def identify(path: str, revision: str | None) -> dict[str, Any]:
    """What a run records of the weights that it starts from; no fingerprint where they are not here, or quantised."""
    name, revision = find_base(path, revision)
    folder = local_folder(name, revision)
    return {"path": name, "revision": revision, "fingerprint": _of_folder(folder) if folder else None}


def _of_folder(folder: Path) -> str | None:
    files = weight_files(folder)
    quantised = (read_json(folder / "config.json") or {}).get("quantization_config")
    if quantised or not files or any(each.suffix != ".safetensors" for each in files):
        return None
    try:
        return fingerprint({name: tensor for path in files for name, tensor in read_tensors(path).items()})
    except (BadWeights, OSError):
        return None


def compare(
    adapter: Path, config: Mapping[str, Any], base: str, tensors: Mapping[str, Tensor]
) -> tuple[Problem | None, str]:
    """What is wrong with a base for an adapter, and what is to be said of it; both empty where it is the right one."""
    named = str(config.get("base_model_name_or_path") or "")
    record = _recorded(adapter, named)
    if record is not None and tensors:
        if record == fingerprint(tensors):
            return None, ""
        message = f"the base {base} has other weights than the run recorded of the model that {adapter} was trained on"
        return Problem(message, f"give that one ({named}): --base PATH"), ""
    if not named or _same_place(named, base):
        return None, ""
    return (
        None,
        f"the adapter was trained on {named}, and is merged into {base}: nothing tells whether they are the same",
    )


def _recorded(adapter: Path, named: str) -> str | None:
    """The fingerprint in the record of the run that the adapter lies in, where it is that of the adapter's base."""
    for folder in (adapter, adapter.parent):
        model = ((read_json(folder / RECORD) or {}).get("models") or {}).get("model") or {}
        if _same_place(str(model.get("path") or ""), named) and model.get("fingerprint"):
            return str(model["fingerprint"])
    return None


def _same_place(one: str, other: str) -> bool:
    return one == other or (os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other))
