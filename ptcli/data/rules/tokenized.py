"""Rows that hold token ids already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptcli.data.model import Hit
from ptcli.data.rules.facts import Seen
from ptcli.data.rules.values import null, wrong
from ptcli.data.rules.words import LEAVE_OUT

IGNORED = -100
"""The label of a token that is not trained."""
_MASKS = ("completion_mask", "assistant_masks", "attention_mask")
_LONGEST_RUN = 2


def ids(seen: Seen) -> Iterator[Hit]:
    """Token ids, and whatever goes with each of them."""
    assert seen.plan.shape is not None
    required = seen.plan.shape.required
    for column in required:
        if column != "labels":
            yield from _ids(column, seen.row[column], seen)
    if "input_ids" in required:
        yield from _beside(seen)


def _ids(column: str, value: Any, seen: Seen) -> Iterator[Hit]:
    if value is None:
        yield null(column)
    elif not isinstance(value, list) or not all(type(token) is int for token in value):
        yield wrong(column, "a list of whole numbers", value)
    elif not value:
        rule = "empty-value" if seen.facts.answers else "empty-prompt"
        yield Hit(rule, "error", f"`{column}` is empty", LEAVE_OUT, column)
    elif min(value) < 0:
        yield Hit("token-id-range", "error", f"`{column}` has the token id {min(value)}", "tokenise again", column)


def _beside(seen: Seen) -> Iterator[Hit]:
    """Labels and masks, one for each token."""
    tokens = seen.row["input_ids"]
    if not isinstance(tokens, list) or not seen.facts.answers:
        return
    for column in ("labels", *_MASKS):
        if column not in seen.row:
            continue
        value = seen.row[column]
        if value is None:
            yield null(column)
        elif not isinstance(value, list) or not all(isinstance(each, int) for each in value):
            yield wrong(column, "a list of whole numbers", value)
        elif len(value) != len(tokens):
            detail = f"{len(tokens)} `input_ids`, but {len(value)} `{column}`"
            yield Hit("length-mismatch", "error", detail, "give each token one", column)
        else:
            yield from _trained(column, value, seen)
    yield from _padding(tokens, seen.row.get("attention_mask"))


def _trained(column: str, value: list[int], seen: Seen) -> Iterator[Hit]:
    nothing = {"labels": IGNORED, "completion_mask": 0, "assistant_masks": 0}.get(column)
    if nothing is not None and value and all(each == nothing for each in value):
        detail = f"`{column}` is {nothing} for every token: the row trains nothing"
        yield Hit("all-labels-masked", "error", detail, LEAVE_OUT, column)


def _padding(tokens: list[Any], mask: Any) -> Iterator[Hit]:
    if isinstance(mask, list) and 0 in mask:
        detail = "`attention_mask` has zeros, but TRL drops it: padding in `input_ids` is trained"
        yield Hit("padded-input-ids", "warning", detail, "strip the padding")
    elif len(tokens) > _LONGEST_RUN and tokens[-1] == tokens[-2]:
        detail = "`input_ids` end with a repeated token: if that is padding, it is trained"
        yield Hit("padded-input-ids", "warning", detail, "strip the padding", "run")


def mask_ignored(seen: Seen) -> Iterator[Hit]:
    """A mask that the trainer does not look at."""
    masked = "completion_mask" in seen.row and "labels" not in seen.row
    if masked and seen.facts.context.argument("completion_only_loss") is not True:
        detail = "`completion_mask` is ignored without `completion_only_loss`: every token is trained"
        yield Hit("mask-ignored", "error", detail, "training: {completion_only_loss: true}")
