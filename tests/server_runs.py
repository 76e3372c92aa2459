"""Runs of a method with a vLLM server that outlives them, so that it can be asked what it was given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from ptcli.builtin import MODEL
from ptcli.methods import METHODS
from ptcli.plan.model import Server
from ptcli.recipe.catalogue import fields
from tests.rollouts_server import largest_difference_of

_SECTIONS = {
    "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
    "teacher": {"path": "builtin:tiny", "from": "config"},
}
_TRAINING = {
    "max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_generations": 4,
    "max_completion_length": 8, "max_new_tokens": 8, "max_length": 64, "logging_steps": 1, "save_strategy": "no",
}  # fmt: skip


def train_with(server: Server, method: str, folder: Path, ptcli_process: Callable) -> Path:
    """Train through the real command against a server that runs already; the run directory."""
    row = METHODS[method]
    known = fields(row.config)
    recipe = {
        "method": method,
        "output_dir": str(folder / "run"),
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": row.smoke_data}]},
        "training": {name: value for name, value in _TRAINING.items() if name in known},
        "rollouts": {"url": server.url, "max_model_len": server.max_model_len},
        "launch": {"device": "cpu"},
    } | {name: _SECTIONS[name] for name in row.needs}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = ptcli_process("train", folder / "recipe.yaml", "--json", timeout=400)
    assert done.code == 0, done.err
    assert json.loads(done.out)["state"] == "finished"
    return folder / "run"


def assert_serves_what_was_trained(server: Server, run: Path) -> None:
    """After the run, the server's log-probabilities are those of the model that was saved, and of no earlier one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run)
    trained, before = (
        largest_difference_of(server, AutoModelForCausalLM.from_pretrained(path, dtype="float32"), tokenizer)
        for path in (run, MODEL)
    )
    assert trained < 1e-4 < before / 10, (trained, before)
    assert (run / "metrics.jsonl").read_text().strip()
