"""`after: {merge: true}` through the real command: SFT with LoRA, and the merged model beside its adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.long


def test_after_merge(tmp_path: Path, ptcli_process: Callable) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "run"
    recipe = {
        "method": "sft",
        "output_dir": str(run),
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": "builtin:arithmetic-messages"}]},
        "training": {"max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no", "logging_steps": 1},
        "peft": {"r": 4, "target_modules": "all-linear"},
        "launch": {"device": "cpu"},
        "after": {"merge": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = ptcli_process("train", tmp_path / "recipe.yaml", "model.eos_token=<|im_end|>")
    assert done.code == 0, done.err
    assert "merged into its base" in done.out
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert "verified layer by layer" in (run / "logs/merge.log").read_text()

    merged, tokenizer = AutoModelForCausalLM.from_pretrained(run / "merged"), AutoTokenizer.from_pretrained(run)
    ids = tokenizer("1+2=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = AutoPeftModelForCausalLM.from_pretrained(run)(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, theirs, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(run / "merged").chat_template == tokenizer.chat_template
    ends = merged.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
