"""What `ptcli validate-data` accepts: a recipe, or a file and a method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.data.request import NO_MODEL, DataRequest, accept_data
from ptcli.errors import RequestError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n')
    return path


def _refused(**given: Any) -> str:
    with pytest.raises(RequestError) as caught:
        accept_data(DataRequest(**given))
    return str(caught.value)


def test_a_file_and_a_method(rows: Path) -> None:
    recipe = accept_data(DataRequest(data=str(rows), method="sft")).recipe
    assert (recipe.method, recipe.model.path, recipe.data.train[0].path) == ("sft", NO_MODEL, str(rows))
    assert recipe.training == {}


def test_relative_paths_start_where_the_person_is(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    recipe = accept_data(DataRequest(data="rows.jsonl", method="sft", model="builtin:tiny", max_length=64)).recipe
    assert recipe.data.train[0].path == str(rows)
    assert (recipe.model.path, recipe.training) == ("builtin:tiny", {"max_length": 64})


def test_max_length_of_a_method_without_one_bounds_what_generates(rows: Path) -> None:
    recipe = accept_data(DataRequest(data=str(rows), method="grpo", max_length=64)).recipe
    assert recipe.rollouts.max_model_len == 64


def test_a_recipe_needs_no_weights_and_no_gpu(rows: Path, tmp_path: Path) -> None:
    """Only a tokenizer: the folder of the model has nothing else."""
    from ptcli.builtin import MODEL

    model = tmp_path / "model"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((MODEL / name).read_bytes())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: sft\nmodel: {{path: {model}}}\ndata: {{train: [{{path: {rows}}}]}}\n")
    assert accept_data(DataRequest(recipe)).recipe.model.path == str(model)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "there is nothing to check"),
        ({"method": "sft"}, "there is nothing to check"),
        ({"recipe": Path("a.yaml"), "method": "sft"}, "stand in the place of a recipe"),
        ({"data": "ROWS", "method": "grpoo"}, "did you mean 'grpo'"),
        ({"data": "ROWS", "method": "sft", "max_length": 0}, "--max-length is a number of tokens, at least 1"),
        ({"data": "ROWS", "method": "sft", "model": "/no/such/model"}, "there is no model folder /no/such/model"),
        ({"data": "/no/such/rows.jsonl", "method": "sft"}, "there is no file or folder /no/such/rows.jsonl"),
        ({"recipe": Path("/no/such.yaml")}, "/no/such.yaml"),
    ],
)
def test_refused(given: dict[str, Any], says: str, rows: Path) -> None:
    assert says in _refused(**{name: str(rows) if value == "ROWS" else value for name, value in given.items()})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sample", "5", "--full"], "give one of them"),
        (["--show", "2", "--json"], "--show prints rows for people"),
        (["--explain", "empty-valu"], "empty-value"),
        (["no.yaml"], "no.yaml"),
    ],
)
def test_refused_by_the_command(arguments: list[str], says: str, rows: Path, ptcli: Callable[..., Any]) -> None:
    data = [] if arguments == ["no.yaml"] else ["--data", rows, "--method", "sft"]
    result = ptcli("validate-data", *data, *arguments)
    assert result.code == 2
    assert says in result.err
    assert result.out == ""
