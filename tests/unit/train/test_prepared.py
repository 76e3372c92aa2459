"""When rows are turned into tokens before the launch, and how long the cache keeps what was made."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import WorkError
from ptcli.recipe.model import Recipe
from ptcli.train import cache
from ptcli.train.prepared import SMALL, worth_preparing


def recipe(entry: dict[str, Any], launch: dict[str, Any], method: str = "sft") -> Recipe:
    model = {"path": "builtin:tiny"}
    given = {"name": "x", "method": method, "output_dir": "/x", "model": model, "data": {"train": [entry]}}
    return Recipe.model_validate(given | {"launch": launch})


def test_worth_it_for_several_processes(tmp_path: Path) -> None:
    large = tmp_path / "rows.jsonl"
    large.write_bytes(b" " * (SMALL + 1))
    entry = {"path": str(large)}
    assert worth_preparing(recipe(entry, {"gpus": ["0", "1"]}))
    assert worth_preparing(recipe(entry, {"processes": 2}))
    assert worth_preparing(recipe(entry, {"gpus": 1, "nodes": 2}))
    assert worth_preparing(recipe({"path": "trl-lib/Capybara"}, {"gpus": 2}))
    assert not worth_preparing(recipe(entry, {"gpus": 1}))
    assert not worth_preparing(recipe({"path": "trl-lib/Capybara"}, {"gpus": 1}))
    assert not worth_preparing(recipe(entry | {"take": 64}, {"processes": 2}))
    assert not worth_preparing(recipe({"path": "builtin:arithmetic-messages"}, {"processes": 2}))
    assert not worth_preparing(recipe(entry, {"gpus": 8}, "grpo"))
    assert not worth_preparing(recipe(entry, {"gpus": 8}, "gkd"))


def test_worth_it_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptcli.train.prepared.LARGE", 10)
    (tmp_path / "rows.jsonl").write_bytes(b" " * 11)
    assert worth_preparing(recipe({"path": str(tmp_path / "*.jsonl")}, {"gpus": 1}))


# ---------------------------------------------------------------- the cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PTCLI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache.cache_folder() == Path("/shared/ptcli")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.cache_folder() == Path("/home/somebody/.cache/ptcli")


def write(folder: Path) -> None:
    (folder / "a").write_text("made")


def test_made_once(own_cache: Path) -> None:
    assert cache.find("rows", "k") is None
    folder = cache.make("rows", "k", write)
    assert (folder / "a").read_text() == "made"
    assert cache.find("rows", "k") == cache.make("rows", "k", lambda _: pytest.fail("made twice")) == folder
    cache.drop(folder)
    assert [*own_cache.rglob("*")] == [own_cache / "rows"]


def test_what_fails_leaves_nothing(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.make("rows", "k", fail)
    assert [*(own_cache / "rows").iterdir()] == []


def test_whoever_is_ready_first_wins(own_cache: Path) -> None:
    def slow(folder: Path) -> None:
        write(folder)
        (own_cache / "rows" / "k").mkdir()
        (own_cache / "rows" / "k" / "b").touch()

    assert [path.name for path in cache.make("rows", "k", slow).iterdir()] == ["b"]
    assert [path.name for path in (own_cache / "rows").iterdir()] == ["k"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PTCLI_CACHE", str(tmp_path / "file"))
    with pytest.raises(WorkError, match=r"the cache .* cannot be written: .*; set PTCLI_CACHE"):
        cache.make("rows", "k", write)


def test_old_folders_go(own_cache: Path) -> None:
    old, used = cache.make("rows", "old", write), cache.make("prepared", "used", write)
    os.utime(old, (0, time.time() - 31 * 86_400))
    cache.prune()
    assert (old.exists(), used.exists()) == (False, True)


def test_a_large_cache_loses_what_was_not_used_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [cache.make("rows", name, write) for name in ("older", "newer", "now")]
    for days, folder in zip((3, 2, 0), folders, strict=True):
        os.utime(folder, (0, time.time() - days * 86_400 - 60))
    monkeypatch.setattr(cache, "MOST_BYTES", 2 * len("made"))
    cache.prune()
    assert [folder.exists() for folder in folders] == [False, True, True]
    monkeypatch.setattr(cache, "MOST_BYTES", 0)
    cache.prune()
    assert [folder.exists() for folder in folders] == [False, False, True], "what a run may be reading stays"
