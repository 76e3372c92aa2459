"""Worker processes end with whoever asked for their results."""

from __future__ import annotations

import time

import pytest

from ptcli.data.workers import in_order

LARGE = 40_000_000
"""Bytes of a result that is not written to the pipe at once."""


@pytest.mark.timeout(60)
def test_whoever_stops_in_the_middle_of_large_results_does_not_wait() -> None:
    for _ in range(3):
        results = in_order(lambda job: bytes(LARGE), iter(range(20)), 2)
        assert next(results)[0] == 0
        start = time.monotonic()
        results.close()  # type: ignore[attr-defined]
        assert time.monotonic() - start < 20


def test_results_come_in_the_order_of_the_jobs(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(in_order(lambda job: job * job, iter(range(50)), 3)) == [(job, job * job) for job in range(50)]
    assert capfd.readouterr().err == ""
