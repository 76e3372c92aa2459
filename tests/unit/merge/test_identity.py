"""What tells one base from another of the same shape."""

from __future__ import annotations

import json
from pathlib import Path

from ptcli.merge.headers import read_tensors
from ptcli.merge.identity import compare, fingerprint, identify

from .folders import llama, make_base, shard, write_tensors


def test_a_run_records_the_weights_that_it_starts_from(tmp_path: Path) -> None:
    shipped = identify("builtin:tiny", None)
    assert Path(shipped["path"]).is_dir()
    assert len(shipped["fingerprint"]) == 64
    assert identify("org/not-here", "v1") == {"path": "org/not-here", "revision": "v1", "fingerprint": None}
    quantised = make_base(tmp_path / "q", quantization_config={"quant_method": "bitsandbytes"})
    assert identify(str(quantised), None)["fingerprint"] is None


def test_the_fingerprint_is_of_the_weights_and_not_of_their_files(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    mine = fingerprint(read_tensors(base / "model.safetensors"))
    assert identify(str(shard(base, 3)), None)["fingerprint"] == mine
    other = write_tensors(tmp_path / "other.safetensors", llama(), fill=b"\1")
    assert fingerprint(read_tensors(other)) != mine
    assert fingerprint(read_tensors(write_tensors(tmp_path / "f16.safetensors", llama(), "F16"))) != mine


def test_a_record_of_another_model_says_nothing(tmp_path: Path) -> None:
    """A run that starts from a merged adapter trains on `start/`, and has recorded the base before it."""
    base, start = make_base(tmp_path / "base"), make_base(tmp_path / "run" / "start")
    run = tmp_path / "run"
    (run / "stack.json").write_text(json.dumps({"models": {"model": identify(str(base), None) | {"fingerprint": "0"}}}))
    tensors = read_tensors(start / "model.safetensors")
    assert compare(run, {"base_model_name_or_path": str(start)}, str(start), tensors) == (None, "")
    problem, _ = compare(run, {"base_model_name_or_path": str(base)}, str(base), tensors)
    assert problem is not None
