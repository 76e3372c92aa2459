"""The rows of an entry one after the other, and its first rows for planning."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ptcli.data.head import read_head, stream
from ptcli.data.read.sources import resolve
from ptcli.errors import WorkError
from ptcli.recipe.model import DataEntry

ROWS = [{"n": n, "text": f"row {n}"} for n in range(10)]


def write(folder: Path, name: str = "rows.jsonl") -> str:
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = folder / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return str(path)


def numbers(path: str, split: str) -> list[int]:
    source = resolve(DataEntry(path=path, split=split), ("path",))
    return [row["n"] for row in stream(source)]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", list(range(10))), ("train[:3]", [0, 1, 2]), ("train[7:]", [7, 8, 9]), ("train[2:4]", [2, 3]),
        ("train[-2:]", [8, 9]), ("train[:-8]", [0, 1]), ("train[50%:70%]", [5, 6]), ("train[:1]+train[9:]", [0, 9]),
        ("train[:99]", list(range(10))),
    ],
)  # fmt: skip
def test_slices(split: str, expected: list[int], tmp_path: Path) -> None:
    assert numbers(write(tmp_path), split) == expected


def test_what_is_no_row(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(WorkError, match=r"rows\.jsonl: a row is a list, not an object"):
        numbers(str(path), "train")
    assert read_head(DataEntry(path=str(path))) == ROWS


def test_head(tmp_path: Path) -> None:
    assert read_head(DataEntry(path=write(tmp_path)), 3) == ROWS[:3]
    assert read_head(DataEntry(path=write(tmp_path, "rows.jsonl.gz")), 3) == ROWS[:3]
    assert read_head(DataEntry(path="builtin:arithmetic-text"), 1)
    assert read_head(DataEntry(path="trl-lib/Capybara")) is None
    assert read_head(DataEntry(path=str(tmp_path / "none.jsonl"))) is None
    (tmp_path / "empty.jsonl").touch()
    assert read_head(DataEntry(path=str(tmp_path / "empty.jsonl"))) is None


def test_what_datasets_stores_as_json_text(tmp_path: Path) -> None:
    """So it stores messages of which only some have tool calls: in Parquet files, and in what `save_to_disk` writes."""
    import pyarrow
    import pyarrow.parquet

    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"a": 1}]}]
    texts = pyarrow.array([[json.dumps(message) for message in chat], None], pyarrow.list_(pyarrow.string()))
    stored = texts.cast(pyarrow.list_(pyarrow.json_()))
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"messages": stored}), path)
    if pyarrow.parquet.read_schema(path).field("messages").type != stored.type:
        pytest.fail("the file does not say that it holds JSON")
    assert read_head(DataEntry(path=str(path))) == [{"messages": chat}, {"messages": None}]
