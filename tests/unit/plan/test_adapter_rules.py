"""Adapters and quantised models against the launch, and what the plan says of the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.methods import METHODS
from ptcli.plan.build import Planned
from ptcli.plan.reference import describe_reference, has_reference, needs_own_reference
from ptcli.plan.render import render_text
from ptcli.recipe.local_models import resolve_model_path
from ptcli.recipe.model import Recipe

Plans = Callable[..., Planned]
FOUR = {"load_in_4bit": True}
EIGHT = {"load_in_8bit": True}
BFLOAT = {"bnb_4bit_quant_storage": "bfloat16", "bnb_4bit_compute_dtype": "bfloat16"}
LORA: dict[str, Any] = {"peft": {"r": 8}}


def model(**fields: Any) -> dict[str, Any]:
    return {"model": {"path": "builtin:tiny"} | fields}


def keys(planned: Any) -> list[str]:
    return [".".join(map(str, problem.key)) for problem in planned.problems]


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    """Folder of a LoRA adapter of the shipped model; its tensors do not matter here."""
    config = {"base_model_name_or_path": resolve_model_path("builtin:tiny"), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return str(tmp_path)


def gpus(strategy: str, **sections: Any) -> dict[str, Any]:
    return {"launch": {"accelerate": strategy, "gpus": 2}} | sections


@pytest.mark.parametrize(
    ("sections", "key", "text"),
    [
        (model(quantization=FOUR), "model.quantization", "cannot be trained"),
        (model(quantization={}) | LORA, "model.quantization", "nothing of 4 or 8 bits"),
        (model(quantization=FOUR | EIGHT) | LORA, "model.quantization", "both 4 and 8 bits"),
        (gpus("zero3") | model(quantization=EIGHT) | LORA, "model.quantization", "ZeRO-3"),
        (gpus("fsdp2") | model(quantization=EIGHT) | LORA, "model.quantization", "FSDP"),
        (gpus("fsdp2") | model(quantization=FOUR) | LORA, "model.quantization", "all three to bfloat16"),
        (gpus("fsdp2") | model(quantization=FOUR | BFLOAT) | LORA, "model.quantization", "model.dtype float32"),
        (gpus("ddp") | model(init_kwargs={"device_map": "auto"}), "model.init_kwargs.device_map", "2 processes"),
        (gpus("zero3") | {"peft": {"init_lora_weights": "pissa"}}, "peft.init_lora_weights", "whole weights"),
        (
            model(quantization=FOUR) | {"peft": {"init_lora_weights": "pissa"}},
            "peft.init_lora_weights",
            "not quantised",
        ),
    ],
)
def test_what_cannot_be(plan_of: Plans, sections: dict[str, Any], key: str, text: str) -> None:
    planned = plan_of("sft", **sections)
    assert keys(planned) == [key]
    assert text in planned.problems[0].message + planned.problems[0].fix


@pytest.mark.parametrize(
    "sections",
    [
        model(quantization=FOUR) | LORA,
        gpus("zero3") | model(quantization=FOUR) | LORA,
        gpus("fsdp2") | model(quantization=FOUR | BFLOAT, dtype="bfloat16") | LORA,
        gpus("ddp") | model(quantization=EIGHT) | LORA,
        model(init_kwargs={"device_map": "auto"}) | {"launch": {"accelerate": "single", "gpus": 1}},
        {"peft": {"init_lora_weights": "pissa"}},
    ],
)
def test_what_can_be(plan_of: Plans, sections: dict[str, Any]) -> None:
    assert keys(plan_of("sft", **sections)) == []


def test_models_that_are_not_trained_may_be_quantised(plan_of: Plans) -> None:
    quantized = {"path": "builtin:tiny", "quantization": FOUR}
    assert keys(plan_of("gkd", teacher=quantized)) == []
    assert keys(plan_of("dpo", ref_model=quantized)) == []
    assert keys(plan_of("ppo", reward_model=quantized, value_model=quantized)) == ["value_model.quantization"]


def test_weights_that_are_quantised_already(plan_of: Plans, tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = {"path": str(tmp_path)}
    assert keys(plan_of("sft", model=path)) == ["model.path"]
    assert keys(plan_of("sft", model=path, **LORA)) == []
    assert keys(plan_of("sft", model=path | {"quantization": FOUR}, **LORA)) == ["model.quantization"]


def test_what_vllm_cannot_get(plan_of: Plans) -> None:
    server = {"launch": {"accelerate": "fsdp2", "gpus": 2}, "rollouts": {"gpus": 1}}
    four = model(quantization=FOUR | BFLOAT, dtype="bfloat16")
    planned = plan_of("grpo", **server, **four, **LORA)
    assert keys(planned) == ["model.quantization"]
    assert "cannot be merged for vLLM" in planned.problems[0].message
    server["launch"] = {"accelerate": "ddp", "gpus": 2}
    assert plan_of("grpo", **server, **four, **LORA).problems == ()
    (problem,) = plan_of("grpo", **server, **four, peft={"type": "loha"}).problems
    assert "`peft.type: loha` on quantised weights" in problem.message
    assert keys(plan_of("grpo", **server, peft={"type": "lily"})) == ["peft.type"]
    assert keys(plan_of("grpo", **server, peft={"layer_replication": [[0, 2]]})) == ["peft.layer_replication"]


def test_tied_embeddings(plan_of: Plans, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    given = {"model": {"path": str(tmp_path)}, "peft": {"modules_to_save": ["embed_tokens"]}}
    assert any("after merging they are two" in note for note in plan_of("sft", **given).plan.notes)
    assert keys(plan_of("grpo", rollouts={"gpus": 1}, **given)) == ["peft"]


@pytest.mark.parametrize("word", ["continue", "merge"])
def test_tied_embeddings_of_an_adapter_to_start_from(plan_of: Plans, tmp_path: Path, word: str) -> None:
    """vLLM would drop the head that the merge unties, and generate from the old one."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    config = {"base_model_name_or_path": str(tmp_path), "peft_type": "LORA", "target_modules": ["lm_head"]}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    given = {"path": str(tmp_path / "adapter"), "adapter": word}
    assert keys(plan_of("grpo", model=given, rollouts={"gpus": 1})) == ["model.adapter"]
    assert keys(plan_of("grpo", model=given)) == []


def test_a_frozen_adapter_is_not_merged_in_pieces(plan_of: Plans, adapter: str) -> None:
    reference = {"ref_model": {"path": adapter, "adapter": "merge"}}
    assert keys(plan_of("dpo", **gpus("zero3", **reference))) == ["ref_model.path"]
    assert keys(plan_of("dpo", **gpus("zero2", **reference))) == []
    rewards = {"rewards": [{"use": adapter}]}
    assert keys(plan_of("grpo", **gpus("zero3", **rewards))) == ["rewards.0.use"]


def test_a_start_that_takes_a_part_out_of_the_reference(plan_of: Plans) -> None:
    peft = {"init_lora_weights": "pissa"}
    assert keys(plan_of("grpo", peft=peft)) == []
    assert keys(plan_of("grpo", peft=peft, training={"beta": 0.1})) == ["peft.init_lora_weights"]
    assert keys(plan_of("dpo", peft=peft)) == []


def test_an_adapter_that_would_be_copied_wrong(plan_of: Plans, adapter: str) -> None:
    config = json.loads(Path(adapter, "adapter_config.json").read_text()) | {"init_lora_weights": "pissa"}
    Path(adapter, "adapter_config.json").write_text(json.dumps(config))
    given = {"path": adapter, "adapter": "continue"}
    assert keys(plan_of("dpo", model=given)) == ["model.adapter"]
    assert keys(plan_of("sft", model=given)) == []
    assert keys(plan_of("bco", model=given)) == []


def recipe(method: str, **sections: Any) -> Recipe:
    given = {
        "name": "x",
        "method": method,
        "output_dir": "x",
        "model": {"path": "org/m"},
        "data": {"train": [{"path": "org/data"}]},
    }
    return Recipe.model_validate(given | sections)


@pytest.mark.parametrize(
    ("method", "sections", "text"),
    [
        ("sft", {}, None),
        ("orpo", {}, None),
        ("dpo", {}, "org/m as it is before this run; a second model in memory"),
        ("dpo", LORA, "org/m as it is before this run; the policy with its adapter off"),
        ("dpo", {"peft": {"init_lora_weights": "olora"}}, "org/m as it is before this run; a second model in memory"),
        ("dpo", {"training": {"precompute_ref_log_probs": True}}, "org/m as it is before this run; computed once"),
        ("dpo", {"ref_model": {"path": "org/r"}}, "org/r"),
        ("dpo", {"ref_model": {"path": "org/r", "adapter": "merge"}}, "org/r, its adapter merged in"),
        (
            "dpo",
            {"model": {"path": "/a", "adapter": "continue"}},
            "the adapter /a as it is before this run; a frozen copy",
        ),
        (
            "bco",
            {"model": {"path": "/a", "adapter": "continue"}},
            "the adapter /a as it is before this run; a second model",
        ),
        (
            "kto",
            {"model": {"path": "/a", "adapter": "merge"}},
            "/a, merged into its base before this run; a second model",
        ),
        ("kto", {"model": {"path": "/a", "adapter": "new"}} | LORA, "the base of /a; the policy with its adapter off"),
        ("xpo", LORA, "org/m as it is before this run; a second model in memory"),
        ("grpo", {}, "none: beta is 0"),
        ("grpo", {"training": {"beta": 0.04}}, "org/m as it is before this run; a second model"),
        (
            "dpo",
            {"training": {"sync_ref_model": True, "ref_model_sync_steps": 64}},
            "org/m as it is before this run; a second model in memory, which moves towards the policy every 64 steps",
        ),
        ("rloo", LORA, "org/m as it is before this run; the policy with its adapter off"),
        ("rloo", {"training": {"beta": 0.0}}, "none: beta is 0"),
    ],
)
def test_the_reference_in_words(method: str, sections: dict[str, Any], text: str | None) -> None:
    said = describe_reference(recipe(method, **sections))
    assert said == text if text is None else str(said).startswith(text)


def test_every_method_with_a_reference_says_so() -> None:
    without = {name for name in METHODS if not has_reference(recipe(name))}
    assert without == {"sft", "cpo", "orpo", "grpo", "reward", "prm", "gkd", "minillm", "distillation"}
    assert not needs_own_reference(recipe("sft", **LORA))


def test_a_reference_that_zero_3_has_in_parts() -> None:
    """TRL would copy the policy in memory, where there is no adapter to switch off."""
    found = {name for name in METHODS if needs_own_reference(recipe(name), zero3=True)}
    assert found == {"bco", "online_dpo", "xpo", "nash_md", "ppo"}
    assert not any(needs_own_reference(recipe(name)) for name in found)
    assert not needs_own_reference(recipe("ppo", **LORA), zero3=True)
    assert not needs_own_reference(recipe("ppo", ref_model={"path": "org/r"}), zero3=True)


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"model": {"path": "org/m", "dtype": "bfloat16"}}, "org/m, weights in bfloat16\n"),
        ({"model": {"path": "org/m"}} | LORA, "org/m, weights in float32; an adapter is trained\n"),
        (
            {"model": {"path": "org/m", "dtype": "bfloat16", "quantization": {"load_in_4bit": True}}} | LORA,
            "org/m, weights in 4 bits, those that are not quantised in bfloat16; an adapter is trained\n",
        ),
    ],
)
def test_the_plan_shows_what_weights_are_held_in(plan_of: Plans, sections: dict[str, Any], text: str) -> None:
    assert f"# model    {text}" in render_text(plan_of("sft", "1x80GiB", **sections).plan)


def test_the_plan_shows_the_reference_and_the_merge(plan_of: Plans, adapter: str) -> None:
    plan = plan_of("dpo", model={"path": adapter, "adapter": "merge"}).plan
    text = render_text(plan)
    assert f"reference  {adapter}, merged into its base before this run" in text
    assert "# note: the model with its adapter merged in is written to start/" in text
    assert "reference" not in render_text(plan_of("sft").plan).split("\n\n")[0]
