"""What the checks read of an entry is what training reads of it by way of `datasets`: the same rows, however many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptcli.data.engine import PreparedEntry, examine
from ptcli.data.model import Context
from ptcli.data.read.blocks import cut, read_rows
from ptcli.data.read.sources import resolve
from ptcli.errors import RequestError, WorkError
from ptcli.methods import METHODS
from ptcli.recipe.model import DataEntry
from ptcli.train.data import _load_entry

FILES: dict[str, list[str]] = {
    "plain": ["b.jsonl", "a.jsonl", "x/c.jsonl"],
    "mixed case": ["Train.jsonl", "b.jsonl"],
    "names": ["train-0.jsonl", "my_train.jsonl", "test.jsonl", "other.jsonl"],
    "folders": ["train/a.jsonl", "dev/b.jsonl", "test.jsonl"],
    "shards": ["data/foo-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl", "train.jsonl"],
    "both": ["train_eval.jsonl", "b.jsonl"],
    "hidden": ["a.jsonl", ".b.jsonl", "__pycache__/c.jsonl", ".d/e.jsonl", "_f.jsonl", "notes.txt"],
}
TEXTS: dict[str, bytes] = {
    "array.json": b'[{"text": "a"}, {"text": "b"}]',
    "bom.json": b'\xef\xbb\xbf[{"text": "a"}, {"text": "b"}]',
    "space.json": b'\n [{"text": "a"},\n {"text": "b"}]\n',
    "strings.json": b'["a", "b"]',
    "one.json": json.dumps({"text": "a"}, indent=2).encode(),
    "two.json": b'{\n"text": "a"\n}\n{\n"text": "b"\n}\n',
    "blank.jsonl": b'\n{"text": "a"}\r\n\r\n  \n{"text": "b"}',
    "bom.jsonl": b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n',
    "a.csv": b'text,label\n"a, ""b""\nc",True\nNone,False\n<NA>,\n',
    "a.tsv": b"text\tn\na b\t1\nc\t2\n",
    "cut.json": b'[{"text": "a"}, {"text": "b"',
    "more.json": b'[{"text": "a"}] x',
    "comma.json": b'[{"text": "a"},]',
    "cut.jsonl": b'{"text": "a"}\n{"text": "b',
}


def of_training(path: Path, split: str, **keys: Any) -> list[Any] | None:
    try:
        rows = _load_entry(DataEntry(path=str(path), split=split, **keys), None, "data.train.0", 7)
    except WorkError:
        return None
    return rows.to_list()


def of_checks(path: Path, split: str) -> list[Any] | None:
    try:
        files = resolve(DataEntry(path=str(path), split=split), ("path",)).files
    except RequestError:
        return None
    rows: list[Any] = [row for file in files for block in cut(file) for row in read_rows(block)]
    return rows if all(isinstance(row, dict) for row in rows) else None


@pytest.mark.parametrize("kind", FILES)
def test_folders(tmp_path: Path, kind: str) -> None:
    for name in FILES[kind]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    for split in ("train", "validation", "test", "foo"):
        ours, theirs = of_checks(tmp_path, split), of_training(tmp_path, split, shuffle=False)
        assert ours == theirs or (ours and theirs and sorted(map(str, ours)) == sorted(map(str, theirs)))


@pytest.mark.parametrize("name", TEXTS)
def test_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name])
    assert of_checks(tmp_path / name, "train") == of_training(tmp_path / name, "train", shuffle=False)


@pytest.mark.parametrize("split", ["train[:7]", "train[15%:35%]", "train[-3:]", "train[:3]+train[95:]", "train[:200]"])
@pytest.mark.parametrize("keys", [{"shuffle": False}, {"take": 5}, {"shuffle": 3, "take": 4}])
def test_slices_shuffled_and_taken(tmp_path: Path, split: str, keys: dict[str, Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(number)}) + "\n" for number in range(100)))
    seed = {False: None, True: 7}.get(keys.get("shuffle", False), keys.get("shuffle"))
    source = resolve(DataEntry(path=str(path), split=split), ("path",))
    entry = PreparedEntry(source, shuffle=seed, take=keys.get("take"))
    examined = examine([entry], Context(METHODS["sft"]))
    theirs = of_training(path, split, **keys)
    assert theirs is not None
    assert examined.rows == len(theirs)
    assert {row["text"] for _, row in examined.token_sample} == {row["text"] for row in theirs}
