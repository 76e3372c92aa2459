"""From an entry to its files: single ones, folders, globs, splits and slices, and what is no file."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from ptcli.data.read.sources import Slice, Source, resolve
from ptcli.errors import RequestError
from ptcli.recipe.model import DataEntry

KEY = ("data", "train", 0, "path")
ROW = '{"text": "a"}\n'


def find(path: object, split: str = "train") -> Source:
    return resolve(DataEntry(path=str(path), split=split), KEY)


def names(source: Source, folder: Path) -> list[str]:
    return [Path(file.path).relative_to(folder).as_posix() for file in source.files]


def problem(path: object, split: str = "train") -> str:
    with pytest.raises(RequestError) as caught:
        find(path, split)
    return str(caught.value)


def write(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ROW)
    return folder


@pytest.mark.parametrize(
    ("name", "form", "compression"),
    [
        ("a.jsonl", "lines", ""),
        ("a.ndjson", "lines", ""),
        ("a.JSON", "lines", ""),
        ("a.jsonl.gz", "lines", ".gz"),
        ("a.csv", "CSV", ""),
        ("a.tsv.zst", "TSV", ".zst"),
        ("a.parquet", "Parquet", ""),
        ("a.arrow", "Arrow", ""),
    ],
)
def test_the_name_tells_the_format(tmp_path: Path, name: str, form: str, compression: str) -> None:
    file = find(write(tmp_path, name) / name).files[0]
    assert (file.format, file.compression, file.size) == (form, compression, len(ROW))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('[{"a": 1}]', "array"),
        ('\ufeff\n\t [{"a": 1}]', "array"),
        ('{"a": [1]}\n', "lines"),
        (json.dumps({"a": 1}, indent=1), "values"),
        ('{"a": 1\n{"a": 2}\n', "lines"),
        ('{"a":\n"b\n', "lines"),
        ("", "lines"),
        ("\n\n", "lines"),
        ("garbage", "lines"),
    ],
)
def test_the_beginning_tells_lines_from_arrays(tmp_path: Path, text: str, form: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with gzip.open(tmp_path / "b.json.gz", "wt") as file:
        file.write(text)
    assert [find(tmp_path / name).files[0].format for name in ("a.json", "b.json.gz")] == [form, form]


def test_what_is_not_there_is_a_problem_of_its_path(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        find(tmp_path / "no.jsonl")
    assert caught.value.problems[0].key == KEY
    assert "there is no file or folder" in problem(tmp_path / "*.jsonl")
    assert "there is no file or folder" in problem("/no/\0.jsonl")


def test_a_glob_takes_its_files_sorted_and_no_folders(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "a.jsonl", "x/c.jsonl", "folder.jsonl/d.jsonl")
    assert names(find(tmp_path / "*.jsonl"), tmp_path) == ["a.jsonl", "b.jsonl"]
    assert len(find(tmp_path / "**/*.jsonl").files) == 4


def test_a_folder_called_like_a_file_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "folder.jsonl/d.jsonl")
    assert names(find(tmp_path / "folder.jsonl"), tmp_path) == ["folder.jsonl/d.jsonl"]


def test_files_of_several_formats_are_a_problem(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b.csv")
    assert "are CSV and JSON" in problem(tmp_path)
    assert "are CSV and JSON" in problem(tmp_path / "*")
    write(tmp_path, "c.txt")
    assert "unknown files" in problem(tmp_path / "*")


def test_an_empty_folder_is_a_problem(tmp_path: Path) -> None:
    assert "has no data files" in problem(tmp_path)
    write(tmp_path, "notes.txt", ".hidden.jsonl", "__pycache__/a.jsonl", ".git/a.jsonl", "dataset_info.json")
    assert "has no data files" in problem(tmp_path)


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["b.jsonl", "a.jsonl", "x/c.jsonl", "notes.txt"], {"train": ["a.jsonl", "b.jsonl", "x/c.jsonl"]}),
        (["train.jsonl", "test.jsonl", "o.jsonl"], {"train": ["train.jsonl"], "test": ["test.jsonl"]}),
        (["train-0.jsonl", "my_train.jsonl"], {"train": ["my_train.jsonl", "train-0.jsonl"]}),
        (["dev.jsonl", "eval.jsonl"], {"validation": ["dev.jsonl"], "test": ["eval.jsonl"]}),
        (["Train.jsonl", "b.jsonl"], {"train": ["Train.jsonl", "b.jsonl"]}),
        (["trained.jsonl", "b.jsonl"], {"train": ["b.jsonl", "trained.jsonl"]}),
        (["train/a.jsonl", "test.jsonl"], {"train": ["train/a.jsonl"]}),
        (["dev/train.jsonl", "x_train2.jsonl"], {"validation": ["dev/train.jsonl"]}),
        (["data/foo-00000-of-00001.jsonl", "train.jsonl"], {"foo": ["data/foo-00000-of-00001.jsonl"]}),
        (["train_eval.jsonl"], {"train": ["train_eval.jsonl"], "test": ["train_eval.jsonl"]}),
    ],
)
def test_the_splits_of_a_folder_are_those_of_datasets(
    tmp_path: Path, files: list[str], splits: dict[str, list[str]]
) -> None:
    write(tmp_path, *files)
    for split in ("train", "validation", "test", "foo"):
        if split in splits:
            assert names(find(tmp_path, split), tmp_path) == splits[split]
        else:
            assert f"has no split `{split}`" in problem(tmp_path, split)


def test_all_is_every_split(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "test.jsonl")
    assert names(find(tmp_path, "all"), tmp_path) == ["train.jsonl", "test.jsonl"]


def test_a_file_is_the_split_train(tmp_path: Path) -> None:
    write(tmp_path, "test.jsonl")
    assert find(tmp_path / "test.jsonl").whole
    assert "there is no `test`" in problem(tmp_path / "test.jsonl", "test")


def test_slices_choose_rows_as_datasets_does() -> None:
    def of(start: str | None, stop: str | None) -> list[int]:
        return list(Slice(start, stop).of(10))

    assert of(None, None) == list(range(10))
    assert of(None, "1000") == list(range(10))
    assert of("-2", None) == [8, 9]
    assert of("15%", "35%") == [2, 3]
    assert of("-20", "2") == [0, 1]
    assert of("7", "3") == []


def test_a_split_may_be_parts_of_parts(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    assert find(tmp_path / "a.jsonl", "train[:3]+train[5:]").slices == (Slice(None, "3"), Slice("5", None))
    assert "is not a split" in problem(tmp_path / "a.jsonl", "train[:x]")
    assert "is not a split" in problem(tmp_path / "a.jsonl", "train[3]")


# --- folders of save_to_disk -----------------------------------------------------------------------------------------


def saved(folder: Path, files: list[str]) -> Path:
    write(folder, *files)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    return folder


def test_a_saved_set_is_its_arrow_files_in_their_order(tmp_path: Path) -> None:
    saved(tmp_path, ["data-00001.arrow", "data-00000.arrow"])
    assert names(find(tmp_path), tmp_path) == ["data-00001.arrow", "data-00000.arrow"]
    (tmp_path / "state.json").write_text("{")
    assert names(find(tmp_path), tmp_path) == ["data-00000.arrow", "data-00001.arrow"]


def test_a_saved_dictionary_has_its_own_splits(tmp_path: Path) -> None:
    saved(tmp_path / "mine", ["data.arrow"])
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert names(find(tmp_path, "mine"), tmp_path) == ["mine/data.arrow"]
    assert "it has mine" in problem(tmp_path, "train")


def test_a_saved_file_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    saved(tmp_path, ["data.arrow"])
    (tmp_path / "data.arrow").unlink()
    assert "cannot be read: No such file" in problem(tmp_path)


# --- what is no file -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    assert "neither a file nor a folder" in problem(tmp_path / "a.jsonl")
    assert "neither a file nor a folder" in problem("/dev/zero")
    assert "has no data files" in problem(tmp_path)


@pytest.mark.timeout(20)
def test_links_to_themselves_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "up").symlink_to(tmp_path)
    write(tmp_path, "a.jsonl")
    assert names(find(tmp_path), tmp_path) == ["a.jsonl"]
    assert "there is no file" in problem(tmp_path / "loop.jsonl")


def test_a_file_that_may_not_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *rest: Any) -> Any:
        raise PermissionError(13, "Permission denied", path)

    write(tmp_path, "a.jsonl")
    monkeypatch.setattr("ptcli.data.read.sources.open", refuse, raising=False)
    assert "cannot be read: Permission denied" in problem(tmp_path / "a.jsonl")


def test_a_file_knows_when_it_has_changed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl") / "a.jsonl"
    file = find(path).files[0]
    assert not file.has_changed()
    path.write_text(ROW * random.Random(1).randint(2, 3))
    assert file.has_changed()
    path.unlink()
    assert file.has_changed()
