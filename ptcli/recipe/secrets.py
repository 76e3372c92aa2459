"""Secrets stay in the recipe, the plan and every file as the text `${oc.env:NAME}`.

A variable is taken for a secret by its name. `reveal` puts the value in at the last moment, in the process that needs
it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.recipe.tree import Items, Node, Scalar, Table, dotted

REFERENCE = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)(?:,([\w./:@+-]*))?\}")
"""A secret as it stands in a loaded recipe: name, default."""

_WORDS = frozenset(("TOKEN", "KEY", "SECRET", "SECRETS", "PASSPHRASE", "CREDENTIAL", "AUTH"))
_ENDINGS = ("TOKEN", "APIKEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS")
_KEYS = re.compile(
    r"(^|_)((hub|hf|auth|access|api|bearer|wandb|github|session|refresh)_token|(api|access|private|secret)_?key"
    r"|secret|password|passwd|passphrase|credentials?)$|^token$|^use_auth_token$"
)
# A token has one long run of characters; `hf_alpaca20k` and `sk-learn-classifier-2` are names.
_VALUES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_]{16,}|\bsk-(proj|ant|or|svcacct)-[A-Za-z0-9_-]{16,}"
    r"|\b(ghp|gho|ghs|ghu|github_pat|glpat|xoxb|xoxp)[_-][A-Za-z0-9_-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bwandb_v[0-9]_[A-Za-z0-9_]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/@\s:]+:[^/@\s]+@"
)
_MARKER = re.compile(r"<[^<>\s]+>")
"""`</think>`: the token that a reward looks for, whatever its argument is called."""
_HARMLESS = frozenset({"", "0", "1", "true", "false", "none", "null", "dummy", "EMPTY"})


def is_secret_name(name: str) -> bool:
    """Whether an environment variable's name says that its value is a secret."""
    name = name.upper()
    return name.endswith(_ENDINGS) or not _WORDS.isdisjoint(name.split("_"))


def reveal(value: Any, environ: Mapping[str, str] | None = None) -> Any:
    """`value`, a scalar or dicts and lists of them, with every secret's value in the place of its `${oc.env:NAME}`.

    Raises RequestError when a variable without a default is not set.
    """
    environ = os.environ if environ is None else environ
    if isinstance(value, Mapping):
        return {key: reveal(child, environ) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(reveal(child, environ) for child in value)
    if isinstance(value, str) and "${" in value:
        return REFERENCE.sub(lambda found: _look_up(found, environ), value)
    return value


def _look_up(found: re.Match[str], environ: Mapping[str, str]) -> str:
    name, default = found.groups()
    if not is_secret_name(name):
        return found.group()
    if name not in environ and default is None:
        raise RequestError(f"the environment variable {name} is not set")
    return environ.get(name, default or "")


def has_reference(text: str) -> bool:
    """Whether a text of a loaded recipe has a secret in it."""
    return any(is_secret_name(found[1]) for found in REFERENCE.finditer(text))


def hide_secret(override: str) -> str:
    """An override as errors may show it."""
    key, equals, value = override.partition("=")
    names = re.split(r"[.\[\]]", key.strip())
    literal = _is_secret_key(names[-1]) and not REFERENCE.search(value) and value.strip() not in _HARMLESS
    return f"{key}{equals}***" if literal or _VALUES.search(value) else override


def find_literal_secrets(root: Node) -> Iterator[Problem]:
    """A problem for every secret that is written out; none of them repeats it.

    Reads a tree before as well as after interpolation.
    """
    pending: list[tuple[KeyPath, Node]] = [((), root)]
    while pending:
        key, node = pending.pop()
        if isinstance(node, Table):
            pending += [((*key, name), entry.node) for name, entry in node.entries.items()]
        elif isinstance(node, Items):
            pending += [((*key, index), child) for index, child in enumerate(node.nodes)]
        elif _is_literal_secret(key, node):
            fix = "put it into an environment variable named like HF_TOKEN and write ${oc.env:HF_TOKEN} here"
            yield Problem(f"`{dotted(key)}` is a secret and may not stand in a recipe", fix, key=key)


def _is_literal_secret(key: KeyPath, node: Scalar) -> bool:
    if _VALUES.search(node.text):
        return True
    if not key or "${" in node.text or node.value is None or isinstance(node.value, bool):
        return False
    if not {"rename", "map_roles"}.isdisjoint(key[-2:-1]) or _MARKER.fullmatch(node.text):
        return False
    return node.text not in _HARMLESS and any(_names_secret(part, node.text) for part in key[-2:])


def _names_secret(part: str | int, text: str) -> bool:
    if not isinstance(part, str) or not _is_secret_key(part):
        return False
    # GOOGLE_APPLICATION_CREDENTIALS and its like hold the path of a file, HF_TOKEN_PATH as well.
    return not text.startswith(("/", "~", "./"))


def _is_secret_key(part: str) -> bool:
    """Lower-case names are fields, of which `eos_token` and `max_tokens` are none; upper-case ones are variables."""
    return is_secret_name(part) if part.isupper() else bool(_KEYS.search(part))
