"""LoRA, rsLoRA, DoRA and QLoRA through the command line: the shipped recipes in their smoke form, with an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smoke_runs import ROOT, metrics_of, processes_of

pytestmark = pytest.mark.long

KINDS = {
    "lora": (),
    "rslora": ("peft.use_rslora=true",),
    "dora": ("peft.use_dora=true",),
    "qlora": ("model.quantization.load_in_4bit=true", "model.quantization.bnb_4bit_quant_type=nf4"),
}
HERE = {"grpo": ("rollouts={backend: transformers}", "launch.gpus=1", "launch.accelerate=single")}
"""The trainer generates by itself; with a server: test_server_methods.py."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_smoke(method: str, kind: str, tmp_path: Path, ptcli_process: Callable) -> None:
    run = tmp_path / "run"
    overrides = ("peft.r=4", "peft.lora_alpha=16", *KINDS[kind], *HERE.get(method, ()))
    result = ptcli_process("train", ROOT / f"recipes/{method}.yaml", "--smoke", f"output_dir={run}", *overrides)
    assert result.code == 0, result.err
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    assert metrics_of(run)[-1]["step"] == status["step"] > 0
    assert processes_of(run) == []
    assert_usable(run, dora=kind == "dora", rslora=kind == "rslora")


def assert_usable(run: Path, *, dora: bool, rslora: bool) -> None:
    """The adapter has moved, loads on its base, changes what it says, and generates."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(run).eval()
    config = model.peft_config["default"]
    assert (config.r, config.use_dora, config.use_rslora) == (4, dora, rslora)
    moved = [p for name, p in model.named_parameters() if "lora_B" in name and float(p.abs().max()) > 0]
    assert moved
    tokenizer = AutoTokenizer.from_pretrained(run)
    prompt = [{"role": "user", "content": "1+2="}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        adapted = model(**inputs).logits
        with model.disable_adapter():
            assert not torch.equal(adapted, model(**inputs).logits)
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]
