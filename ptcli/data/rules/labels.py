"""Labels: of each row, and over all rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Any

from ptcli.data.model import MOST_ROWS, Finding, Hit, Profile, Row, Severity
from ptcli.data.rules.duplicates import found_in
from ptcli.data.rules.facts import Facts, Seen
from ptcli.data.rules.values import null
from ptcli.data.rules.words import LEAVE_OUT, quote, rows_in_words

_IMBALANCE = 4
_SORTED = 0.5
_SAME = 0.2
_SAMPLING = "train_sampling_strategy"


def label(seen: Seen) -> Iterator[Hit]:
    """The label of a completion."""
    value = seen.row["label"]
    if value is None:
        yield null("label")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Hit("nan-value", "error", f"`label` is {value}", LEAVE_OUT, "label")
    if value is not None and not isinstance(value, bool):
        yield from _not_bool("label", value, strict=seen.facts.traits.strict_labels, digits=False)


def bad_examples(seen: Seen) -> Iterator[Hit]:
    """Prompt and completion with a label that says that the completion is bad."""
    if seen.row.get("label") is False:
        detail = "`label` is false in some rows: these completions would be trained as if they were good"
        yield Hit("wrong-type-family", "error", detail, "use the method `kto` or `bco`, or drop these rows")


def step_labels(seen: Seen) -> Iterator[Hit]:
    """The labels of steps."""
    values = seen.row["labels"]
    if not isinstance(values, list):
        return
    for value in values:
        if value is None:
            yield null("labels[]")
        elif not isinstance(value, bool):
            yield from _not_bool("labels", value, strict=False, digits=True)


def _not_bool(column: str, value: Any, *, strict: bool, digits: bool) -> Iterator[Hit]:
    """0 and 1 do where labels are cast to booleans, and "0" and "1" where they are cast to whole numbers first."""
    like = not strict and truth(value) < 2 and (digits or not isinstance(value, str))
    detail = f"`{column}` is {quote(value)}, not true or false"
    if strict and truth(value) < 2:
        detail += ": rows are picked by `is True`, so none is trained"
    elif not like and not strict and not isinstance(value, str) and not digits:
        detail += ": whatever is not 0 counts as desirable"
    yield Hit(
        "label-not-bool", "warning" if like else "error", detail, "make them true or false, with map: file.py:function"
    )


def truth(value: Any) -> int:
    """0 or 1 for what is or says that, 2 for anything else."""
    if not isinstance(value, bool | int | float | str):
        return 2
    return _TRUTH.get(value, 2)


_TRUTH: dict[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1}


def row_label(row: Row, strict: bool) -> int:
    """The byte of a row's label: 0, 1, or 2 for anything that the trainer does not take as one."""
    value = row["label"]
    if isinstance(value, bool):
        return int(value)
    return 2 if strict or isinstance(value, str) else truth(value)


def row_step_labels(row: Row, strict: bool) -> int:
    """The byte of a row's labels: 0 or 1 where all steps have that label, else 2."""
    labels = row["labels"]
    found = {truth(value) for value in labels} if isinstance(labels, list) else ()
    return found.pop() if isinstance(found, set) and len(found) == 1 else 2


def single_class(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """One label for all, or one far more frequent than the other."""
    labels = profile.labels
    positive, negative = labels.count(1), labels.count(0)
    if not facts.train or not labels or positive + negative < len(labels):
        return
    if not positive or not negative:
        severity: Severity = "error" if facts.label_form == "unpaired" else "warning"
        message = f"every label is {'true' if positive else 'false'}"
        yield Finding("single-label-class", severity, message, len(labels), (), "add rows of the other label", 1.0)
    elif facts.label_form == "unpaired" and max(positive, negative) > _IMBALANCE * min(positive, negative):
        message = f"{positive} desirable rows and {negative} undesirable ones"
        yield Finding("label-imbalance", "warning", message, len(labels), (), _weights(positive, negative), 1.0)


def _weights(positive: int, negative: int) -> str:
    rare, ratio = ("desirable", negative / positive) if positive < negative else ("undesirable", positive / negative)
    return f"set `{rare}_weight` to about {ratio:.3g}, or balance the rows"


def contradicting(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """The same prompt and completion as a good and a bad example."""
    labels, digests = profile.labels, profile.digests
    if facts.label_form != "unpaired" or len(labels) != len(digests):
        return
    good = array("Q", (digest for digest, label in zip(digests, labels, strict=True) if label == 1))
    rows = [row for row in found_in(digests, good) if labels[row] == 0]
    if rows:
        first = () if profile.counts["renumbered"] else tuple(rows[:MOST_ROWS])
        message = f"{rows_in_words(len(rows))} with the label false have true elsewhere: same prompt, same completion"
        share = len(rows) / len(labels)
        yield Finding("contradicting-labels", "warning", message, len(rows), first, "decide on one label", share)


def order(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Batches that are taken in the order of the file."""
    if not facts.train or facts.total is not None or facts.traits.shuffles:
        return
    if facts.context.argument(_SAMPLING, "sequential") != "sequential":
        return
    yield from _sorted_labels(profile, facts)
    if not facts.traits.kl_batches or facts.context.argument("loss_type") == "apo_zero_unpaired":
        return
    batch = facts.context.argument("per_device_train_batch_size", 0)
    rows = profile.rows if profile.labels else 2 * profile.rows
    if isinstance(batch, int) and batch > 1 and rows % batch == 1:
        message = f"{rows} rows leave a last batch of one for batches of {batch}"
        yield Finding("kto-kl-batch", "warning", message, 1, (), "drop one row", 1 / rows)
    same = profile.counts["same completion"]
    if same > _SAME * max(len(profile.labels) - 1, 1):
        message = f"{same} rows have the completion of the row before: their KL estimate equals the reward"
        yield Finding("kto-kl-same-completion", "warning", message, same, (), "shuffle: true", same / rows)


def _sorted_labels(profile: Profile, facts: Facts) -> Iterator[Finding]:
    batch = facts.context.argument("per_device_train_batch_size", 0)
    if not isinstance(batch, int) or batch < 2:
        return
    labels = profile.labels
    if not labels:
        if profile.kinds.get("chosen") and profile.kinds.get("rejected") and 2 * profile.rows > batch:
            message = (
                "pairs are taken apart into all chosen, then all rejected ones of 1000 rows: batches have one label"
            )
            fix = "give rows of prompt, completion and label, shuffled"
            yield Finding("kto-sorted-labels", "warning", message, profile.rows, (), fix, 1.0)
        return
    if facts.context.shuffled or min(labels.count(0), labels.count(1)) == 0:
        return
    batches = range(0, len(labels) - 1, batch)
    one = sum(len(set(labels[start : start + batch])) == 1 for start in batches)
    if one > _SORTED * len(batches):
        message = f"{one} of {len(batches)} batches have one label only: rows are trained in the order of the file"
        yield Finding("kto-sorted-labels", "warning", message, profile.rows, (), "shuffle: true", one / len(batches))


SET_RULES = (single_class, contradicting, order)
