"""The JSON schema that editors use, and its committed copies."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe
from ptcli.recipe.schema import copies, recipe_schema

SCHEMAS = Path(__file__).parents[3] / "recipes" / "schema"
RECIPES = sorted((SCHEMAS.parent).rglob("*.yaml"))

NEEDED: dict[str, Any] = {
    "rewards": [{"use": "my_rewards.py:length", "weight": 0.5}],
    "reward_model": {"path": "builtin:tiny"},
    "teacher": {"path": "builtin:tiny"},
}


def good(method: str) -> dict[str, Any]:
    """A recipe of the method with everything it needs, and one of every kind of section."""
    row = METHODS[method]
    return {
        "method": method,
        "model": {"path": "builtin:tiny", "quantization": {"load_in_4bit": True}},
        "data": {"train": [{"path": row.smoke_data, "take": 10}]},
        "training": {"learning_rate": 1e-5, "max_steps": 3, "report_to": "none", "bf16": False},
        "peft": {"r": 16, "target_modules": "all-linear"},
        **{section: copy.deepcopy(NEEDED[section]) for section in row.needs},
        **({"rollouts": {"gpus": 1, "engine": {"max_num_seqs": 8}}} if "vllm" in row.backends else {}),
    }


@cache
def validator_of(method: str | None) -> Draft202012Validator:
    return Draft202012Validator(recipe_schema(method))


def errors(method: str | None, recipe: dict[str, Any]) -> list[str]:
    validator = validator_of(method)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(recipe)]


@pytest.mark.parametrize(("name", "text"), list(copies()), ids=lambda value: value if len(value) < 30 else "")
def test_committed_copies_are_current(name: str, text: str) -> None:
    assert (SCHEMAS / name).read_text(encoding="utf-8") == text, (
        "run `python -m ptcli.recipe.schema --write recipes/schema`"
    )


def test_there_is_a_copy_for_every_method_and_no_other() -> None:
    assert {path.name for path in SCHEMAS.glob("*.json")} == {"recipe.json", *(f"{name}.json" for name in METHODS)}


@pytest.mark.parametrize("method", [None, "grpo", "sft"])
def test_schemas_are_valid(method: str | None) -> None:
    """The one for any method has every field of all of them."""
    Draft202012Validator.check_schema(recipe_schema(method))


@pytest.mark.parametrize("method", [None, *METHODS])
def test_schemas_are_self_contained(method: str | None) -> None:
    schema = recipe_schema(method)
    names = {reference.split('"')[0] for reference in json.dumps(schema).split("#/$defs/")[1:]}
    assert names == set(schema["$defs"])


@pytest.mark.parametrize("method", METHODS)
def test_a_good_recipe_of_every_method_validates(method: str) -> None:
    assert errors(method, good(method)) == []
    assert errors(None, good(method)) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "typo",
    [
        {"modle": {"path": "x"}},
        {"model": {"pth": "builtin:tiny"}},
        {"training": {"learnin_rate": 1e-5}},
        {"training": {"learning_rate": "fast"}},
        {"training": {"output_dir": "x"}},
        {"training": {"optim": "adamm"}},
        {"peft": {"lora_r": 16}},
        {"peft": {"type": "lorra"}},
        {"launch": {"device": "gpu"}},
        {"seed": "three"},
    ],
    ids=str,
)
def test_a_typo_does_not(method: str, typo: dict[str, Any]) -> None:
    assert errors(method, {**good(method), **typo})
    assert errors(None, {**good(method), **typo})


@pytest.mark.parametrize("method", METHODS)
def test_sections_of_other_methods_are_not_there(method: str) -> None:
    row = METHODS[method]
    for section in {"rewards", "reward_model", "value_model", "teacher", "ref_model"} - set(row.sections):
        assert section not in recipe_schema(method)["properties"]
    assert ("rollouts" in recipe_schema(method)["properties"]) == bool(row.backends)


def test_nothing_is_required_of_a_recipe_that_extends() -> None:
    assert errors("grpo", {"extends": "base.yaml", "training": {"beta": 0.1}, "model": {"dtype": "bfloat16"}}) == []
    assert errors("grpo", {"extends": ["a.yaml", "b.yaml"]}) == []
    assert len(errors("grpo", {})) == 4  # method, model, data, rewards


def test_references_and_numbers_as_text_are_allowed_wherever_a_scalar_is() -> None:
    recipe = good("grpo") | {"seed": "${oc.env:SEED,1}", "launch": {"gpus": "${n}", "device": "${d}", "nodes": "2"}}
    recipe["training"] = {"learning_rate": "1e-6", "bf16": "${bf16}", "loss_type": "${loss}", "beta": "1${zero}"}
    recipe["training"] |= {"log_completions": "yes"}
    recipe["rollouts"] = {"mode": "${mode}", "gpu_memory_utilization": "9e-1"}
    assert errors("grpo", recipe) == []


def test_what_the_loader_takes_without_quotes_is_taken_here_too() -> None:
    schema = recipe_schema("sft")
    written = {"training": {"bf16": "Yes", "packing": "OFF"}, "launch": {"env": {"OMP_NUM_THREADS": 8, "A": False}}}
    assert not list(Draft202012Validator(schema).iter_errors({"extends": "base.yaml", **written}))


def test_only_what_is_built_is_offered() -> None:
    assert set(recipe_schema()["properties"]) == {"extends", *Recipe.model_fields}


def test_fields_say_what_they_are_for() -> None:
    properties = recipe_schema("grpo")["properties"]["training"]["properties"]
    silent = [name for name, field in properties.items() if not field.get("description")]
    assert len(silent) <= 3, silent
    assert properties["beta"]["default"] == 0.0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_validate(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "base":  # a part of others: what it says must be right, and nothing is required of it
        recipe.setdefault("extends", "other.yaml")
    assert errors(recipe.get("method"), recipe) == []
