"""Large data: time and memory stay bounded, whatever the file."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MIB = 2**20
WORDS = 40 * MIB
"""Of five letters each: 200 MiB."""


def validate(path: Path, *words: str, limit: int = 400 * MIB) -> tuple[dict[str, Any], float]:
    """The report and the seconds of a check whose processes together hold no more than `limit` bytes."""
    argv = [sys.executable, "-m", "ptcli", "validate-data", "--data", str(path), "--method", "sft", "--json", *words]
    start = time.monotonic()
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        peak = max(held(psutil.Process(run.pid), run))
        out, errors = run.communicate()
    assert "Traceback" not in errors
    assert peak <= limit, f"{peak / MIB:.0f} MiB"
    return json.loads(out), time.monotonic() - start


def held(process: psutil.Process, run: subprocess.Popen[str]) -> Iterator[int]:
    yield 0
    while run.poll() is None:
        try:
            yield sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True)))
        except psutil.Error:  # one has ended meanwhile
            continue
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_row_of_200_megabytes(tmp_path: Path, name: str) -> None:
    rows = ['{"text": "a b"}', '{"text": "' + "word " * WORDS + '"}', '{"text": "c d"}']
    text = "[" + ",".join(rows) + "]" if name == "a.json" else "\n".join(rows) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode(), 1) if name.endswith("gz") else text.encode())
    del text, rows
    report, _ = validate(tmp_path / name, limit=400 * MIB + 3 * 5 * WORDS)
    assert (report["rows"], report["ok"]) == (3, True)


@pytest.mark.parametrize("line", ['{"text": "%d"}', "bad %d", "[%d]"])
def test_ten_million_short_rows(tmp_path: Path, line: str) -> None:
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(line % number + "\n" for number in range(10_000_000))
    report, seconds = validate(tmp_path / "a.jsonl")
    assert report["ok"] == line.startswith("{")
    assert report["rows"] == (10_000_000 if report["ok"] else 0)
    assert seconds < 300


def test_rows_are_chosen_among_ten_million(tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(f'{{"text": "{number}"}}\n' for number in range(10_000_000))
    (tmp_path / "r.yaml").write_text(
        "method: sft\nmodel: {path: 'builtin:tiny'}\n"
        f"data: {{train: [{{path: {tmp_path}/a.jsonl, split: 'train[10%:]', shuffle: true, take: 100000}}]}}\n"
    )
    argv = [sys.executable, "-m", "ptcli", "validate-data", str(tmp_path / "r.yaml"), "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert json.loads(done.stdout)["rows"] == 100_000


def test_a_line_that_never_ends_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(b'{"text": "a b"}\n')
        file.truncate(6 << 30)  # the rest is a hole: zeros that take no room
    report, seconds = validate(tmp_path / "a.jsonl")
    assert report["findings"][0]["rule"] == "unreadable-file"
    assert seconds < 120


def test_an_array_whose_string_never_ends_is_given_up(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.write(b'[{"text": "a b"}, {"text": "')
        for _ in range(300):
            file.write(b"word " * (MIB // 5))
    report, seconds = validate(tmp_path / "a.json", limit=400 * MIB + 3 * 300 * MIB)
    assert report["findings"][0]["rule"] == "unreadable-file"
    assert seconds < 120


def test_a_sample_of_five_gigabytes(tmp_path: Path) -> None:
    row = json.dumps(
        {"messages": [{"role": "user", "content": "Why? " * 100}, {"role": "assistant", "content": "So."}]}
    )
    with open(tmp_path / "a.jsonl", "w") as file:
        part = "".join(row + "\n" for _ in range(100_000))
        for _ in range(5_000_000_000 // len(part)):
            file.write(part)
    rows = 5_000_000_000 // len(part) * 100_000
    report, seconds = validate(tmp_path / "a.jsonl", "--sample", "1000")
    assert report["checked"] == 1000
    assert abs(report["rows"] - rows) < 0.02 * rows
    assert seconds < 6
