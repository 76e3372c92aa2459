"""Sharded checkpoints made by two processes, and what `ptcli merge` makes of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ptcli.builtin import MODEL
from ptcli.merge.request import plan_request
from ptcli.merge.run import run_merge

SCRIPT = Path(__file__).with_name("sharded_checkpoint.py")


def make_run(tmp_path: Path, kind: str, dtype: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run directory with a checkpoint of step 1 and no final model; and the weights that were trained."""
    run = tmp_path / "run"
    program = Path(sys.executable).with_name("torchrun")
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [program, "--standalone", "--nproc_per_node", "2", SCRIPT, kind, MODEL, run / "checkpoint-1", dtype]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, run)  # as the trainer leaves them beside
    return run, torch.load(run / "checkpoint-1.pt")


def consolidate(path: str, out: Path, **options: str) -> dict[str, torch.Tensor]:
    """The tensors of the consolidated model, loaded by transformers."""
    from transformers import AutoModelForCausalLM

    plan = plan_request(
        path, base=options.get("base"), dtype=options.get("dtype"), max_shard_size="100KB", allow_missing=False,
        download=False,
    )  # fmt: skip
    merged = run_merge(plan, out)
    assert merged.verified, merged.verification
    return AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()


def assert_same(found: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> None:
    assert found.keys() == trained.keys()
    assert [name for name in found if found[name].dtype != trained[name].dtype] == []
    assert [name for name in found if not found[name].equal(trained[name])] == []
