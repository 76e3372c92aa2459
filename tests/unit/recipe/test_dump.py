"""A dumped recipe reads back as the same recipe."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ptcli.recipe.loading import dump_recipe, load_recipe
from ptcli.recipe.model import Recipe

from .broken import GOOD, GRPO
from .conftest import Load, patient


def read_back(text: str) -> Recipe:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "recipe.resolved.yaml")
        path.write_text(text)
        return load_recipe(path).require()


def test_round_trip(load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")
    (folder / "d.jsonl").write_text('{"prompt": "x"}\n')
    (folder / "mine.py").write_text("def reward(completions, **kwargs): ...")
    recipe = load(
        GRPO[: GRPO.index("data")].replace("tiny}", "tiny, dtype: float32, revision: no}")
        + "data: {train: [{path: d.jsonl, shuffle: true, take: 3}], eval: {a: [{path: d.jsonl, shuffle: 7}]}}\n"
        + "rewards: [{use: 'mine.py:reward', args: {a: [1.0, 1e-9, .inf, null, 'no', '1e-5', '0x1', '012', '']}}]\n"
        + "training: {learning_rate: 1e-6, bf16: true, hub_token: '${oc.env:HF_TOKEN}', report_to: none}\n"
        + "rollouts: {mode: server}\nlaunch: {gpus: [0, '1', GPU-x], env: {A: 1, B: 'on', C: '\\${x}', D: 'é😀'}}\n"
    ).require()
    text = dump_recipe(recipe)
    again = read_back(text)
    assert again == recipe
    assert again.rollouts.model_fields_set == {"mode"}
    assert dump_recipe(again) == text


def test_readable_and_without_defaults(load: Load, folder: Path) -> None:
    text = dump_recipe(
        load(GOOD + "training: {learning_rate: 1e-6}\npeft: {r: 8, target_modules: all-linear}\n").require()
    )
    assert text == (
        f"name: recipe\nmethod: sft\nseed: 42\noutput_dir: {folder}/runs/recipe\nmodel:\n  path: builtin:tiny\ndata:\n"
        "  train:\n    - path: builtin:arithmetic-messages\ntraining:\n  learning_rate: 1.0e-06\npeft:\n  r: 8\n"
        "  target_modules: all-linear\n"
    )
    assert yaml.safe_load(text)["training"] == {"learning_rate": 1e-6}


_TEXTS = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
    st.lists(
        st.sampled_from(
            ["${", "}", "\\", "oc.env:", "X", "_TOKEN", "name", ",", "'", '"', " ", ":", "#", "\n", "$", "{", "1"]
        ),
        max_size=12,
    ).map("".join),
)
_SECRET = re.compile("TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|hf_|sk-|://", re.IGNORECASE)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(patient, max_examples=100)
@given(_VALUES, _TEXTS)
@example(["<<", {"<<": 1}], "a\x85b\u2028\r\n \t c\ufeff\x00")
@example({"x" * 300: "y " * 300}, "\\\\${name} \\")
def test_any_values_come_back(value: Any, text: str) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "n" + text,
            "method": "sft",
            "output_dir": "/x",
            "model": {"path": "builtin:tiny", "init_kwargs": {"a": value}},
            "data": {"train": [{"path": "builtin:arithmetic-messages", "rename": {"answer": text}}]},
            "launch": {"env": {"A": text}},
        }
    )
    # What looks like a secret or like a reference to one is refused or kept as such.
    assume(not _SECRET.search(f"{value} {text}"))
    assert read_back(dump_recipe(recipe)) == recipe
