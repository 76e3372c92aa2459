"""`${...}`: what is understood, and that it is what OmegaConf understands by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptcli.recipe import interpolate as module
from ptcli.recipe.interpolate import interpolate
from ptcli.recipe.tree import Scalar, Source, Table
from ptcli.recipe.yaml import read_yaml

from .broken import GOOD, GRPO
from .conftest import Load, patient

_ENVIRONMENT = {"NAME": "value", "NUMBER": "1e-5", "EMPTY": "", "LINES": "a\nb", "TRICKY": "${name} \\"}


def resolve(text: str) -> object:
    """What the value `text` becomes beside a few other keys."""
    source = Source("x", Path("/"))
    node, problems = read_yaml("name: run\nseed: 3\nmodel: {path: p, list: [a, 1.5]}\n", source)
    assert isinstance(node, Table)
    assert not problems
    value = Scalar(text, False, source, source.position(0, 0))
    entry = type(node.entries["name"])(value.where, value)
    result, problems = interpolate(Table({**node.entries, "value": entry}, source, node.where), _ENVIRONMENT)
    found = result.entries["value"].node
    if problems:
        return problems[0].message
    return found.value if isinstance(found, Scalar) else found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${name}", "run"),
        ("${seed}", 3),
        ("${model.path}-${seed}", "p-3"),
        ("${model.list.1}", 1.5),
        ("${model.list[1]}", 1.5),
        ("${model[path]}", "p"),
        ("${oc.env:NAME}", "value"),
        ("${oc.env:NUMBER}", 1e-5),
        ("${oc.env:EMPTY}", ""),
        ("${oc.env:LINES}", "a\nb"),
        ("${oc.env:TRICKY}", "${name} \\"),
        ("${oc.env:NONE,default}", "default"),
        ("${oc.env:NONE,1e-5}", 1e-5),
        ("${oc.env:NONE,no}", "no"),
        ("${oc.env:NONE,null}", None),
        ("${oc.env:NONE,'a, b'}", "a, b"),
        ("${oc.env:NONE,https://x.org/y}", "https://x.org/y"),
        ("${oc.env:NONE,${name}}", "run"),
        ("${oc.env:NONE,${oc.env:NAME}}", "value"),
        ("a $name {b} $", "a $name {b} $"),
        (r"\${name}", "${name}"),
        (r"\\${name}", "\\run"),
        (r"a\b ${name}", r"a\b run"),
        ("${nam}", "`nam` is not set in the recipe"),
        ("${value}", "`value` refers to itself"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert resolve(text) == value


_PARTS = st.sampled_from(
    [
        "${name}",
        "${seed}",
        "${oc.env:NAME}",
        "${oc.env:NONE,d}",
        "${oc.env:NONE,1e-5}",
        "a",
        " ",
        "$",
        "}",
        "{",
        ":",
        "-",
    ]
)


@settings(patient, max_examples=60)
@given(st.lists(_PARTS, min_size=1, max_size=5).map("".join))
def test_quick_reading_agrees_with_the_grammar(text: str) -> None:
    quick = resolve(text)
    original = module._SIMPLE
    module._SIMPLE = re.compile("(?!)(?P<env>x)(?P<default>x)(?P<key>x)")
    try:
        assert resolve(text) == quick
    finally:
        module._SIMPLE = original


def test_a_reference_to_a_section_copies_it(load: Load) -> None:
    recipe = load(GOOD.replace("sft", "dpo").replace("messages", "preference") + "ref_model: ${model}\n").require()
    assert recipe.ref_model == recipe.model


def test_references_see_defaults(load: Load, folder: Path) -> None:
    recipe = load(GOOD + "training: {run_name: '${name}-${seed}', hub_model_id: '${output_dir}'}\n").require()
    assert recipe.training == {"run_name": "recipe-42", "hub_model_id": "runs/recipe"}


def test_variables_are_what_the_field_wants(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "20")
    monkeypatch.setenv("GPUS", "[0, 1]")
    text = "training: {max_steps: '${oc.env:STEPS}', learning_rate: '${oc.env:LR,1e-6}'}\nname: ${oc.env:STEPS}\n"
    recipe = load(GRPO + text + "rollouts: {gpus: '${oc.env:COUNT,2}'}\n").require()
    assert recipe.training == {"max_steps": 20, "learning_rate": 1e-6}
    assert (recipe.name, recipe.rollouts.gpus) == ("20", 2)


def test_values_of_variables_are_never_resolved_again(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", "${oc.env:HOME} ${oc.create:{}}")
    held = "${oc.env:HOME} ${oc.create:{}}"
    assert load(GOOD + "name: ${oc.env:EVIL}\n").require().name == held
    text = "launch: {env: {A: '${oc.env:EVIL}', B: '${launch.env.A}', C: '\\${name}'}}\n"
    text += "callbacks: [{use: mine.py:C, args: {x: '${launch.env}'}}]\n"
    loaded = load(GOOD + text, "name=${callbacks.0.args.x.C}")
    assert loaded.recipe
    assert loaded.recipe.launch.env == {"A": held, "B": held, "C": "${name}"}
    assert loaded.recipe.name == "${name}"
