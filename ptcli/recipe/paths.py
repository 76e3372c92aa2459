"""Which values of a recipe are paths, and what they are relative to.

Decides only between a local path, made absolute, and the name of something on the hub; whether a local path is there is
checked by `ptcli.recipe.references`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ptcli.recipe.code import shipped_rewards
from ptcli.recipe.model import CallbackSpec, DataEntry, LaunchSpec, ModelSpec, RewardSpec, Section, SlurmSpec

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_RUNS = "runs/"
"""Where ptcli writes: a run that is not there yet is not looked for on the hub."""
_CHECKPOINT = re.compile(r"(.+)@\d+$")
_DATA_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".arrow", ".gz", ".zst", ".txt"})
_CONFIG_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_TEMPLATE_SUFFIXES = frozenset({".jinja", ".jinja2", ".j2", ".txt"})


class NotAPath(Exception):
    """A value that is neither a local path nor the name of anything. Carries the message and the fix."""


def resolve_path(section: type[Section], field: str, text: str, folder: Path) -> str:
    """The text of a field, with a local path made absolute when it is one of the fields that hold paths.

    Raises NotAPath.
    """
    rule = _RULES.get((section, field))
    if rule and not text:
        raise NotAPath("a path may not be empty", "")
    return rule(text, folder) if rule else text


def absolute(text: str, folder: Path) -> str:
    """`text` relative to `folder`, with `~` for the home folder and without `..`; symbolic links are kept."""
    return os.path.abspath(folder / os.path.expanduser(text))


def _model(text: str, folder: Path) -> str:
    checkpoint = _CHECKPOINT.match(text)
    if text.startswith("builtin:"):
        return text
    if checkpoint or _looks_local(text) or _exists(text, folder):
        return absolute(text, folder)
    if os.path.exists(Path.cwd() / text / "config.json"):
        # A folder that is found only from elsewhere looks like a hub id, which would be fetched instead of it.
        beside = os.path.relpath(Path.cwd() / text, folder)
        message = f"{text!r} is in the working directory, but paths in a recipe are relative to its folder"
        raise NotAPath(message, f"write {beside}, or ./{text} as an override")
    if text.startswith(_RUNS):
        return absolute(text, folder)
    return _hub_id(text, folder, "model")


def _data(text: str, folder: Path) -> str:
    if text.startswith("builtin:"):
        return text
    suffix = os.path.splitext(text)[1].lower()
    if _URL.match(text):
        raise NotAPath("data are not read from URLs", "download the file, or give the id of a hub dataset")
    if _looks_local(text) or suffix in _DATA_SUFFIXES or any(c in text for c in "*?[") or _exists(text, folder):
        return absolute(text, folder)
    return _hub_id(text, folder, "dataset")


def _code(text: str, folder: Path) -> str:
    """`file.py:name`, with the file made absolute, or `package.module:name` as it is."""
    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{absolute(file, folder)}:{name}"
    return text


def _reward(text: str, folder: Path) -> str:
    """A reward of TRL by its bare name is written out; a model of that name can still be named as `./NAME`."""
    if ":" in text and not text.startswith("builtin:"):
        return _code(text, folder)
    if text.isidentifier() and not _exists(text, folder) and text in shipped_rewards():
        return f"trl.rewards:{text}"
    return _model(text, folder)


def _template(text: str, folder: Path) -> str:
    return _named_or_file(text, folder, _TEMPLATE_SUFFIXES)


def _accelerate(text: str, folder: Path) -> str:
    return _named_or_file(text, folder, _CONFIG_SUFFIXES)


def _container(text: str, folder: Path) -> str:
    """An image of a registry (`nvcr.io#nvidia/pytorch:26.01-py3`) looks like a path; a file is one that is there."""
    return absolute(text, folder) if _looks_local(text) or _exists(text, folder) else text


def _named_or_file(text: str, folder: Path, suffixes: frozenset[str]) -> str:
    """A name stays as it is, also when something of that name happens to be in the folder."""
    is_file = _looks_local(text) or "/" in text or os.path.splitext(text)[1].lower() in suffixes
    return absolute(text, folder) if is_file else text


def _looks_local(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..")


def _exists(text: str, folder: Path) -> bool:
    return os.path.exists(folder / text)


def _hub_id(text: str, folder: Path, what: str) -> str:
    if not _HUB_ID.match(text):
        message = f"{text[:80]!r} is neither the id of a hub {what} nor a path that is there"
        raise NotAPath(message, f"an id is NAME or ORGANISATION/NAME; a path is relative to {folder}")
    return text


_RULES: Mapping[tuple[type[Section], str], Callable[[str, Path], str]] = MappingProxyType(
    {
        (ModelSpec, "path"): _model,
        (ModelSpec, "chat_template"): _template,
        (DataEntry, "path"): _data,
        (DataEntry, "map"): _code,
        (DataEntry, "filter"): _code,
        (RewardSpec, "use"): _reward,
        (CallbackSpec, "use"): _code,
        (LaunchSpec, "accelerate"): _accelerate,
        (SlurmSpec, "container"): _container,
    }
)


def is_path(section: type[Section], field: str) -> bool:
    """Whether a field holds a path."""
    return (section, field) in _RULES
