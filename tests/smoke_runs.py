"""Each method's shipped recipe through the command line, in its smoke form, and what such a run must leave."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from ptcli.builtin import MODEL
from ptcli.methods import METHODS, Head

ROOT = Path(__file__).parents[1]

USUAL = ("dpo", "kto", "xpo", "ppo", "reward", "prm", "gkd", "grpo")
"""Methods that `make test` trains: one of each kind of data, of each head, of each further model, with and without a
server."""
FURTHER = ("sft", "cpo", "orpo", "bco", "nash_md", "rloo", "online_dpo", "minillm", "distillation")
"""Those that `make test-long` trains; sft also trains in tests/integration/test_strategies.py."""

FILES = ("recipe.resolved.yaml", "plan.json", "launch.sh", "stack.json", "logs/trainer.log", "config.json")


def smoke(method: str, run: Path, ptcli_process: Callable[..., Any]) -> Any:
    """Train a method's recipe; the command's result, once the run has left what it should."""
    result = ptcli_process("train", ROOT / f"recipes/{method}.yaml", "--smoke", f"output_dir={run}")
    assert result.code == 0, result.err
    assert "builtin:tiny" in result.err
    assert_finished(run)
    assert_learned(run, METHODS[method].head)
    assert_usable(run, METHODS[method].head)
    return result


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def processes_of(run: Path) -> list[int]:
    """Processes that name the run directory in their command line or that carry it in their environment."""
    return list(_processes_of(run))


def _processes_of(run: Path) -> Iterator[int]:
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline()) + " ".join(process.environ().values())
        except psutil.Error:
            continue
        if str(run) in text and process.pid != os.getpid():
            yield process.pid


def assert_finished(run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["cause"]) == ("finished", 0, None)
    assert status["step"] > 0
    assert "events" not in status, "no guard fires in a healthy run"
    rows = metrics_of(run)
    assert rows[-1]["step"] == status["step"]
    losses = [value for row in rows for name, value in row.items() if "loss" in name]
    assert losses
    assert all(isinstance(loss, float) and math.isfinite(loss) for loss in losses)
    for name in FILES:
        assert (run / name).stat().st_size > 0, name
    assert processes_of(run) == []


def assert_learned(run: Path, head: Head) -> None:
    """The weights are those of the tiny model, all of them other ones now, with the method's head and nothing else."""
    from safetensors.torch import load_file

    before, after = load_file(MODEL / "model.safetensors"), load_file(run / "model.safetensors")
    if head != "causal_lm":
        del before["lm_head.weight"]
        after = {name: weights for name, weights in after.items() if not name.startswith("score.")}
    assert after.keys() == before.keys()
    assert not [name for name in before if after[name].equal(before[name])]


def assert_usable(run: Path, head: Head) -> None:
    """The folder loads with the head's class: it generates, gives a sequence one score, or a token two."""
    import torch
    from transformers import AutoTokenizer

    from ptcli.train.models import auto_class

    tokenizer = AutoTokenizer.from_pretrained(run)
    model, info = auto_class(head).from_pretrained(run, output_loading_info=True)
    assert not info["missing_keys"], "a head that was not saved would be a random one"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    prompt = [{"role": "user", "content": "1+2="}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    if head == "causal_lm":
        ends = model.generation_config.eos_token_id
        assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
        assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]
        return
    with torch.no_grad():
        scores = model(**inputs).logits
    assert (
        scores.shape
        == {"sequence_classification": (1, 1), "token_classification": (*inputs["input_ids"].shape, 2)}[head]
    )
    assert scores.isfinite().all()
