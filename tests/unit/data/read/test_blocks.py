"""Files cut into blocks: every row once, in order, whatever the sizes; and files that cannot be read to their end."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ptcli.data.read import blocks
from ptcli.data.read.blocks import Block, cut, lines_from, read_beyond, read_lines, read_rows
from ptcli.data.read.sources import resolve
from ptcli.data.read.text import Bad
from ptcli.recipe.model import DataEntry

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress, "": bytes,
}  # fmt: skip


def read(path: Path) -> tuple[list[Any], str]:
    """The rows of a file, and what is wrong with it."""
    rows: list[Any] = []
    faults = []
    for file in resolve(DataEntry(path=str(path)), ("path",)).files:
        for block in cut(file):
            for row in read_rows(block):
                if isinstance(row, Bad):
                    faults.append(row.why)
                else:
                    rows.append(row)
    return rows, "; ".join(faults)


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


ROWS = [{"n": number, "text": "x" * (number * 7 % 50)} for number in range(300)]


@pytest.mark.parametrize("size", [1, 13, 64, 1000, 1 << 22])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_row_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, suffix: str) -> None:
    monkeypatch.setattr(blocks, "SIZE", size)
    monkeypatch.setattr("ptcli.data.read.compressed.CHUNK", 100)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\xef\xbb\xbf\r\n\n" + lines(ROWS).replace(b"\n", b"\r\n\n") + b'{"n": 300}'))
    assert read(path) == ([*ROWS, {"n": 300}], "")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [64, 1 << 22])
def test_lines_with_what_follows_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, bom: bytes
) -> None:
    monkeypatch.setattr(blocks, "SIZE", size)
    path = tmp_path / "a.jsonl"
    path.write_bytes(bom + lines(ROWS[:20]))
    (file,) = resolve(DataEntry(path=str(path)), ("path",)).files
    at = 0
    for block in cut(file):
        data, count = read_beyond(block, 16)
        assert data[:count] == read_lines(block)
        if count:  # where no line begins, anything may follow
            assert lines(ROWS[:20])[at:].startswith(data)
            assert 0 <= len(data) - count <= 16
        at += count
    assert at == len(lines(ROWS[:20]))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_arrays_and_empty_files(tmp_path: Path, suffix: str) -> None:
    for name, text, rows in (
        ("a", json.dumps(ROWS, indent=1), ROWS),
        ("b", json.dumps(ROWS), ROWS),
        ("c", "", []),
        ("d", "\n \r\n", []),
        ("e", "[]", []),
        ("f", json.dumps(ROWS[0], indent=1), ROWS[:1]),
    ):
        path = tmp_path / f"{name}.json{suffix}"
        path.write_bytes(COMPRESS[suffix](text.encode()))
        assert read(path) == (rows, "")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_cut_short_gives_its_first_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"n": number, "text": random.Random(number).randbytes(200).hex()} for number in range(2000)]
    for name, text in (("a", lines(rows)), ("b", json.dumps(rows).encode())):
        path = tmp_path / f"{name}.json{suffix}"
        data = COMPRESS[suffix](text)
        path.write_bytes(data[: len(data) // 2 + 5])
        found, fault = read(path)
        assert found == rows[: len(found)]
        assert fault
        assert len(found) > 100 or suffix in (".bz2", ".xz", ".zst")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_that_is_not_what_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(lines(ROWS))
    rows, fault = read(path)
    assert rows == []
    assert "cannot be read to its end" in fault


def test_several_zstd_frames_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(lines(ROWS[:10])) + zstandard.compress(lines(ROWS[10:])))
    assert read(path) == (ROWS, "")


def test_a_bad_line_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n{"a": 2}\n{"a": "')
    rows, fault = read(path)
    assert rows == [{"a": 1}, {"a": 2}]
    assert fault.count(";") == 3


@pytest.mark.parametrize("length", [10, 1000, 40_000])
def test_lines_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(blocks, "SIZE", 500)
    monkeypatch.setattr(blocks, "_STEP", 64)
    rows = [{"a": "x" * (length if number % 3 == 1 else number)} for number in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(rows))
    assert read(path) == (rows, "")
    file = resolve(DataEntry(path=str(path)), ("path",)).files[0]
    parts = [Block(file, at, min(at + 777, file.size)) for at in range(0, file.size, 777)]
    assert [json.loads(line) for part in parts for line in lines_from(part)] == rows


def test_a_file_that_is_gone_or_shorter_now_ends_in_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS))
    file = resolve(DataEntry(path=str(path)), ("path",)).files[0]
    path.unlink()
    (block,) = cut(file)
    assert "cannot be read: No such file" in block.fault


# --- tables ----------------------------------------------------------------------------------------------------------

TABLE = [
    {"text": f"t{number}", "chat": [{"role": "user", "content": str(number)}], "n": number} for number in range(99)
]


def parquet(path: Path, rows: list[Any], **options: Any) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def arrow(path: Path, rows: list[Any], make: str, step: int = 10) -> Path:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as sink, getattr(pyarrow.ipc, make)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=step)
    return path


def test_tables_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptcli.data.read.tables._PIECE_BYTES", 500)
    paths = [
        parquet(tmp_path / "a.parquet", TABLE, row_group_size=10),
        parquet(tmp_path / "b.parquet", TABLE, compression="zstd"),
        arrow(tmp_path / "c.arrow", TABLE, "new_stream"),
        arrow(tmp_path / "d.arrow", TABLE, "new_file"),
    ]
    assert [read(path) for path in paths] == [(TABLE, "")] * 4
    counts = [[block.rows for block in cut(resolve(DataEntry(path=str(path)), ("p",)).files[0])] for path in paths]
    assert [sum(each) for each in counts] == [99] * 4
    assert [len(each) > 1 for each in counts] == [True, False, True, True]


def test_keys_that_arrow_filled_in_are_left_out(tmp_path: Path) -> None:
    rows = [{"m": [{"role": "user", "name": "n"}]}, {"m": [{"role": "user"}]}, {"m": None}]
    assert read(parquet(tmp_path / "a.parquet", rows)) == (rows, "")


def test_what_json_has_not_becomes_text(tmp_path: Path) -> None:
    rows = [{"day": datetime.date(2026, 1, 2), "raw": b"abc"}]
    assert read(parquet(tmp_path / "a.parquet", rows)) == ([{"day": "2026-01-02", "raw": {"bytes": 3}}], "")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_table_that_is_cut_short_is_a_fault(tmp_path: Path, share: float) -> None:
    for path in (
        parquet(tmp_path / "a.parquet", TABLE * 20),
        arrow(tmp_path / "b.arrow", TABLE * 20, "new_stream"),
        arrow(tmp_path / "c.arrow", TABLE * 20, "new_file"),
    ):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        assert read(path)[1]


def test_a_table_with_broken_bytes_inside_is_a_fault(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", TABLE * 100, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    assert read(path)[1]


def test_a_compressed_table_says_so(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", TABLE)
    path = path.rename(tmp_path / "a.parquet.gz")
    assert "compressed Parquet file is not read" in read(path)[1]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_csv_has_the_types_that_all_rows_have(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.csv{suffix}"
    text = 'text,label,n,f,mixed\n"a,\n""b""",True,1,1.5,1\nNone,false,2,,x\n'
    path.write_bytes(COMPRESS[suffix](text.encode()))
    first = {"text": 'a,\n"b"', "label": True, "n": 1, "f": 1.5, "mixed": "1"}
    assert read(path) == ([first, {"text": None, "label": False, "n": 2, "f": None, "mixed": "x"}], "")


def test_a_column_may_change_its_type_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptcli.data.read.tables._CSV_BLOCKS", (200, 10_000))
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["empty", "whole", "word", "label"])
        for number in range(200):
            writer.writerow(["" if number < 100 else "x", number if number < 100 else 0.5, number, "True"])
        writer.writerow(["", "", "word", "False"])
        writer.writerow(["x" * 500, "", "", "True"])
    rows, fault = read(path)
    assert fault == ""
    assert rows[0] == {"empty": None, "whole": 0.0, "word": "0", "label": True}
    assert rows[200] == {"empty": None, "whole": None, "word": "word", "label": False}
    assert len(rows[201]["empty"]) == 500


@pytest.mark.parametrize(
    ("data", "rows", "why"),
    [
        (b"", [], ""),
        (b"text,n\n", [], ""),
        (b"\xef\xbb\xbftext\na\n", [{"text": "a"}], ""),
        (b"a,b\n1,2\n1,2,3\n", [], "cannot be read to its end: "),
        (b'a,b\n1,"x', None, None),
        (b"text\nb\xff\n", [], "`text` is not UTF-8"),
    ],
)
def test_odd_csv(tmp_path: Path, data: bytes, rows: list[Any] | None, why: str | None) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    found, fault = read(path)
    if rows is not None and why is not None:
        assert found == rows
        assert why in fault if why else not fault


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("prompt\tcompletion\na, b\tc\n")
    assert read(tmp_path / "a.tsv") == ([{"prompt": "a, b", "completion": "c"}], "")
