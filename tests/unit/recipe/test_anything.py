"""Whatever is in the file or the overrides, the outcome is a recipe or a list of problems."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ptcli.errors import RequestError
from ptcli.recipe.loading import dump_recipe, load_recipe
from ptcli.recipe.model import DataEntry, LaunchSpec, ModelSpec, Recipe, RolloutsSpec, keys_of

from .broken import GOOD
from .conftest import patient

_KEYS = {name for section in (Recipe, ModelSpec, DataEntry, RolloutsSpec, LaunchSpec) for name in keys_of(section)}
_WORDS = st.sampled_from(
    [
        *sorted(_KEYS), "extends", "<<", "learning_rate", "sft", "grpo", "builtin:tiny", "${name}", "${oc.env:X}", "*",
        "${", "\\${", "recipe.yaml", "yes", "no", "1e-5", "~", "1", "-1", "0", "a/b", "a/b/c", "x.py:f", "vllm", "",
    ]
)  # fmt: skip
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | _WORDS | st.text(max_size=8)
_TREES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=5),
    max_leaves=25,
)
_BITS = [
    "method: sft\n",
    "model: ",
    ": ",
    "- ",
    "\n",
    "  ",
    "&a ",
    "!!int ",
    "!x ",
    "<<: ",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
]
_YAML = st.lists(st.sampled_from(_BITS + list("{}[]'\"|>#?\t\\$é\u2028a1,*")), max_size=25).map("".join)


def check(content: bytes, overrides: list[str]) -> None:
    """Loads and, if that works, dumps; nothing but RequestError may come out."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "recipe.yaml")
        path.write_bytes(content)
        loaded = load_recipe(path, overrides)
        for problem in loaded.problems:
            assert problem.where is not None
            assert problem.message
        if loaded.problems:
            with pytest.raises(RequestError):
                loaded.require()
        if loaded.recipe:
            dump_recipe(loaded.recipe)
        assert loaded.recipe or loaded.problems


@settings(patient, max_examples=50)
@given(st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    check(content, [])


@settings(patient, max_examples=100)
@given(_YAML, st.booleans())
def test_anything_like_yaml(text: str, after_a_good_recipe: bool) -> None:
    check((GOOD * after_a_good_recipe + text).encode(), [])


@settings(patient, max_examples=100)
@given(_TREES)
def test_any_tree(tree: Any) -> None:
    check(yaml.safe_dump(tree, allow_unicode=True).encode(), [])


@settings(patient, max_examples=100)
@given(st.dictionaries(st.sampled_from(list(Recipe.model_fields)), _TREES, max_size=4))
def test_any_sections(sections: dict[str, Any]) -> None:
    base = {"method": "grpo", "model": {"path": "builtin:tiny"}, "data": {"train": [{"path": "builtin:arithmetic"}]}}
    check(yaml.safe_dump(base | sections).encode(), [])


@settings(patient, max_examples=50)
@given(
    st.lists(st.one_of(st.text(max_size=20), st.tuples(_WORDS, _WORDS, _WORDS).map(lambda t: f"{t[0]}.{t[1]}={t[2]}")))
)
def test_any_overrides(overrides: list[str]) -> None:
    check(GOOD.encode(), overrides)


def test_environment_is_left_alone() -> None:
    before = dict(os.environ)
    check(GOOD.encode(), ["name=${oc.env:HOME}"])
    assert dict(os.environ) == before
