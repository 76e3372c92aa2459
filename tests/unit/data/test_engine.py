"""Every row of some entries through the rules: counts, places, selections, samples, faults, and the end of workers."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ptcli.data import engine
from ptcli.data.engine import Examined, examine, first_row
from ptcli.data.looking import PreparedEntry, Transform
from ptcli.data.model import Context
from ptcli.data.read import blocks
from ptcli.data.read.sources import resolve
from ptcli.data.rules import conclude
from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.recipe.model import DataEntry

CONTEXT = Context(METHODS["sft"])
ROWS = [{"text": f"This is row {number}."} for number in range(1000)]
ROOT = Path(__file__).parents[3]


def write(path: Path, rows: Any = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def entry(path: Path, split: str = "train", transform: Transform | None = None, **keys: Any) -> PreparedEntry:
    return PreparedEntry(resolve(DataEntry(path=str(path), split=split), ("path",)), transform, **keys)


def look(*entries: PreparedEntry, **keys: Any) -> Examined:
    return examine(entries, CONTEXT, **keys)


def texts(examined: Examined) -> list[str]:
    return [row["text"] for _, row in examined.token_sample]


def found(examined: Examined) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {each.rule: (each.count, each.rows) for each in conclude(examined.profile, CONTEXT)}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some kilobytes are many blocks, and workers are started for them."""
    monkeypatch.setattr(blocks, "SIZE", 2000)
    monkeypatch.setattr("ptcli.data.read.compressed.CHUNK", 500)
    monkeypatch.setattr(engine, "_SMALL", 0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_workers_come_to_the_same(tmp_path: Path, workers: int, suffix: str) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS[:500], {"text": ""}, *ROWS[500:], {"text": ROWS[7]["text"]}])
    if suffix:
        path = path.rename(tmp_path / "b.jsonl")
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "a.jsonl.gz"
    examined = look(entry(path), workers=workers, token_rows=100)
    assert (examined.rows, examined.profile.rows, examined.estimated) == (1002, 1002, False)
    assert found(examined)["empty-value"] == (1, (500,))
    assert examined.place(500) == f"{path.name}:501"
    assert list(examined.profile.digests).count(examined.profile.digests[7]) == 2
    assert examined.profile.columns == {("text",): 1002}
    assert 100 <= len(examined.token_sample) <= 100 + engine.LONGEST_ROWS


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_place_counts_blank_lines(tmp_path: Path, suffix: str) -> None:
    text = "\n \n" + "".join(
        json.dumps(row) + ("\n\r\n" if number % 7 == 0 else "\n") for number, row in enumerate(ROWS)
    )
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    examined = look(entry(path), workers=2)
    at = {json.loads(line)["text"]: number for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    for number in (999, 0, 1, 250, 251, 640, 998):
        assert examined.place(number) == f"{path.name}:{at[ROWS[number]['text']]}"


@pytest.mark.usefixtures("small_blocks")
def test_row_numbers_go_on_over_files_and_entries(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS[:300])
    write(tmp_path / "b.jsonl", [*ROWS[300:400], {"text": 3}])
    (tmp_path / "c.json").write_text(json.dumps([*ROWS[400:600], {"text": 4}]))
    examined = look(entry(tmp_path / "*.jsonl"), entry(tmp_path / "c.json"), workers=2)
    assert examined.rows == 602
    assert found(examined)["wrong-value-type"] == (2, (400, 601))
    assert [examined.place(number) for number in (400, 401, 601)] == ["b.jsonl:101", "c.json, row 0", "c.json, row 200"]
    assert found(examined)["json-array-file"] == (1, (401,))


def test_unreadable_lines_are_counted_and_numbered(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "Some text."}\n{"text": \n[1]\n\n{"text": "\xff"}\n{"text": "More text."}\n{"text": "cut'
    )
    examined = look(entry(path))
    assert found(examined)["unreadable-file"] == (4, (1, 2, 3, 5))
    assert [examined.place(number) for number in (1, 3, 5)] == ["a.jsonl:2", "a.jsonl:5", "a.jsonl:7"]
    assert examined.rows == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.arrow", "a.parquet"])
def test_an_empty_file_has_no_rows_or_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    rules = found(look(entry(tmp_path / name)))
    assert list(rules) == (["unreadable-file"] if name in ("a.arrow", "a.parquet") else ["empty-split"])


def test_blank_lines_and_an_empty_array_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n  \n")
    (tmp_path / "b.json").write_text("[]")
    assert list(found(look(entry(tmp_path / "a.jsonl")))) == ["empty-split"]
    assert list(found(look(entry(tmp_path / "b.json")))) == ["empty-split"]


def test_an_array_that_ends_badly_is_unreadable_at_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS)[:-30])
    assert found(look(entry(tmp_path / "a.json")))["unreadable-file"] == (1, (999,))


@pytest.mark.usefixtures("small_blocks")
def test_the_place_of_the_end_of_a_file_that_is_cut_short(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-20])
    examined = look(entry(tmp_path / "a.jsonl.gz"))
    (count, (row,)) = found(examined)["unreadable-file"]
    assert (count, row) == (1, examined.rows)
    assert examined.place(row) == f"a.jsonl.gz:{row + 1}"


@pytest.mark.parametrize("depth", [300, 900])
def test_deep_nesting_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    monkeypatch.setattr(engine, "_SMALL", 0)
    deep = '{"text": "A text.", "extra": ' + "[" * depth + "]" * depth + "}\n"
    (tmp_path / "a.jsonl").write_text(deep * 3)
    assert look(entry(tmp_path / "a.jsonl"), workers=2).rows == 3


def test_a_file_that_vanishes_or_changes_is_unreadable(tmp_path: Path) -> None:
    gone, changed = entry(write(tmp_path / "a.jsonl")), entry(write(tmp_path / "b.jsonl"))
    (tmp_path / "a.jsonl").unlink()
    assert "unreadable-file" in found(look(gone))
    write(tmp_path / "b.jsonl", ROWS[:10])
    assert "unreadable-file" in found(look(changed))


def test_a_million_bad_lines_are_one_finding(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"bad\n" * 1_000_000)
    begin = time.process_time()
    examined = look(entry(tmp_path / "a.jsonl"), workers=1)
    assert found(examined)["unreadable-file"][1] == (0, 1, 2, 3, 4)
    assert time.process_time() - begin < 20


# --- which rows ------------------------------------------------------------------------------------------------------


def by_datasets(rows: list[Any], shuffle: int | None, take: int | None) -> list[Any]:
    import numpy as np

    order = range(len(rows)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(rows))
    return [rows[index] for index in order][:take]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("split", "chosen"),
    [
        ("train", ROWS),
        ("train[:10]", ROWS[:10]),
        ("train[10%:]", ROWS[100:]),
        ("train[-3:]", ROWS[-3:]),
        ("train[:3]+train[5:]", ROWS[:3] + ROWS[5:]),
        ("train[:3]+train[:5]", ROWS[:3] + ROWS[:5]),
        ("train[900:2000]", ROWS[900:]),
    ],
)
@pytest.mark.parametrize(("shuffle", "take"), [(None, None), (None, 7), (3, 7), (3, 5000)])
def test_the_rows_are_those_of_training(
    tmp_path: Path, split: str, chosen: list[Any], shuffle: int | None, take: int | None, workers: int
) -> None:
    examined = look(entry(write(tmp_path / "a.jsonl"), split, shuffle=shuffle, take=take), workers=workers)
    wanted = by_datasets(chosen, shuffle, take)
    assert examined.rows == len(wanted)
    if len(wanted) < 100:
        assert set(texts(examined)) == {row["text"] for row in wanted}
    numbers = {row["text"]: number for number, row in enumerate(ROWS)}
    assert all(numbers[row["text"]] == number for number, row in examined.token_sample)


def test_rows_are_filtered_before_they_are_shuffled_and_taken(tmp_path: Path) -> None:
    def odd(row: dict[str, Any]) -> dict[str, Any] | None:
        return row if int(row["text"].split()[-1][:-1]) % 2 else None

    examined = look(entry(write(tmp_path / "a.jsonl"), "train[100:]", odd, shuffle=1, take=20))
    wanted = by_datasets([row for row in ROWS[100:] if odd(row)], 1, 20)
    assert sorted(texts(examined)) == sorted(row["text"] for row in wanted)


def test_a_bad_line_is_found_outside_the_rows_that_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "bad\n")
    assert found(look(entry(tmp_path / "a.jsonl", take=5)))["unreadable-file"] == (1, (1000,))


def test_the_first_row_is_that_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [])
    write(tmp_path / "b.jsonl", ROWS[5:])
    assert first_row([entry(tmp_path / "a.jsonl"), entry(tmp_path / "b.jsonl")]) == ROWS[5]
    assert first_row([entry(tmp_path / "a.jsonl")]) is None


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_of_a_small_file_is_even_and_exact(tmp_path: Path) -> None:
    examined = look(entry(write(tmp_path / "a.jsonl")), sample=10, token_rows=10)
    assert (examined.rows, examined.profile.rows, examined.estimated) == (1000, 10, True)
    assert [number for number, _ in examined.token_sample] == list(range(0, 1000, 100))
    assert examined.place(100) == "a.jsonl:101"


def test_a_sample_that_is_larger_than_the_file_is_all_of_it(tmp_path: Path) -> None:
    examined = look(entry(write(tmp_path / "a.jsonl")), sample=5000, token_rows=5000)
    assert (examined.rows, examined.profile.rows, len(examined.token_sample)) == (1000, 1000, 1000)


@pytest.mark.parametrize("rows", [10, 64, 100, 1000])
def test_a_sample_of_a_large_file_is_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("ptcli.data.choosing._COUNTED", 0)
    many = [{"text": f"This is row {number:06}."} for number in range(20_000)]
    examined = look(entry(write(tmp_path / "a.jsonl", many)), sample=rows, token_rows=rows)
    assert examined.profile.rows == rows
    assert abs(examined.rows - 20_000) < 400
    true = [int(text.split()[-1][:-1]) for text in texts(examined)]
    assert len(true) == rows
    parts = {number * min(rows, 64) // 20_000 for number in true}
    assert len(parts) >= min(rows, 64) - 1
    assert all(abs(number - real) < 400 for (number, _), real in zip(examined.token_sample, true, strict=True))
    assert examined.place(7) == "a.jsonl, about row 7"


def test_a_sample_of_long_rows_has_the_number_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptcli.data.choosing._COUNTED", 0)
    rows = [{"text": f"{number} " + "word " * 300} for number in range(1000)]
    assert look(entry(write(tmp_path / "a.jsonl", rows)), sample=700).profile.rows == 700


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_samples_of_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import pyarrow
    from pyarrow import csv, parquet

    monkeypatch.setattr("ptcli.data.choosing._COUNTED", 0)
    monkeypatch.setattr("ptcli.data.read.tables._PIECE_BYTES", 2000)
    path, table = tmp_path / name, pyarrow.Table.from_pylist(ROWS)
    if name == "a.parquet":
        parquet.write_table(table, path, row_group_size=50)
    elif name == "a.arrow":
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    elif name == "a.csv":
        csv.write_csv(table, path)
    else:
        text = json.dumps(ROWS) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in ROWS)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    examined = look(entry(path), sample=100, token_rows=100)
    assert examined.profile.rows == 100
    if name in ("a.parquet", "a.arrow"):
        assert examined.rows == 1000
        assert {number // 100 for number, _ in examined.token_sample} == set(range(10))
        assert all(row == ROWS[number] for number, row in examined.token_sample)
        assert examined.place(examined.token_sample[-1][0]).endswith(f"row {examined.token_sample[-1][0]}")
    else:
        assert examined.rows >= 100


def test_samples_keep_to_split_and_take(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    examined = look(entry(path, "train[500:]", shuffle=1, take=100), sample=10, token_rows=10)
    assert (examined.rows, examined.profile.rows) == (100, 10)
    assert all(number >= 500 for number, _ in examined.token_sample)


def test_a_sample_is_shared_by_size(tmp_path: Path) -> None:
    entries = [entry(write(tmp_path / "a.jsonl", ROWS[:900])), entry(write(tmp_path / "b.jsonl", ROWS[900:]))]
    examined = look(*entries, sample=100, token_rows=100)
    assert (examined.rows, examined.profile.rows) == (1000, 100)
    numbers = [number for number, _ in examined.token_sample]
    assert 10 <= sum(number >= 900 for number in numbers) <= 11
    assert all(row == ROWS[number] for number, row in examined.token_sample)


# --- long rows -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_very_long_rows_are_looked_at_and_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptcli.data.looking._MOST_GIVEN", 5000)
    monkeypatch.setattr(engine, "_LARGE", 8000)
    rows = [*ROWS[:100], {"text": "A long one. " * 2000}, {"text": "x " * 5}, *ROWS[100:]]
    examined = look(entry(write(tmp_path / "a.jsonl", rows)), workers=2)
    assert examined.rows == 1002
    assert max(map(len, texts(examined))) < 5000


def test_the_longest_rows_are_in_the_token_sample(tmp_path: Path) -> None:
    rows = [{"text": "word " * (2 + number * 37 % 1000)} for number in range(1000)]
    examined = look(entry(write(tmp_path / "a.jsonl", rows)), token_rows=10)
    longest = sorted(map(len, texts(examined)))[-16:]
    assert longest == sorted(len(row["text"]) for row in rows)[-16:]


# --- the end of workers ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_worker_is_an_error_that_says_so(tmp_path: Path) -> None:
    def die(row: dict[str, Any]) -> dict[str, Any]:
        if row["text"].endswith(" 500."):
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    with pytest.raises(WorkError, match="was killed"):
        look(entry(write(tmp_path / "a.jsonl"), transform=die), workers=2)
    assert psutil.Process().children() == []


PROGRAM = """
import sys
from ptcli.data import engine
from ptcli.data.read import blocks
from ptcli.cli import main
engine._SMALL, blocks.SIZE, engine._MOST_WORKERS = 0, 2000, 2
engine.os.sched_getaffinity = lambda pid: {0, 1}
sys.argv = ["ptcli", "validate-data", sys.argv[1]]
main()
"""


def start(tmp_path: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A check that takes long, and its two workers."""
    (tmp_path / "slow.py").write_text("import time\n\ndef slow(row):\n    time.sleep(0.05)\n    return row\n")
    write(tmp_path / "a.jsonl")
    (tmp_path / "r.yaml").write_text(
        "method: sft\nmodel: {path: 'builtin:tiny'}\n"
        f"data: {{train: [{{path: {tmp_path}/a.jsonl, map: '{tmp_path}/slow.py:slow'}}]}}\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "r.yaml")],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and run.poll() is None:
        workers = psutil.Process(run.pid).children(recursive=True)
        if len(workers) == 2:
            return run, workers
        time.sleep(0.1)
    run.kill()
    pytest.fail(f"no workers: {run.communicate()}")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_check(tmp_path: Path, sent: signal.Signals) -> None:
    run, workers = start(tmp_path)
    time.sleep(0.3)
    run.send_signal(sent)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == (-sent if sent == signal.SIGKILL else 128 + sent)
    assert "Traceback" not in errors
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_check_whose_worker_is_killed_fails_with_a_reason(tmp_path: Path) -> None:
    run, workers = start(tmp_path)
    workers[0].kill()
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "a process that read the data was killed" in errors
    assert "Traceback" not in errors
