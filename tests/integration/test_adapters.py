"""Adapters and quantised models with the real trainers: what is trained, saved, and compared with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptcli.builtin import MODEL
from ptcli.errors import WorkError
from ptcli.recipe.model import Recipe
from tests.integration.test_train import describe, read_metrics, train

FOUR = {"path": "builtin:tiny", "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
LORA = {"r": 4, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj", "embed_tokens"]}
"""On embeddings, too: their tensors end in `.default`, and TRL does not copy them into its reference."""
LENGTH = [{"use": "ptcli.builtin.rewards:length_reward"}]
FAST = {"max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no"}


@pytest.fixture(autouse=True, scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a LoRA adapter that changes the shipped model a good deal."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    train("sft", folder, peft=LORA, training=FAST)
    return folder


def logits(model: Any) -> Any:
    import torch

    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def reloaded(folder: Path) -> Any:
    """What a user gets who loads the adapter on its base."""
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(folder)


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


def close(first: Any, second: Any, tolerance: float = 1e-3) -> bool:
    return float((first - second).abs().max()) < tolerance


@pytest.mark.parametrize(
    ("peft", "tensor"),
    [
        ({"r": 4, "use_rslora": True}, "lora_B"),
        ({"r": 4, "use_dora": True}, "lora_magnitude_vector"),
        ({"r": 4, "init_lora_weights": "pissa", "modules_to_save": ["norm"]}, "model.norm.weight"),
        ({"r": 4, "init_lora_weights": "pissa_niter_4", "use_rslora": True, "rank_pattern": {"q_proj": 8}}, "lora_A"),
        ({"r": 4, "init_lora_weights": "olora", "use_dora": True}, "lora_magnitude_vector"),
        ({"r": 4, "modules_to_save": ["lm_head"], "runtime_config": {"ephemeral_gpu_offload": False}}, "lm_head"),
        ({"r": 4, "trainable_token_indices": {"embed_tokens": [5, 6]}}, "trainable_tokens_delta"),
        ({"r": 4, "target_parameters": ["mlp.gate_proj.weight"], "target_modules": []}, "gate_proj.lora_A"),
        ({"type": "ia3"}, "ia3_l"),
        ({"type": "oft"}, "oft_R"),
    ],
)
def test_an_adapter_reloads_as_it_was_trained(tmp_path: Path, peft: dict[str, Any], tensor: str) -> None:
    trainer = train("sft", tmp_path, peft=peft, training=FAST)
    assert any(tensor in name for name in tensors(tmp_path))
    again = reloaded(tmp_path)
    assert close(logits(again), logits(trainer.model))
    assert not close(logits(again), logits(base()))


def base() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL)


def test_tokens_before_every_row(tmp_path: Path) -> None:
    trainer = train("sft", tmp_path, peft={"type": "prompt_tuning", "num_virtual_tokens": 4}, training=FAST)
    assert close(logits(reloaded(tmp_path)), logits(trainer.model))
    assert logits(trainer.model).shape[1] == 24


def test_adapters_with_a_start_of_their_own_are_saved_as_plain_ones(tmp_path: Path) -> None:
    train("sft", tmp_path, peft={"r": 4, "init_lora_weights": "pissa"}, training=FAST)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["r"], config["lora_alpha"]) == (True, 8, 16)
    assert {tensor.shape[0] for name, tensor in tensors(tmp_path).items() if "lora_A" in name} == {8}


# --- quantised -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("sft", {}),
        ("dpo", {}),
        ("grpo", {"rewards": LENGTH, "training": FAST | {"beta": 0.1}}),
        ("orpo", {}),  # its trainer does not load by path
        ("reward", {}),
    ],
)
def test_an_adapter_on_four_bits(tmp_path: Path, method: str, sections: dict[str, Any]) -> None:
    trainer = train(method, tmp_path, model=FOUR, peft={"r": 4}, **({"training": FAST} | sections))
    kinds = {type(module).__name__ for module in trainer.model.modules()}
    assert "Linear4bit" in kinds
    assert all(str(p.dtype) == "torch.float32" for p in trainer.model.parameters() if p.requires_grad)
    first = read_metrics(tmp_path)[0]
    assert first.get("rewards/margins", 0.0) == 0.0 or method == "orpo"
    assert first.get("kl", 0.0) == pytest.approx(0.0, abs=1e-6)
    assert any(float(tensor.abs().max()) > 0 for name, tensor in tensors(tmp_path).items() if "lora_B" in name)


def test_a_quantised_teacher(tmp_path: Path) -> None:
    trainer = train("gkd", tmp_path, teacher=FOUR, training={"max_steps": 1})
    assert trainer.teacher_model.is_loaded_in_4bit


# --- continue, merge, new --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "kto", "bco"])
@pytest.mark.parametrize("word", ["continue", "merge", "new"])
def test_the_reference_is_the_model_before_the_run(tmp_path: Path, adapter: Path, method: str, word: str) -> None:
    model = {"path": str(adapter), "adapter": word}
    peft = {"peft": {"r": 4}} if word == "new" else {}
    train(method, tmp_path, model=model, training={"max_steps": 1, "save_strategy": "no"}, **peft)
    first = read_metrics(tmp_path)[0]
    assert first["rewards/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert first["rewards/rejected"] == pytest.approx(0.0, abs=1e-5)


def test_continue_and_merge_start_from_the_adapter_and_new_from_its_base(tmp_path: Path, adapter: Path) -> None:
    def chosen(name: str, **sections: Any) -> float:
        train("dpo", tmp_path / name, training={"max_steps": 1, "save_strategy": "no"}, **sections)
        return float(read_metrics(tmp_path / name)[0]["logps/chosen"])

    path = {"path": str(adapter)}
    first = chosen("continue", model=path | {"adapter": "continue"})
    assert chosen("merge", model=path | {"adapter": "merge"}) == pytest.approx(first, abs=1e-3)
    plain = chosen("base")
    assert chosen("new", model=path | {"adapter": "new"}, peft={"r": 4}) == pytest.approx(plain, abs=1e-3)
    assert plain != pytest.approx(first, abs=0.1)


def test_a_new_adapter_on_a_merged_one_reloads(tmp_path: Path, adapter: Path) -> None:
    model = {"path": str(adapter), "adapter": "merge"}
    trainer = train("sft", tmp_path / "run", model=model, peft={"r": 4}, training=FAST)
    assert close(logits(reloaded(tmp_path / "run")), logits(trainer.model))
    assert (tmp_path / "run" / "start" / "tokenizer.json").exists()
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "run" / "start")
    quantized = model | {"quantization": FOUR["quantization"]}
    trainer = train("sft", tmp_path / "four", model=quantized, peft={"r": 4}, training={"max_steps": 1})
    assert trainer.model.is_loaded_in_4bit


def test_what_is_trained_on_stays_one_adapter(tmp_path: Path, adapter: Path) -> None:
    training = FAST | {"beta": 0.1}
    model = {"path": str(adapter), "adapter": "continue"}
    trainer = train("grpo", tmp_path, model=model, rewards=LENGTH, training=training)
    assert read_metrics(tmp_path)[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert set(tensors(tmp_path)) == set(tensors(adapter))
    assert close(logits(reloaded(tmp_path)), logits(trainer.model))


def test_the_reference_writes_without_the_adapter(tmp_path: Path) -> None:
    """XPO's and Nash-MD's own reference would write its completions with the new adapter on."""
    sections = {"reward_model": {"path": "builtin:tiny"}, "peft": LORA}
    trainer = train("xpo", tmp_path, training={"max_steps": 1, "save_strategy": "no"}, **sections)
    assert close(logits(trainer.ref_model), logits(base()))


def test_a_start_that_changes_the_base_gets_a_reference_of_its_own(tmp_path: Path) -> None:
    training = {"max_steps": 1, "save_strategy": "no"}
    trainer = train("dpo", tmp_path, peft={"r": 4, "init_lora_weights": "pissa"}, training=training)
    assert close(logits(trainer.ref_model), logits(base()))
    assert read_metrics(tmp_path)[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("peft", "tied"),
    [({"modules_to_save": ["embed_tokens"]}, False), ({"target_modules": ["embed_tokens"]}, False), ({}, True)],
)
def test_merging_unties_embeddings_that_differ(tmp_path: Path, peft: dict[str, Any], tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ptcli.recipe.model import ModelSpec
    from ptcli.train.models import load_model

    config = AutoConfig.from_pretrained(MODEL, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "tied")
    model = {"path": str(tmp_path / "tied")}
    trainer = train("sft", tmp_path / "run", model=model, peft={"r": 4} | peft, training=FAST)
    merged = load_model(ModelSpec(path=str(tmp_path / "run"), adapter="merge"), "causal_lm")
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.config.tie_word_embeddings is tied
    assert close(logits(again), logits(trainer.model))


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reward", "prm"])
def test_the_head_is_trained_and_saved_with_the_adapter(tmp_path: Path, method: str) -> None:
    train(method, tmp_path, peft={"r": 4}, training=FAST)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == {"reward": "SEQ_CLS", "prm": "TOKEN_CLS"}[method]
    assert any(name.endswith("score.weight") for name in tensors(tmp_path))


def test_a_reward_model_that_is_an_adapter_scores_as_it_was_trained(tmp_path: Path) -> None:
    from ptcli.recipe.model import ModelSpec
    from ptcli.train.models import load_model

    trainer = train("reward", tmp_path, peft={"r": 4}, training=FAST)
    scorer = load_model(ModelSpec(path=str(tmp_path), adapter="merge"), "sequence_classification")
    assert type(scorer).__name__ == "LlamaForSequenceClassification"
    scorer.config.pad_token_id = trainer.model.config.pad_token_id
    assert close(logits(scorer), logits(trainer.model))


# --- what vLLM gets, and what PEFT says before -----------------------------------------------------------------------


def test_vllm_gets_names_of_the_base(tmp_path: Path) -> None:
    from contextlib import nullcontext

    from trl.generation.vllm_generation import VLLMGeneration

    from ptcli.train.peft_sync import send_plain_names

    peft = {"r": 4, "trainable_token_indices": [5, 6], "modules_to_save": ["norm"]}
    model = train("sft", tmp_path, peft=peft, training=FAST).model
    wanted = logits(model)
    generation = object.__new__(VLLMGeneration)
    generation.model = model
    generation._dist = SimpleNamespace(is_fsdp=False, gather_params=lambda _: nullcontext())
    send_plain_names(SimpleNamespace(vllm_generation=generation))
    server = base()
    sent = {name: tensor.clone() for name, tensor in generation._iter_named_params()}
    server.load_state_dict(sent)  # strict: no name too many, none missing
    assert close(logits(server), wanted)


def check(**sections: Any) -> list[tuple[str, str]]:
    from ptcli.train.checks.adapter import check_adapter

    recipe = Recipe.model_validate(describe("sft", Path("unused"), **sections))
    return [(".".join(map(str, f.problem.key)), f.problem.message) for f in check_adapter(recipe)]


def test_the_adapter_is_put_on_an_empty_model(tmp_path: Path) -> None:
    assert check(peft={"r": 4, "init_lora_weights": "pissa"}) == []
    assert check() == []
    assert check(model={"path": "org/unknown"}, peft={}) == []  # offline: the worker will tell
    names = {"target_modules": ["q_proj", "v_prj"], "modules_to_save": ["nrm"], "target_parameters": ["q_proj.wght"]}
    found = check(peft=names | {"rank_pattern": {"k_prj": 2}})
    assert [key for key, _ in found] == [
        "peft.target_modules.1",
        "peft.modules_to_save.0",
        "peft.target_parameters.0",
        "peft.rank_pattern.k_prj",
    ]
    (refused,) = check(peft={"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]})
    assert refused[0] == "peft.target_modules"
    assert "No modules were targeted" in refused[1]
    (unread,) = check(peft={"target_modules": "all-linear", "layers_to_transform": [0]})
    assert unread[0] == "peft"


def test_experts_are_parameters(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 272}
    config = Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2, max_position_embeddings=128, **sizes, **heads)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "moe")
    model = {"path": str(tmp_path / "moe")}
    peft = {"r": 2, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}
    assert check(model=model, peft=peft) == []
    (found,) = check(model=model, peft=peft | {"target_parameters": ["mlp.experts.gate_proj"]})
    assert found[0] == "peft.target_parameters.0"
    trainer = train("sft", tmp_path / "run", model=model, peft=peft, training=FAST)
    assert close(logits(reloaded(tmp_path / "run")), logits(trainer.model))


def test_what_peft_refuses_is_no_traceback() -> None:
    from ptcli.train.models import peft_config

    with pytest.raises(WorkError, match="layers_pattern"):
        peft_config({"layers_pattern": "layers"}, "causal_lm")
