"""What the rows are like as a whole."""

from __future__ import annotations

from array import array

from ptcli.data.model import Profile
from ptcli.data.summary import summarize_rows


def _profile(*digests: int, labels: bytes = b"") -> Profile:
    return Profile(rows=len(digests), digests=array("Q", digests), labels=bytearray(labels))


def test_duplicates_labels_and_overlap() -> None:
    train = _profile(1, 2, 2, 3, labels=b"\x01\x00\x00\x02")
    lines = list(summarize_rows(train, {"eval.math": _profile(3, 9), "eval.code": _profile(8)}))
    assert lines == [
        "rows that repeat another: 1 of 4 (25.0%)",
        "labels: 1 true, 2 false, 1 other",
        "rows of data.eval.math that are in data.train: 1 of 2 (50.0%)",
        "rows of data.eval.code that are in data.train: 0 of 1 (0.0%)",
    ]


def test_nothing_of_no_rows() -> None:
    assert list(summarize_rows(_profile(), {"eval": _profile()})) == []
