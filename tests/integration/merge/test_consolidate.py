"""Sharded checkpoints of full fine-tunes: FSDP here, ZeRO in tests/long."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ptcli.errors import RequestError, WorkError
from ptcli.merge.consolidate import _torch_load, plan_consolidation
from ptcli.merge.sharded import find_sharded
from tests.integration.merge.families import load_base, make_base, read
from tests.sharded_runs import assert_same, consolidate, make_run


def test_two_processes_of_fsdp(tmp_path: Path) -> None:
    run, trained = make_run(tmp_path, "fsdp", "float32")
    assert_same(consolidate(f"{run}@1", tmp_path / "out"), trained)
    half = consolidate(str(run / "checkpoint-1"), tmp_path / "half", dtype="bfloat16")
    assert_same(half, {name: each.bfloat16() for name, each in trained.items()})
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out/tokenizer.json").exists()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint that one process left."""

    def make(kind: str = "llama", change: Callable[[dict[str, Any]], None] = lambda state: None) -> Path:
        base = make_base(kind, tmp_path / "base")
        state = dict(load_base(base).state_dict())
        change(state)
        folder = tmp_path / "run/checkpoint-3"
        dcp.save({"model": state}, checkpoint_id=str(folder / "pytorch_model_fsdp_0"), no_dist=True)
        return folder

    return make


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "mixtral", "qwen3_moe", "qwen2_vl"])
def test_names_are_those_of_checkpoints(kind: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    consolidate_any(checkpoint(kind), tmp_path / "out", tmp_path / "base")
    ours, theirs = read(tmp_path / "out"), read(tmp_path / "base")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def consolidate_any(folder: Path, out: Path, base: Path) -> None:
    from ptcli.merge.run import run_merge

    sharded = find_sharded(str(folder))
    assert sharded is not None
    assert run_merge(plan_consolidation(sharded, base=str(base)), out).verified


def test_a_vocabulary_that_grew(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    def grow(state: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.cat([state[name], state[name][:8]])

    consolidate_any(checkpoint("llama", grow), tmp_path / "out", tmp_path / "base")
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 72
    assert load_base(tmp_path / "out").get_input_embeddings().weight.shape[0] == 72


def refused(folder: Path, base: Path | None) -> str:
    sharded = find_sharded(str(folder))
    assert sharded is not None
    with pytest.raises(RequestError) as caught:
        plan_consolidation(sharded, base=None if base is None else str(base))
    return str(caught.value)


def test_bad_requests(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint()
    assert "--base PATH" in refused(folder, None)
    assert "--base PATH" in refused(folder, tmp_path / "nowhere")
    other = make_base("qwen2", tmp_path / "other")
    assert "is not of the model in" in refused(folder, other)
    part = next((folder / "pytorch_model_fsdp_0").glob("*.distcp"))
    part.rename(part.with_suffix(".gone"))
    shutil.copy(part.with_suffix(".gone"), folder / "pytorch_model_fsdp_0/other.distcp")
    assert f"it lacks {part.name}" in refused(folder, tmp_path / "base")


def test_an_adapter_s_checkpoint(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint("llama", lambda state: state.update({"model.q_proj.lora_A.weight": torch.zeros(2, 2)}))
    assert "is a checkpoint of an adapter" in refused(folder, tmp_path / "base")


def test_whole_weights_are_no_sharded_checkpoint(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint()
    shutil.copy(tmp_path / "base/model.safetensors", folder)
    assert find_sharded(str(folder)) is None
    assert find_sharded(str(tmp_path)) is None
    assert find_sharded("org/model") is None


def test_a_part_that_is_cut_off(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint()
    part = next((folder / "pytorch_model_fsdp_0").glob("*.distcp"))
    os.truncate(part, part.stat().st_size // 2)
    with pytest.raises(WorkError, match="cannot be read"):
        consolidate_any(folder, tmp_path / "out", tmp_path / "base")
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_no_code_of_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"tensor": torch.ones(2), "evil": Evil()}, "states.pt")
    assert _torch_load(Path("states.pt"))["tensor"].equal(torch.ones(2))
    assert not Path("evil").exists()
    assert pickle.loads(pickle.dumps(Evil())) is None
    assert Path("evil").exists(), "what reads pickles as they are would have made it"
