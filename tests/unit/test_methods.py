"""The table of methods: against the installed TRL, against recipes, and in `ptcli methods`."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ptcli.builtin import MODEL
from ptcli.errors import RequestError
from ptcli.methods import METHODS, NOT_COVERED, DatasetType, Section, find_method
from ptcli.recipe import availability, code
from ptcli.recipe.code import NotFound
from tests.smoke_runs import FURTHER, USUAL

SECTIONS: dict[str, Any] = {
    "rewards": [{"use": "trl.rewards:accuracy_reward"}],
    "reward_model": {"path": "builtin:tiny"},
    "value_model": {"path": "builtin:tiny"},
    "ref_model": {"path": "builtin:tiny"},
    "teacher": {"path": "builtin:tiny"},
}


def test_the_smoke_tests_are_of_every_method_and_each_of_one() -> None:
    assert sorted(USUAL + FURTHER) == sorted(METHODS)


# --- the installed TRL -----------------------------------------------------------------------------------------------


def _trl() -> Path:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _trainers(file: Path) -> set[str]:
    """Names of trainers that a module binds, or that its table of lazy imports has."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.alias | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return {name for name in names if name.isidentifier() and name.endswith("Trainer") and not name.startswith("_")}


def _shipped() -> Iterator[str]:
    """Import strings of every trainer that TRL ships, without the old names of those that it has promoted."""
    stable = {f"trl:{name}" for name in _trainers(_trl() / "__init__.py")}
    yield from stable
    for file in (_trl() / "experimental").glob("*/__init__.py"):
        if "has been promoted to the stable API" not in file.read_text():
            yield from (f"trl.experimental.{file.parent.name}:{name}" for name in _trainers(file))


def test_every_trainer_of_trl_is_a_method_or_not_covered_yet() -> None:
    covered = {row.trainer for row in METHODS.values()}
    assert covered.isdisjoint(NOT_COVERED.values())
    assert set(_shipped()) == covered | set(NOT_COVERED.values())
    assert len(NOT_COVERED) == 14


def test_all_methods_are_in_the_pinned_trl() -> None:
    assert [name for name, row in METHODS.items() if availability.not_shipped(row)] == []


def test_trainers_are_looked_up_without_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command that reads a recipe looks: parsing GRPO's trainer takes a tenth of a dry run."""
    read: list[str] = []
    parse = code._parse
    monkeypatch.setattr(code, "_parse", lambda path: read.append(path.name) or parse(path))
    assert all(availability.is_shipped(row.trainer) for row in METHODS.values())
    assert read == ["__init__.py"] * len(METHODS)


@pytest.fixture
def later_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL 1.16.0, as far as can be told from outside (user-pain.md R1): these trainers are gone."""
    gone = {"bco", "xpo", "nash_md", "ppo", "prm", "minillm"}
    find = availability.find_object

    def find_object(use: str, **how: Any) -> Any:
        if use.partition(":")[0].rpartition(".")[2] in gone:
            raise NotFound("trl.experimental has no such module")
        return find(use, **how)

    monkeypatch.setattr(availability, "find_object", find_object)
    monkeypatch.setattr(availability, "version", lambda name: "1.16.0")


LAST = {"bco": "1.13.0", "xpo": "1.13.0", "nash_md": "1.13.0", "ppo": "1.12.0", "prm": "1.13.0", "minillm": "1.14.2"}


@pytest.mark.usefixtures("later_trl")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_that_trl_no_longer_ships(method: str, tmp_path: Path, ptcli: Callable) -> None:
    result = ptcli("train", _recipe(method, tmp_path), "--dry-run")
    assert result.code == (2 if method in LAST else 0), result.err
    if method in LAST:
        assert f"recipe.yaml:1:2: {method} is not in the installed TRL 1.16.0" in result.err
        assert f"TRL {LAST[method]} was the last release that had it" in result.err


@pytest.mark.usefixtures("later_trl")
def test_the_list_says_what_trl_no_longer_ships(ptcli: Callable) -> None:
    lines = ptcli("methods").out.splitlines()
    assert sum("not in the installed TRL 1.16.0 (the last with it: " in line for line in lines) == len(LAST)
    facts = {each["name"]: each for each in json.loads(ptcli("methods", "--json").out)}
    assert {name for name, each in facts.items() if not each["available"]} == set(LAST)
    assert facts["ppo"]["last_release"] == "1.12.0"


def test_the_list_names_every_trainer(ptcli: Callable) -> None:
    *methods, _, others = ptcli("methods").out.splitlines()
    assert [line.split()[0] for line in methods] == list(METHODS)
    assert others.startswith("not yet covered, though TRL 1.12.0 has them: a2po, ")
    assert others.rpartition(": ")[2].split(", ") == list(NOT_COVERED)
    facts = json.loads(ptcli("methods", "--json").out)
    assert {each["name"]: each["covered"] for each in facts} == dict.fromkeys(METHODS, True) | dict.fromkeys(
        NOT_COVERED, False
    )


def test_a_trainer_that_is_not_covered_yet(tmp_path: Path, ptcli: Callable) -> None:
    result = ptcli("train", _recipe("sft", tmp_path), "--dry-run", "method=gold")
    assert result.code == 2
    assert result.err.count("error:") == 1
    assert "the method `gold` is not covered yet: TRL has its GOLDTrainer" in result.err
    with pytest.raises(RequestError, match="'gold' is not covered yet"):
        find_method("gold")


# --- what a trainer reads of its rows: as the source of its module says ----------------------------------------------


def _source(method: str) -> str:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    module = METHODS[method].trainer.partition(":")[0]
    folder = _trl() / "trainer" if module == "trl" else _trl().joinpath(*module.split(".")[1:])
    return (folder / f"{method}_trainer.py").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_columns_that_reach_the_template(method: str) -> None:
    source, traits = _source(method), METHODS[method].data
    assert traits.tools == ('example.get("tools")' in source)
    whole_rows = "maybe_extract_prompt" in source
    assert traits.template_kwargs == ('example.get("chat_template_kwargs"' in source or whole_rows)
    assert traits.checks_last_role == whole_rows
    assert traits.margin == ('"margin"' in source)
    assert traits.sharegpt == ("maybe_convert_to_chatml" in source)


@pytest.mark.parametrize("method", [row.name for row in METHODS.values() if DatasetType.PREFERENCE in row.datasets])
def test_prompts_that_are_cut_off_pairs(method: str) -> None:
    source = _source(method)
    each_row, first_row = "maybe_extract_prompt" in source, "dataset.map(extract_prompt" in source
    expected = "row by row" if each_row else "first row decides" if first_row else "kept"
    assert METHODS[method].data.implicit_prompt == expected


@pytest.mark.parametrize("method", ["grpo", "rloo", "online_dpo"])
def test_columns_that_rewards_are_not_handed(method: str) -> None:
    """MiniLLM's trainer is a child of GRPO's."""
    names = re.search(r"keys = \[key for key in inputs\S* if key not in (\[.*?\])\]", _source(method))
    assert names is not None
    assert list(METHODS[method].data.withheld) == ast.literal_eval(names[1])


def test_labels_and_the_order_of_rows() -> None:
    assert [name for name, row in METHODS.items() if row.data.strict_labels] == ["bco"]
    assert 'batch["label"][i] is True' in _source("bco")
    assert [name for name, row in METHODS.items() if not row.data.shuffles] == ["kto"]
    assert 'args.train_sampling_strategy != "sequential"' in _source("kto")


# --- sections --------------------------------------------------------------------------------------------------------


def _recipe(method: str, folder: Path, **sections: Any) -> Path:
    """A recipe with what the method needs; a section that is None is left out."""
    row = METHODS[method]
    recipe = {
        "method": method,
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": row.smoke_data}]},
        "launch": {"device": "cpu"},
        **{name: SECTIONS[name] for name in row.needs},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({name: value for name, value in recipe.items() if value is not None}))
    return path


@pytest.mark.parametrize(("method", "name"), [(row.name, name) for row in METHODS.values() for name in row.needs])
def test_a_missing_section_is_named(method: str, name: str, tmp_path: Path, ptcli: Callable) -> None:
    result = ptcli("train", _recipe(method, tmp_path, **{name: None}), "--dry-run")
    assert result.code == 2
    assert f"{method} needs the section `{name}`" in result.err
    assert result.err.count("error:") == 1


FOREIGN = [(row.name, name) for row in METHODS.values() for name in get_args(Section) if name not in row.sections]


@pytest.mark.parametrize(("method", "name"), FOREIGN)
def test_a_foreign_section_is_named(method: str, name: str, tmp_path: Path, ptcli: Callable) -> None:
    result = ptcli("train", _recipe(method, tmp_path, **{name: SECTIONS[name]}), "--dry-run")
    assert result.code == 2
    assert f"`{name}` is not a section of {method}" in result.err
    assert result.err.count("error:") == 1


@pytest.mark.parametrize(("method", "name"), [(row.name, name) for row in METHODS.values() for name in row.sections])
def test_its_own_sections_are_taken(method: str, name: str, tmp_path: Path, ptcli: Callable) -> None:
    result = ptcli("train", _recipe(method, tmp_path, **{name: SECTIONS[name]}), "--dry-run")
    assert result.code == 0, result.err


ROWS = {"one": [{"path": "builtin:arithmetic"}], "named": {"easy": [{"path": "builtin:arithmetic"}]}, "share": 0.1}
TAKEN = {"nothing": set(), "one set": {"one", "share"}, "named sets": {"one", "share", "named"}}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_evaluation_rows_that_the_trainer_fails_on(method: str, rows: str, tmp_path: Path, ptcli: Callable) -> None:
    row = METHODS[method]
    data = {"train": [{"path": row.smoke_data}], "eval": ROWS[rows]}
    result = ptcli("train", _recipe(method, tmp_path, data=data), "--dry-run")
    assert result.code == (0 if rows in TAKEN[row.evaluates] else 2), result.err
    assert result.code == 0 or result.err.count("`data.eval`") == 1


# --- padding ---------------------------------------------------------------------------------------------------------


def _model(folder: Path, **tokens: Any) -> str:
    """A copy of the tiny model whose tokenizer has these special tokens; one that is None it lacks."""
    shutil.copytree(MODEL, folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | tokens
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return str(folder)


@pytest.mark.parametrize(
    ("tokens", "section", "wrong"),
    [
        ({}, {}, False),
        ({"pad_token": None}, {}, True),
        ({"pad_token": {"content": "<|im_end|>"}}, {}, True),
        ({"pad_token": None}, {"pad_token": "<|pad|>"}, False),
        ({}, {"pad_token": "<|im_end|>"}, True),
        ({}, {"eos_token": "<|pad|>"}, True),
    ],
)
def test_padding_that_is_the_end_of_sequence(
    tokens: dict[str, Any], section: dict[str, str], wrong: bool, tmp_path: Path, ptcli: Callable
) -> None:
    model = {"path": _model(tmp_path / "model", **tokens)} | section
    result = ptcli("train", _recipe("ppo", tmp_path, model=model), "--dry-run")
    assert result.code == (2 if wrong else 0), result.err
    assert not wrong or "ppo needs a padding token that is not the end of sequence" in result.err
    assert not wrong or section or "set it to '<|pad|>'" in result.err
    assert ptcli("train", _recipe("sft", tmp_path, model=model), "--dry-run").code == 0
