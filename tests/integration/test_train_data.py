"""Rows of every kind of path."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ptcli.errors import WorkError
from ptcli.recipe.model import Recipe
from ptcli.train.data import load_data

ROWS = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(10)]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe(*entries: dict[str, Any], evaluation: Any = None) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "method": "grpo",
            "output_dir": "/x",
            "model": {"path": "builtin:tiny"},
            "data": {"train": list(entries), "eval": evaluation},
        }
    )


def load(*entries: dict[str, Any], evaluation: Any = None) -> Any:
    return load_data(recipe(*entries, evaluation=evaluation))


def write_jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(folder: Path, kind: str) -> Path:
    """The rows as a file or folder of that kind."""
    from datasets import load_dataset

    jsonl = write_jsonl(folder / "rows.jsonl")
    path = folder / f"out.{kind}"
    if kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(jsonl.read_bytes()))
    elif kind == "jsonl.zst":
        path.write_bytes(zstandard.compress(jsonl.read_bytes()))
    else:
        rows = load_dataset("json", data_files=str(jsonl), split="train")
        if kind == "parquet":
            rows.to_parquet(path)
        elif kind == "csv":
            rows.to_csv(path)
        else:
            rows.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl.gz", "jsonl.zst", "parquet", "csv", "saved"])
def test_every_kind_of_file(kind, tmp_path):
    train, evaluation = load({"path": str(write(tmp_path, kind))})
    assert [row["prompt"] for row in train] == [row["prompt"] for row in ROWS]
    assert [str(row["answer"]) for row in train] == [row["answer"] for row in ROWS]
    assert evaluation is None


def test_arrow_files_of_a_saved_dataset(tmp_path):
    (arrow,) = write(tmp_path, "saved").glob("*.arrow")
    assert len(load({"path": str(arrow)})[0]) == 10


def test_a_folder_has_splits(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    write_jsonl(tmp_path / "test.jsonl", ROWS[:3])
    assert len(load({"path": str(tmp_path)})[0]) == 10
    assert len(load({"path": str(tmp_path), "split": "test"})[0]) == 3


def test_a_glob_reads_its_files_in_order(tmp_path):
    for number in (2, 0, 1):
        write_jsonl(tmp_path / f"part-{number}.jsonl", [ROWS[number]])
    train, _ = load({"path": str(tmp_path / "part-*.jsonl")})
    assert train["prompt"][:] == ["0+1=", "1+1=", "2+1="]


def test_rows_that_ship():
    train, _ = load({"path": "builtin:arithmetic", "take": 5})
    assert len(train) == 5
    assert {"prompt", "answer", "solution"} <= set(train.column_names)


def test_slices_renames_shuffles_and_takes(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl"))
    assert len(load({"path": path, "split": "train[:4]"})[0]) == 4
    assert load({"path": path, "rename": {"answer": "solution"}})[0].column_names == ["prompt", "solution"]
    once = load({"path": path, "shuffle": True, "take": 6})[0]["prompt"][:]
    assert once == load({"path": path, "shuffle": 42, "take": 6})[0]["prompt"][:]
    assert once != load({"path": path, "shuffle": 0, "take": 6})[0]["prompt"][:]
    assert set(once) <= {row["prompt"] for row in ROWS}
    assert len(load({"path": path, "take": 1000})[0]) == 10


def test_entries_are_concatenated_whatever_the_order_of_their_columns(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    turned = [{"answer": row["answer"], "prompt": row["prompt"]} for row in ROWS[2:4]]
    second = write_jsonl(tmp_path / "b.jsonl", turned)
    assert load({"path": str(first)}, {"path": str(second)})[0]["prompt"][:] == ["0+1=", "1+1=", "2+1=", "3+1="]


def test_evaluation_rows_are_held_out_or_given_or_named(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl"))
    train, held_out = load({"path": path}, evaluation=0.2)
    assert (len(train), len(held_out)) == (8, 2)
    assert not set(train["prompt"][:]) & set(held_out["prompt"][:])
    assert len(load({"path": path}, evaluation=[{"path": path, "take": 3}])[1]) == 3
    named = load({"path": path}, evaluation={"near": [{"path": path, "take": 1}], "far": [{"path": path}]})[1]
    assert {name: len(rows) for name, rows in named.items()} == {"near": 1, "far": 10}


@pytest.mark.parametrize(
    ("text", "name", "entry", "message"),
    [
        ("", "a.jsonl", {}, r"data\.train\.0"),
        ("not json", "a.jsonl", {}, r"data\.train\.0: cannot read .*a\.jsonl"),
        ('{"a": 1}', "a.docx", {}, r"JSON, JSONL, Parquet, CSV or Arrow; found `\.docx`"),
        ('{"a": 1}', "a.jsonl", {"split": "test"}, r'Unknown split "test"'),
        ('{"a": 1}', "a.jsonl", {"rename": {"b": "c"}}, r"data\.train\.0\.rename: there is no column `b`; found a"),
        (
            '{"a": 1, "b": 2}',
            "a.jsonl",
            {"rename": {"b": "a"}},
            r"data\.train\.0\.rename: row 0: two columns would be called `a`",
        ),
    ],
)
def test_what_is_wrong_names_the_entry(text, name, entry, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(WorkError, match=message):
        load({"path": str(tmp_path / name)} | entry)


def test_a_file_that_is_gone_is_not_looked_up_on_the_hub(tmp_path):
    with pytest.raises(WorkError, match="there is no file or folder"):
        load({"path": str(tmp_path / "absent.jsonl")})


def test_entries_that_differ_say_how(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "answer": "1"}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"question": "x", "answer": "1"}])
    with pytest.raises(WorkError, match=r"data\.train\.1: its columns \(question, answer\) .*\(prompt, answer\)"):
        load({"path": str(first)}, {"path": str(second)})
    third = write_jsonl(tmp_path / "c.jsonl", [{"prompt": ["x"], "answer": "1"}])
    with pytest.raises(WorkError, match=r"data\.train\.1: its column types .* `prompt` is a list, .* string"):
        load({"path": str(first)}, {"path": str(third)})


def test_too_few_rows_to_hold_any_out(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl", ROWS[:2]))
    with pytest.raises(WorkError, match=r"data\.eval: 0\.1 of 2 rows"):
        load({"path": path}, evaluation=0.1)
