"""What vLLM gets of a quantised model with an adapter is what the trainer itself computes with."""

from __future__ import annotations

from typing import Any

import pytest

from ptcli.builtin import MODEL

TOKENS = [[3, 5, 7, 9, 11, 20, 30]]


def adapted(load_in: str, **lora: Any) -> Any:
    """The tiny model quantised, with a LoRA that changes what it says."""
    import peft
    import torch
    import transformers

    quantization = transformers.BitsAndBytesConfig(**{f"load_in_{load_in}": True}, bnb_4bit_quant_type="nf4")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float32, quantization_config=quantization
    )
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **lora)
    return peft.get_peft_model(base, config).train()  # some CPUs compute 4-bit weights in bf16 in evaluation


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float()


@pytest.mark.parametrize(
    ("load_in", "lora", "close"),
    [
        ("4bit", {"target_modules": "all-linear"}, 1e-3),
        ("4bit", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}, 1e-3),
        ("4bit", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "lora_bias": False}, 1e-3),
        ("8bit", {"target_modules": ["q_proj", "v_proj"]}, 0.5),  # its forward rounds the activations as well
    ],
    ids=["lora", "dora", "lora and a whole module", "8-bit"],
)
def test_the_merged_weights_are_the_models(load_in: str, lora: dict[str, Any], close: float) -> None:
    import torch
    import transformers

    from ptcli.rollouts.quantized import is_quantized, merged_weights

    model = adapted(load_in, **lora)
    assert is_quantized(model)
    expected = logits(model)
    weights = dict(merged_weights(model))
    plain = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    assert not is_quantized(plain)
    before = (logits(plain) - expected).abs().max()
    assert weights.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(weights)
    assert (logits(plain) - expected).abs().max() < min(close, before / 4)
    torch.testing.assert_close(logits(model), expected)  # reading changes nothing
    logits(model.eval())  # may pack 4-bit weights in another order
    again = dict(merged_weights(model))
    assert all((again[name] - weight).abs().max() <= 0.01 * weight.abs().max() for name, weight in weights.items())


def test_other_adapters_are_refused() -> None:
    import peft
    import torch
    import transformers

    from ptcli.errors import WorkError
    from ptcli.rollouts.quantized import merged_weights

    base = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoHaConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(WorkError, match=r"use peft\.type: lora"):
        list(merged_weights(model))
