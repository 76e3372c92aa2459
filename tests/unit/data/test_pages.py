"""Every rule has a page, and what the pages say is so."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import ptcli.data.pages
from ptcli.data.model import Context, RewardNeeds
from ptcli.data.pages import index, page
from ptcli.data.rules import RULES, Checker, conclude
from ptcli.data.transforms import TransformError, compile_transform
from ptcli.errors import RequestError
from ptcli.methods import METHODS, Method
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import DataEntry

FOLDER = Path(ptcli.data.pages.__file__).parent / "rules" / "pages"
HEADINGS = ["## What it means", "## What TRL does with such rows", "## How to mend it"]


def test_every_rule_has_a_page_and_every_page_a_rule() -> None:
    assert {path.stem for path in FOLDER.glob("*")} == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_page_has_the_form_of_all_pages(rule: str) -> None:
    lines = page(rule).splitlines()
    assert lines[0] == f"# {rule}"
    assert [line for line in lines if line.startswith("## ")] == HEADINGS
    assert lines.count("") >= 6
    assert 15 <= len(lines) <= 45
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("```") for line in lines) % 2 == 0


@pytest.mark.parametrize("rule", RULES)
def test_page_says_whom_it_serves_and_how_severe_it_is(rule: str) -> None:
    line = re.fullmatch(r"severity: (\S+)(?: or warning)? · methods: (.+)", page(rule).splitlines()[2])
    assert line is not None
    assert line[1] == RULES[rule].severity
    assert _named(line[2]) == set(RULES[rule].methods)


def _named(text: str) -> set[str]:
    if text == "all":
        return set(METHODS)
    names = set(text.removeprefix("all but ").split(", "))
    assert names <= set(METHODS)
    return set(METHODS) - names if text.startswith("all but ") else names


@pytest.mark.parametrize("rule", RULES)
def test_pages_refer_to_rules_that_there_are(rule: str) -> None:
    """In backticks stand rules, columns, keys and code; what looks like a rule's id must be one."""
    ids = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", page(rule)))
    allowed = {id for found in re.findall(r"data\.allow: \[(.+?)\]", page(rule)) for id in found.split(", ")}
    assert ids | allowed <= set(RULES)
    assert allowed <= {rule}


def test_unknown_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="no rule `misspelt-colum`; did you mean `misspelt-column`"):
        page("misspelt-colum")
    with pytest.raises(RequestError, match=r"no rule `\.\./\.\./model`"):
        page("../../model")


def test_index_lists_all_rules_with_a_summary() -> None:
    assert [id for id, _, _ in index()] == list(RULES)
    assert all(severity in ("error", "warning") and summary for _, severity, summary in index())


# --- the examples of the pages ---------------------------------------------------------------------------------------

EXACT = RewardNeeds("exact", required=("answer",), named=("answer",))

KNOWN: dict[str, dict[str, Any]] = {
    "answer-leak": {"rewards": (EXACT,)},
    "lossy-arrow-schema": {"rewards": (EXACT,)},
    "reward-column-missing": {"rewards": (EXACT,)},
    "reward-column-null": {"rewards": (EXACT,)},
    "vision-columns": {"vision": False},
    "assistant-only-loss": {"arguments": {"assistant_only_loss": True}},
    "completion-only-needs-pc": {"arguments": {"completion_only_loss": True}},
    "text-field-no-eos": {"arguments": {"dataset_text_field": "content"}},
}
"""What else must be known for the example of a page to be wrong."""

NOT_FROM_ROWS = {
    "assistant-mask-empty", "boundary-token-merge", "double-bos", "missing-chat-template", "template-drops-content",
    "template-raises", "token-id-range", "unk-rate", "unreadable-file",
}  # fmt: skip
"""Rules that need a tokenizer, or have no row to look at."""

ROW_KEYS = {"from", "rename", "map_roles", "parse_json", "prompt", "map", "filter", "columns"}


def _rows(rule: str, kind: str) -> list[dict[str, Any]]:
    """The rows of a page after `breaks:` or `mended:`, where they are whole rows."""
    text = re.search(rf"^{kind}:  (.*?)(?=^\S|\Z)", _blocks(rule, "text")[0], re.DOTALL | re.MULTILINE)
    rest, rows = text[1] if text else "", []
    while rest.startswith("{"):
        row, end = json.JSONDecoder().raw_decode(rest)
        rows.append(row)
        rest = rest[end:].lstrip()
    return rows


def _blocks(rule: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(rule), re.DOTALL | re.MULTILINE) or [""]


def _methods_that_object(rule: str, rows: list[dict[str, Any]]) -> set[str]:
    return {name for name in RULES[rule].methods if rule in _found(METHODS[name], rows, KNOWN.get(rule, {}))}


def _found(method: Method, rows: list[dict[str, Any]], known: dict[str, Any]) -> set[str]:
    defaults = {name: spec.default for name, spec in fields(method.config).items()}
    context = Context(method, **{**known, "arguments": defaults | known.get("arguments", {})})
    checker = Checker(context)
    checker.rows(rows)
    return {finding.rule for finding in conclude(checker.profile, context)}


SHOWN = [rule for rule in RULES if rule not in NOT_FROM_ROWS and _rows(rule, "breaks")]


def test_most_pages_show_whole_rows() -> None:
    assert len(SHOWN) >= 50


@pytest.mark.parametrize("rule", SHOWN)
def test_example_breaks_the_rule_and_is_mended(rule: str) -> None:
    methods = _methods_that_object(rule, _rows(rule, "breaks"))
    assert methods
    mended = _rows(rule, "mended")
    assert not mended or methods - _methods_that_object(rule, mended)


def _lines_to_paste(rule: str, folder: Path) -> list[DataEntry]:
    """What the page would have pasted into an entry, with its functions in a file of `folder`."""
    (folder / "my_rows.py").write_text("\n".join(_blocks(rule, "python")))
    found = (yaml.safe_load(block.replace("my_rows.py", f"{folder}/my_rows.py")) for block in _blocks(rule, "yaml"))
    return [DataEntry(path="my.jsonl", **keys) for keys in found if isinstance(keys, dict) and keys.keys() <= ROW_KEYS]


MENDED_BY_A_LINE = [
    rule for rule in SHOWN if re.search(rf"^({'|'.join(ROW_KEYS)}): ", "".join(_blocks(rule, "yaml")), re.MULTILINE)
]


@pytest.mark.parametrize("rule", MENDED_BY_A_LINE)
def test_line_to_paste_mends_the_example(rule: str, tmp_path: Path) -> None:
    broken = _rows(rule, "breaks")
    methods = _methods_that_object(rule, broken)
    assert any(
        methods - _methods_that_object(rule, rows)
        for entry in _lines_to_paste(rule, tmp_path)
        if (rows := _transformed(entry, broken)) is not None
    )


def _transformed(entry: DataEntry, rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The rows after the transforms of the entry; None where these are for rows of another kind."""
    transform = compile_transform(entry)
    assert transform is not None
    try:
        return [row for row in map(transform, copy.deepcopy(rows)) if row is not None]
    except TransformError:
        return None
