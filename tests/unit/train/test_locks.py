"""Build locks of torch extensions."""

import os

from ptcli.train.locks import clear_stale_build_locks


def test_a_lock_that_nobody_holds_is_removed_and_a_held_one_stays(tmp_path):
    for name in ("stale", "held"):
        (tmp_path / "py311_cpu" / name).mkdir(parents=True)
    stale, held = (tmp_path / "py311_cpu" / name / "lock" for name in ("stale", "held"))
    stale.touch()
    holder = os.open(held, os.O_CREAT | os.O_EXCL)  # as torch's FileBaton does
    try:
        assert clear_stale_build_locks(tmp_path) == [stale]
        assert not stale.exists()
        assert held.exists()
    finally:
        os.close(holder)


def test_no_folder_is_no_lock(tmp_path):
    assert clear_stale_build_locks(tmp_path / "absent") == []
