"""The pinned libraries' own fields: what a recipe may write under `training`, `peft` and the like, and of what type.

Read from `catalogue.json`, which `ptcli.recipe.generate_catalogue` writes; nothing heavy is imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.recipe import owned
from ptcli.recipe.model import LaunchSpec, ModelSpec, RolloutsSpec, keys_of
from ptcli.recipe.tree import dotted
from ptcli.recipe.values import Schema, Unfit, bare_word, fit, listed, meant_word, shown, type_problem

PATH = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True)
class FieldSpec:
    """One field of a library's config."""

    schema: Schema
    """JSON-schema fragment of its type; empty: anything."""
    default: Any = None
    """Its default; None also where the default is not a JSON value."""
    help: str = ""
    """What it is for, in one sentence."""
    switch: bool = False
    """A command-line flag that can only be given, not negated."""
    frontend: bool = False
    """A flag of `vllm serve` that says something of the HTTP server, and nothing of the engine behind it."""


# --- reading ---------------------------------------------------------------------------------------------------------


@cache
def _catalogue() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))


@cache
def fields(class_name: str) -> Mapping[str, FieldSpec]:
    """Every field of a class ("trl:GRPOConfig", "peft:LoraConfig", "vllm:serve", ...). KeyError if not catalogued."""
    entry = _catalogue()["classes"][class_name]
    shared = _catalogue()["shared"].get(entry.get("shared"), {})
    return {name: FieldSpec(**value) for name, value in sorted({**shared, **entry["fields"]}.items())}


def versions() -> Mapping[str, str]:
    """The library versions that the catalogue was made from."""
    return _catalogue()["versions"]


def peft_types() -> Mapping[str, str]:
    """What `peft.type` may say, with the class name of each."""
    return _catalogue()["peft_types"]


def accelerate_keys(section: str = "top") -> frozenset[str]:
    """Keys of an accelerate config file: "top", "deepspeed_config", "fsdp_config" or "parallelism_config"."""
    return frozenset(_catalogue()["accelerate"][section])


# --- keys ------------------------------------------------------------------------------------------------------------

_KINDS = {"trl": "training", "peft": "peft", "vllm": "engine", "transformers": "quantization"}


def _kind(class_name: str) -> str:
    return _KINDS[re.split("[.:]", class_name, maxsplit=1)[0]]


@cache
def methods_with(field: str) -> tuple[str, ...]:
    """The methods whose config has `field`."""
    return tuple(name for name, row in METHODS.items() if field in fields(row.config))


def _takes(method: str | None, place: str) -> bool:
    """Whether a recipe of `method` may have the section that `place` is in."""
    section = place.partition(".")[0]
    row = METHODS.get(method or "")
    if row is None:
        return True
    if section == "rollouts":
        return bool(row.backends)
    return section not in ("rewards", "reward_model", "value_model", "teacher", "ref_model") or section in row.sections


def owner_of(class_name: str, name: str, method: str | None) -> owned.Owner | None:
    """Who owns the library's key `name` in a recipe, if it is not the library's section itself."""
    owner = owned.OWNED[_kind(class_name)].get(name)
    if owner is None or name in fields(class_name):
        return owner
    if owner.place and _takes(method, owner.place):
        return owner
    return None if methods_with(name) else owner


def _owned_problem(key: KeyPath, owner: owned.Owner, method: str | None) -> Problem:
    if owner.reason:
        return Problem(f"`{dotted(key)}` {owner.reason}", owner.fix, key)
    place = next((p for p in (owner.place, owner.otherwise) if p and _takes(method, p)), "")
    if place.startswith("--"):
        return Problem(f"`{dotted(key)}` is an option of the command line, `{place}`", owner.fix, key)
    if place:
        return _misplaced(key, place, owner.fix)
    section = owner.place.partition(".")[0]
    return Problem(f"`{dotted(key)}` has no place with {method}, which takes no `{section}`", "leave it out", key)


def _misplaced(key: KeyPath, place: str, fix: str = "") -> Problem:
    return Problem(f"`{dotted(key)}` is what `{place}` says in a recipe", fix or f"set `{place}` instead", key)


def _successor(class_name: str, name: str) -> str:
    known = fields(class_name)
    return next((new for new in owned.RENAMED[_kind(class_name)].get(name, ()) if new in known or new == "type"), "")


_SECTIONS: Mapping[str, Any] = {"rollouts": RolloutsSpec, "launch": LaunchSpec, "model": ModelSpec}


def _elsewhere(class_name: str, name: str, method: str | None) -> str:
    """The place of a key that is misplaced: a key of another section, or a field of another section's library."""
    for section, spec in _SECTIONS.items():
        if name in keys_of(spec) and name not in ("path", "env", "mode") and _takes(method, section):
            return f"{section}.{name}"
    others = {"peft.": "peft:LoraConfig", "model.quantization.": "transformers:BitsAndBytesConfig"}
    if _takes(method, "rollouts"):
        others["rollouts.engine."] = "vllm:serve"
    if method in METHODS:
        others["training."] = METHODS[str(method)].config
    for prefix, other in others.items():
        kind = _kind(other)
        field = next((new for new in (name, *owned.RENAMED[kind].get(name, ())) if new in fields(other)), "")
        if field and kind != _kind(class_name) and field not in owned.OWNED[kind]:
            return prefix + field
    return ""


def home_of(name: str, method: str | None) -> str:
    """The recipe key for what a library, or a flat config of another program, calls `name`; empty when none does."""
    configs = [METHODS[method].config] if method else [row.config for row in METHODS.values()]
    sections = dict.fromkeys(configs, "training.")
    sections |= {"peft:LoraConfig": "peft.", "transformers:BitsAndBytesConfig": "model.quantization."}
    sections |= {"vllm:serve": "rollouts.engine."} if _takes(method, "rollouts") else {}
    homes = (_home_in(class_name, prefix, name, method) for class_name, prefix in sections.items())
    return next(filter(None, homes), "")


def _home_in(class_name: str, prefix: str, name: str, method: str | None) -> str:
    owner = owner_of(class_name, name, method)
    if owner and owner.place and not owner.place.startswith("--"):
        return owner.place
    field = name if name in fields(class_name) and not owner else _successor(class_name, name)
    return prefix + field if field else ""


def _gone_problem(class_name: str, key: KeyPath, method: str | None) -> Problem | None:
    """The problem for a key that was renamed or removed, or that is another method's."""
    name, path = str(key[-1]), dotted(key)
    new = _successor(class_name, name)
    if new:
        return Problem(f"`{path}` is called `{new}` here", owned.RENAMED_FIX.get(name, f"write `{new}`"), key)
    if _kind(class_name) != "training":
        return None
    if name in owned.REMOVED:
        return Problem(f"`{path}` does not exist any more: {owned.REMOVED[name][0]}", owned.REMOVED[name][1], key)
    having = methods_with(name)
    if not having:
        return None
    place = "" if name not in owned.OWNED["training"] else owned.OWNED["training"][name].place
    section = f", which takes no `{place.partition('.')[0]}`" if place and not _takes(method, place) else ""
    message = f"`{path}` belongs to {listed(having, 'and')}, not to {method or 'this method'}{section}"
    return Problem(message, "leave it out", key)


def _near_owned(class_name: str, name: str, method: str | None) -> str:
    """The place of the nearest of the library's keys that other sections own; empty when there is none."""
    owners = {each: owner.place for each, owner in owned.OWNED[_kind(class_name)].items() if not owner.reason}
    near = meant_word(name, [each for each, place in owners.items() if _takes(method, place)])
    return owners.get(near, "")


def _unknown_problem(class_name: str, key: KeyPath, method: str | None) -> Problem:
    gone = _gone_problem(class_name, key, method)
    if gone:
        return gone
    name, path = str(key[-1]), dotted(key)
    near = meant_word(name, [field for field in fields(class_name) if field not in owned.OWNED[_kind(class_name)]])
    place = _elsewhere(class_name, name, method)
    if place and bare_word(near) != bare_word(name):
        return _misplaced(key, place)
    meant = near or _near_owned(class_name, name, method)
    where = "vllm serve" if class_name == "vllm:serve" else class_name.partition(":")[2]
    return Problem(
        f"`{path}` is not a key: {where} has none of that name", f"did you mean `{meant}`?" if meant else "", key
    )


# --- sections --------------------------------------------------------------------------------------------------------

_BOUNDS = frozenset({
    "max_grad_norm", "epsilon_high", "delta", "off_policy_mask_threshold", "vllm_importance_sampling_cap",
    "vllm_importance_sampling_clip_max",
})  # fmt: skip
"""Upper bounds, which `.inf` switches off: the usual way to log the norm of the gradients without clipping them."""


def _check_entry(class_name: str, key: KeyPath, value: Any, method: str | None) -> tuple[Any, Problem | None]:
    name = key[-1]
    owner = owner_of(class_name, str(name), method)
    if owner:
        return None, _owned_problem(key, owner, method)
    field = fields(class_name).get(str(name))
    if field is None:
        return None, _unknown_problem(class_name, key, method)
    if value == math.inf and name in _BOUNDS:
        return value, None
    try:
        fitted = fit(field.schema, value)
        # BitsAndBytesConfig refuses 6 where it wants 6.0.
        exact = _kind(class_name) == "quantization" and field.schema == {"type": "number"} and type(fitted) is int
        return float(fitted) if exact else fitted, None
    except Unfit:
        return None, type_problem(key, field.schema, value)


def check_section(
    class_name: str, values: Mapping[str, Any], key: KeyPath, *, method: str | None
) -> tuple[dict[str, Any], list[Problem]]:
    """The entries of a section that the library accepts, as values of its types, and a problem for each other one.

    `key` is where the section stands in the recipe, `method` the recipe's, if known. With `class_name` "peft" the
    section's own `type` picks the class and stays in the result.
    """
    clean: dict[str, Any] = {}
    problems: list[Problem] = []
    if class_name.partition(":")[0] == "peft":
        values = dict(values)
        kind = values.pop("type", None)
        class_name, clean, problems = _peft_class(class_name, kind, (*key, "type"))
    if class_name not in _catalogue()["classes"]:
        return dict(values), problems
    for name, value in values.items():
        fitted, problem = _check_entry(class_name, (*key, name), value, method)
        if problem:
            problems.append(problem)
        elif not (fields(class_name)[name].switch and fitted is False):
            clean[name] = fitted
    return clean, problems


def _peft_class(class_name: str, kind: Any, key: KeyPath) -> tuple[str, dict[str, Any], list[Problem]]:
    """The class that `peft.type` names, the clean part of the section so far, and what is wrong with it."""
    if kind is None:
        return "peft:LoraConfig" if class_name == "peft" else class_name, {}, []
    found = peft_types().get(str(kind).lower())
    if found:
        return found, {"type": str(kind).lower()}, []
    near = meant_word(str(kind), peft_types())
    fix = f"did you mean {near}?" if near else f"it is one of {', '.join(peft_types())}"
    return "peft:?", {}, [Problem(f"`{dotted(key)}`: PEFT has no adapter called {shown(kind)}", fix, key)]
