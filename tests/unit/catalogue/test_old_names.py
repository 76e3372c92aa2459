"""Arguments that TRL and transformers renamed or removed (user-pain.md R3): what to write instead."""

from __future__ import annotations

import pytest

from ptcli.methods import METHODS
from ptcli.recipe.catalogue import check_section, fields
from ptcli.recipe.owned import OWNED, REMOVED, RENAMED

CASES = [
    ("sft", "max_seq_length", "write `max_length`"),
    ("sft", "tokenizer", "comes with `model.path`"),
    ("sft", "processing_class", "comes with `model.path`"),
    ("sft", "sharded_ddp", "launch.accelerate"),
    ("sft", "activation_checkpointing", "write `gradient_checkpointing`"),
    ("sft", "formatting_func", "bring the rows into a format"),
    ("dpo", "max_prompt_length", "TRL no longer cuts prompts"),
    ("dpo", "rpo_alpha", "loss_weights"),
    ("dpo", "reference_free", "cpo or orpo"),
    ("dpo", "ref_model_init_kwargs", "ref_model.init_kwargs"),
    ("dpo", "generate_during_eval", "belongs to cpo, orpo and bco"),
    ("kto", "truncation_mode", "only one way to cut"),
    ("grpo", "max_prompt_length", "TRL no longer cuts prompts"),
    ("grpo", "vllm_device", "mode: colocate"),
    ("grpo", "vllm_dtype", "rollouts.dtype"),
    ("grpo", "vllm_enable_prefix_caching", "rollouts.engine.enable_prefix_caching"),
    ("grpo", "vllm_guided_decoding_regex", "write `vllm_structured_outputs_regex`"),
    ("grpo", "use_liger_loss", "write `use_liger_kernel`"),
    ("grpo", "wandb_log_unique_prompts", "write `log_unique_prompts`"),
    ("ppo", "init_kl_coef", "write `kl_coef`"),
    ("ppo", "ppo_epochs", "write `num_ppo_epochs`"),
    ("ppo", "target_kl", "set `kl_coef`"),
    ("ppo", "log_with", "write `report_to`"),
    ("online_dpo", "judge", "async reward function"),
]


@pytest.mark.parametrize(("method", "name", "words"), CASES)
def test_an_old_name_says_what_to_write(method: str, name: str, words: str) -> None:
    clean, (problem,) = check_section(METHODS[method].config, {name: True}, ("training",), method=method)
    assert clean == {}
    assert problem.key == ("training", name)
    assert words in f"{problem.message}; {problem.fix}"


def test_no_removed_argument_is_one_of_every_method() -> None:
    """An argument that all configs have cannot be gone."""
    everywhere = set.intersection(*(set(fields(row.config)) for row in METHODS.values()))
    assert everywhere & REMOVED.keys() == set()
    assert everywhere & RENAMED["training"].keys() == set()


def test_each_old_name_has_one_answer() -> None:
    assert REMOVED.keys() & RENAMED["training"].keys() <= {"max_seq_length"}
    assert OWNED["training"].keys() & REMOVED.keys() == set()
