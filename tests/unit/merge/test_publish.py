"""A folder appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptcli.errors import RequestError, WorkError
from ptcli.merge import publish
from ptcli.merge.publish import check_place, published


def model(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(text)
    return folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and_fail(out: Path, error: BaseException) -> None:
    with published(out, 0) as draft:
        (draft / "config.json").write_text("{}")
        raise error


def test_what_is_written_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "models" / "new"
    with published(out, 0) as draft:
        (draft / "config.json").write_text("{}")
        assert not out.exists()
    assert left(out) == ["config.json"]
    assert left(out.parent) == ["new"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [WorkError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_when_it_fails(error: BaseException, tmp_path: Path) -> None:
    out = tmp_path / "models" / "new"
    wanted = WorkError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        write_and_fail(out, error)
    assert left(tmp_path) == []


def test_a_folder_that_exists_stays_unless_forced(tmp_path: Path) -> None:
    out = model(tmp_path / "out")
    with pytest.raises(RequestError, match="have it replaced with --force"), published(out, 0):
        pass
    with pytest.raises(WorkError), published(out, 0, force=True):
        raise WorkError("no")
    assert (out / "model.safetensors").read_text() == "old"
    with published(out, 0, force=True) as draft:
        (draft / "model.safetensors").write_text("new")
        assert (out / "model.safetensors").read_text() == "old"
    assert left(out) == ["model.safetensors"]
    assert left(tmp_path) == ["out"]


def test_a_file_system_that_cannot_exchange_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(publish, "_rename", refuse)
    out = model(tmp_path / "out")
    with published(out, 0, force=True) as draft:
        (draft / "new").write_text("")
    assert left(out) == ["new"]
    assert left(tmp_path) == ["out"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    place = model(tmp_path / "place")
    (tmp_path / "out").symlink_to(place)
    with published(tmp_path / "out", 0, force=True) as draft:
        (draft / "new").write_text("")
    assert left(place) == ["new"]
    assert (tmp_path / "out").is_symlink()


def test_what_force_does_not_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.txt").write_text("")
    base = model(tmp_path / "base")
    run = model(tmp_path / "run")
    (run / "status.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for out, said in (
        (work, "does not look like a model"),
        (run, "does not look like a model"),
        (tmp_path / "file", "is no folder"),
        (base, "which would be replaced"),
    ):
        with pytest.raises(RequestError) as caught:
            check_place(out, 0, force=True, read=(base,))
        assert said in str(caught.value)
    monkeypatch.chdir(base)
    with pytest.raises(RequestError, match="which would be replaced"):
        check_place(base, 0, force=True)


def test_places_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file, not a folder"):
        check_place(tmp_path / "file" / "out", 0, force=False)
    with pytest.raises(RequestError, match="the merged model takes about 1000000000000"):
        check_place(tmp_path / "out", 10**21, force=False)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="exists"):
        check_place(tmp_path / "dangling", 0, force=False)


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write everywhere, so the kernel's answer is given for it
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RequestError, match="is not writable"):
        check_place(tmp_path / "out", 0, force=False)


def test_what_a_killed_merge_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from ptcli.merge.publish import published
with published(Path({str(tmp_path / "out")!r}), 0) as draft:
    (draft / "half").write_text("")
    print("ready", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with published(tmp_path / "out", 0) as draft:  # one that lives is left alone
        assert len(left(tmp_path)) == 2
        raised = draft
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert len(left(tmp_path)) == 2
    with published(tmp_path / "out", 0, force=True) as draft:
        assert draft != raised
    assert left(tmp_path) == ["out"]


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from ptcli.merge.publish import published
from ptcli.run.signals import signals_raised
with signals_raised(), published(Path({str(tmp_path / "out")!r}), 0) as draft:
    (draft / "half").write_text("")
    print("ready", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=20)
    assert left(tmp_path) == []
