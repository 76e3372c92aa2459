"""Profiles: what rows amount to does not depend on where a run of rows is cut, nor on what garbage is among them."""

from __future__ import annotations

import pickle
from array import array
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from ptcli.data.model import MOST_TALLIES, Context, Hit, Profile, Row
from ptcli.data.rules import Checker, conclude, merge, overlap
from ptcli.data.rules.checker import MOST_COLUMN_SETS, MOST_COLUMNS
from ptcli.data.rules.leaves import MOST_LEAVES
from ptcli.methods import METHODS
from tests.unit.data.rules.test_rules import ANSWER, CIMPLICIT, CUNP, PREF, STEPS, TEXT, UNP, call, put, user

ROWS = {
    "sft": [
        *TEXT,
        *put(TEXT, text=None),
        {"messages": [user(), call({"n": 1})]},
        {"messages": [user(), call({"n": "1"})]},
    ],
    "kto": [*UNP, *put(UNP, label=5), *put(CUNP, completion=[]), *UNP],
    "dpo": [*PREF, *CIMPLICIT, *put(PREF, chosen=" ", rejected=" ")],
    "grpo": [*ANSWER, *put(ANSWER, answer={"tests": [1, "1"]}), *put(ANSWER, answer=None)],
    "prm": [*STEPS, *put(STEPS, labels=[2])],
}


def profile(method: str, rows: list[Row]) -> Profile:
    checker = Checker(Context(METHODS[method]))
    checker.rows(rows)
    return checker.profile


@pytest.mark.parametrize("method", ROWS)
def test_profiles_of_parts_make_that_of_the_whole(method: str) -> None:
    rows = ROWS[method]
    for cut in range(len(rows) + 1):
        first, rest = profile(method, rows[:cut]), profile(method, rows[cut:])
        merge(first, pickle.loads(pickle.dumps(rest)))
        assert first == profile(method, rows)


def test_findings_are_the_same_for_three_parts() -> None:
    rows = ROWS["kto"]
    whole, context = profile("kto", rows), Context(METHODS["kto"], {"per_device_train_batch_size": 2})
    parts = Profile()
    for start in range(0, len(rows), 7):
        merge(parts, profile("kto", rows[start : start + 7]))
    assert conclude(parts, context) == conclude(whole, context)


def test_garbage_does_not_make_a_profile_grow_without_end() -> None:
    random = Random(1)
    rows: list[Row] = [{f"column {random.random()}": None, "prompt": "x", "answer": {f"{n}": n}} for n in range(3000)]
    found = profile("grpo", rows)
    assert len(found.columns) <= MOST_COLUMN_SETS + 1
    assert len(found.kinds) <= MOST_COLUMNS
    assert len(found.hits) <= MOST_TALLIES + 10
    assert len(found.leaves) <= MOST_LEAVES
    assert sum(found.columns.values()) == len(rows)
    conclude(found, Context(METHODS["grpo"]))


def test_a_row_counts_once_however_often_it_breaks_a_rule() -> None:
    rows = [{"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": None}]}] * 3
    (tally,) = [tally for (rule, _, _), tally in profile("sft", rows).hits.items() if rule == "null-content"]
    assert (tally.count, tally.rows) == (3, [0, 1, 2])


def test_row_numbers_may_have_gaps() -> None:
    """A filter leaves rows out; those that stay keep the numbers that they have in the files."""
    checker = Checker(Context(METHODS["sft"]))
    for number in (4, 7):
        checker.row({"text": "x" if number == 4 else ""}, number)
    more = profile("sft", [{"text": ""}, {"text": "x"}])
    merge(checker.profile, more, shift=10)
    found = {finding.rule: finding.rows for finding in conclude(checker.profile, Context(METHODS["sft"]))}
    assert found["empty-value"] == (7, 10)
    assert found["duplicate-rows"] == ()


GARBAGE: list[Any] = [
    None, True, 10**400, -(10**5000), float("nan"), float("-inf"), "", "\ud800", "[{", [], {}, [[]], [None], [{}],
    [{"role": []}], [{"role": {}, "content": {}}], [{"content": [None, {}, {"text": 5}]}], [{"tool_calls": "x"}],
    [{"role": "assistant", "tool_calls": [None, {"function": []}]}], {"role": "user"}, [1, "a"], [True], ["a", None],
    b"x", datetime(2026, 1, 1), Decimal("0.1"), ("a",), {1, 2}, [datetime(2026, 1, 1)], range(3),
]  # fmt: skip
COLUMNS = (
    "prompt", "completion", "chosen", "rejected", "messages", "text", "conversations", "label", "labels", "completions",
    "input_ids", "tools", "margin", "chat_template_kwargs", "images", "answer", "score_chosen", "score_rejected",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_no_value_in_any_column_raises(method: str) -> None:
    context = Context(METHODS[method], {"per_device_train_batch_size": 2})
    random = Random(method)
    for value in GARBAGE:
        usual = dict.fromkeys(random.sample(COLUMNS, 6), "x")
        rows = [usual | {column: value} for column in COLUMNS]
        rows.append(dict.fromkeys(COLUMNS, value))
        checker = Checker(context)
        checker.rows([{}, *rows])
        for finding in conclude(checker.profile, context):
            assert "\n" not in finding.message
            assert len(finding.message) < 1000
            finding.message.encode()


def test_deep_nesting_does_not_raise() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for method in ("sft", "dpo", "grpo"):
        rows = [{"prompt": deep, "chosen": deep, "rejected": deep, "answer": deep, "messages": [{"content": deep}]}] * 2
        conclude(profile(method, rows), Context(METHODS[method]))


def test_evaluation_rows_that_are_training_rows() -> None:
    context = Context(METHODS["sft"], split="eval")
    (found,) = overlap(profile("sft", TEXT), profile("sft", [{"text": "new"}, TEXT[2]]), context)
    assert (found.rule, found.severity, found.count, found.rows) == ("duplicate-rows", "warning", 1, (1,))
    assert found.split == "eval"
    assert overlap(profile("sft", TEXT), profile("sft", [{"text": "new"}]), context) == []


def test_many_duplicates_are_counted_like_few() -> None:
    from ptcli.data.rules import duplicates

    few = profile("sft", [{"text": f"{n % 90}"} for n in range(100)])
    many = Profile(rows=600_000)
    for n in range(600_000):
        many.digests.append(n % 540_000)
    assert duplicates.found_in(array("Q", [5, 600_000, 7]), many.digests) == [0, 2]
    assert duplicates.found_in(many.digests, array("Q")) == []
    assert duplicates.repeated(few) == 10
    assert duplicates.repeated(many) == 60_000


def test_a_sample_says_nothing_of_what_is_left_over() -> None:
    context = Context(METHODS["grpo"], prompts_per_generation=4)
    sample = profile("grpo", ANSWER[:3])
    assert [finding.rule for finding in conclude(sample, context)] == ["too-few-rows"]
    assert conclude(sample, context, total=1001) == []


def test_a_file_of_which_nothing_can_be_read_is_not_called_empty() -> None:
    empty = Profile()
    empty.hit(Hit("unreadable-file", "error", "rows.jsonl: a line is not valid JSON"), 0)
    assert [finding.rule for finding in conclude(empty, Context(METHODS["sft"]))] == ["unreadable-file"]
