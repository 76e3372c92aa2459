"""`model.from`: a key that is a word of Python's own goes through loading, overrides, dump and schema as any other."""

from __future__ import annotations

from pathlib import Path

from ptcli.plan.smoke import shrink
from ptcli.recipe.loading import dump_recipe, load_recipe
from ptcli.recipe.model import ModelSpec, Recipe

RECIPE = """\
method: sft
model: {path: builtin:tiny, from: config}
data: {train: [{path: builtin:arithmetic-messages}]}
"""


def load(folder: Path, text: str = RECIPE, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides).require()


def problems_of(folder: Path, text: str, *overrides: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return "\n".join(map(str, load_recipe(path, overrides).problems))


def test_weights_are_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, RECIPE.replace(", from: config", "")).model.from_ == "weights"
    assert ModelSpec(path="x").from_ == "weights"


def test_a_recipe_and_an_override_say_from(tmp_path: Path) -> None:
    assert load(tmp_path).model.from_ == "config"
    assert load(tmp_path, RECIPE, "model.from=weights").model.from_ == "weights"


def test_a_dump_reads_back(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    again = load(tmp_path, dump_recipe(recipe))
    assert again == recipe
    assert "from: config" in dump_recipe(recipe)
    assert "from_" not in dump_recipe(recipe)


def test_a_wrong_value_and_the_name_in_python_are_refused(tmp_path: Path) -> None:
    assert "`model.from` must be one of weights, config" in problems_of(tmp_path, RECIPE, "model.from=scratch")
    assert "unknown key `model.from_`; did you mean `from`?" in problems_of(tmp_path, RECIPE, "model.from_=config")


def test_smoke_keeps_it_for_a_hub_model(tmp_path: Path) -> None:
    small, replaced = shrink(load(tmp_path, RECIPE.replace("builtin:tiny", "Qwen/Qwen3-0.6B")))
    assert (small.model.path, small.model.from_) == ("builtin:tiny", "config")
    assert not any("from" in line for line in replaced)
