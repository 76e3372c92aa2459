"""What a recipe may write under `training`, `peft`, `quantization` and `engine`, and what it is told otherwise."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.recipe import owned
from ptcli.recipe.catalogue import check_section, fields, owner_of, peft_types, versions
from ptcli.recipe.values import fit

GRPO = "trl:GRPOConfig"


def check(method: str, **values: Any) -> tuple[dict[str, Any], list[Problem]]:
    return check_section(METHODS[method].config, values, ("training",), method=method)


def problem(method: str, key: str, value: Any = 1) -> Problem:
    clean, problems = check(method, **{key: value})
    assert clean == {}
    assert len(problems) == 1
    assert problems[0].key == ("training", key)
    assert problems[0].where is None
    assert f"`training.{key}`" in problems[0].message
    return problems[0]


@pytest.mark.parametrize(
    ("key", "written", "read"),
    [
        ("learning_rate", 1e-5, 1e-5),
        ("learning_rate", "1e-5", 1e-5),
        ("learning_rate", "+.5E-3", 0.5e-3),
        ("learning_rate", 1, 1),
        ("max_steps", "100", 100),
        ("max_steps", "1e3", 1000),
        ("max_steps", 8.0, 8),
        ("max_steps", -1, -1),
        ("max_length", None, None),
        ("bf16", True, True),
        ("bf16", "yes", True),
        ("packing", "off", False),
        ("eval_strategy", "no", "no"),
        ("report_to", "none", "none"),
        ("report_to", ["wandb", "tensorboard"], ["wandb", "tensorboard"]),
        ("include_num_input_tokens_seen", True, True),
        ("include_num_input_tokens_seen", "no", "no"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}', '{"num_cycles": 2}'),
        ("run_name", "no", "no"),
        ("hub_token", "${oc.env:HF_TOKEN}", "${oc.env:HF_TOKEN}"),
    ],
)
def test_values_are_read_as_the_field_has_them(key: str, written: Any, read: Any) -> None:
    clean, problems = check("sft", **{key: written})
    assert problems == []
    assert clean == {key: read}
    assert type(clean[key]) is type(read)


@pytest.mark.parametrize("key", ["max_grad_norm", "epsilon_high", "delta", "vllm_importance_sampling_clip_max"])
def test_infinity_switches_a_bound_off(key: str) -> None:
    assert check("grpo", **{key: math.inf}) == ({key: math.inf}, [])
    assert "must be a number" in str(problem("grpo", key, -math.inf))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", "fast", "must be a number"),
        ("learning_rate", True, "must be a number"),
        ("learning_rate", float("nan"), "must be a number"),
        ("learning_rate", float("inf"), "must be a number"),
        ("learning_rate", [1e-5], "must be a number"),
        ("learning_rate", None, "not null"),
        ("max_steps", 1.5, "must be a whole number"),
        ("max_steps", "1.5", "must be a whole number"),
        ("max_steps", False, "must be a whole number"),
        ("max_steps", "1_000", "must be a whole number"),
        ("packing", 1, "must be true or false"),
        ("packing", "maybe", "must be true or false"),
        ("run_name", 2024, 'with quotes: "2024"'),
        ("report_to", False, 'write "none"'),
        ("save_strategy", False, 'write "no"'),
        ("lr_scheduler_type", "cosin", 'did you mean "cosine"?'),
        ("optim", "adamw", 'did you mean "adamw_torch"?'),
        ("loss_type", "chunked", 'did you mean "chunked_nll"?'),
        ("lr_scheduler_kwargs", 3, "must be a mapping"),
        ("label_names", "labels", "write [labels]"),
    ],
)
def test_wrong_types_say_what_is_wanted(key: str, value: Any, words: str) -> None:
    assert words in str(problem("sft", key, value))


def test_all_problems_come_at_once_and_the_rest_is_kept() -> None:
    clean, problems = check("grpo", learning_rate="1e-6", betta=1, num_generations="eight", use_vllm=True, bf16=True)
    assert clean == {"learning_rate": 1e-6, "bf16": True}
    assert [p.key[-1] for p in problems] == ["betta", "num_generations", "use_vllm"]


@pytest.mark.parametrize(
    ("method", "key", "near"),
    [
        ("sft", "learnin_rate", "learning_rate"),
        ("sft", "learning-rate", "learning_rate"),
        ("sft", "LearningRate", "learning_rate"),
        ("grpo", "num_generation", "num_generations"),
        ("grpo", "max_completion_len", "max_completion_length"),
    ],
)
def test_an_unknown_key_names_the_nearest(method: str, key: str, near: str) -> None:
    assert f"did you mean `{near}`?" in problem(method, key).fix


def test_a_key_like_nothing_suggests_nothing() -> None:
    assert problem("sft", "zzz").fix == ""
    assert "SFTConfig" in problem("sft", "zzz").message


def test_a_key_of_other_methods_says_whose_it_is() -> None:
    message = problem("sft", "beta").message
    assert "belongs to dpo, kto" in message
    assert message.endswith("not to sft")


@pytest.mark.parametrize(
    ("method", "key", "words"),
    [
        ("sft", "max_seq_length", "write `max_length`"),
        ("grpo", "max_seq_length", "see `max_completion_length`"),
        ("grpo", "max_prompt_length", "leave rows with long prompts out"),
        ("dpo", "max_prompt_length", "leave rows with long prompts out"),
        ("dpo", "tokenizer", "the tokenizer comes with `model.path`"),
        ("sft", "evaluation_strategy", "write `eval_strategy`"),
        ("sft", "overwrite_output_dir", "--overwrite"),
        ("sft", "resume_from_checkpoint", "--resume"),
        ("sft", "no_cuda", "launch: {device: cpu}"),
        ("sft", "use_cpu", "launch: {device: cpu}"),
        ("sft", "per_gpu_train_batch_size", "write `per_device_train_batch_size`"),
        ("sft", "logging_dir", "TENSORBOARD_LOGGING_DIR"),
        ("sft", "warmup_ratio", "`warmup_steps` with a value below 1"),
        ("sft", "group_by_length", "train_sampling_strategy: group_by_length"),
        ("sft", "fp16_backend", "leave it out"),
        ("sft", "use_mps_device", "leave it out"),
        ("dpo", "ref_model_init_kwargs", "set `ref_model.init_kwargs`"),
        ("cpo", "truncation_mode", "does not exist any more"),
        ("online_dpo", "max_completion_length", "write `max_new_tokens`"),
        ("ppo", "beta", "write `kl_coef`"),
        ("sft", "lora_r", "set `peft.r`"),
        ("sft", "load_in_4bit", "set `model.quantization.load_in_4bit`"),
        ("sft", "gpus", "set `launch.gpus`"),
        ("grpo", "tensor_parallel_size", "set `rollouts.tensor_parallel_size`"),
        ("sft", "deepspeed", "launch.accelerate"),
        ("sft", "do_train", "leave it out"),
        ("sft", "local_rank", "leave it out"),
        ("ppo", "batch_size", "per_device_train_batch_size"),
    ],
)
def test_renamed_and_misplaced_keys_say_where_to_go(method: str, key: str, words: str) -> None:
    assert words in str(problem(method, key))


@pytest.mark.parametrize(
    ("method", "key", "place"),
    [
        ("sft", "output_dir", "output_dir"),
        ("sft", "seed", "seed"),
        ("sft", "model_init_kwargs", "model.init_kwargs"),
        ("sft", "trust_remote_code", "model.trust_remote_code"),
        ("sft", "chat_template_path", "model.chat_template"),
        ("sft", "eos_token", "model.eos_token"),
        ("dpo", "pad_token", "model.pad_token"),
        ("grpo", "use_vllm", "rollouts.backend"),
        ("grpo", "vllm_mode", "rollouts.mode"),
        ("grpo", "vllm_server_base_url", "rollouts.url"),
        ("grpo", "vllm_server_host", "rollouts.host"),
        ("rloo", "vllm_server_port", "rollouts.port"),
        ("rloo", "vllm_server_timeout", "rollouts.startup_timeout"),
        ("rloo", "vllm_group_port", "rollouts.group_port"),
        ("online_dpo", "vllm_gpu_memory_utilization", "rollouts.gpu_memory_utilization"),
        ("minillm", "vllm_tensor_parallel_size", "rollouts.tensor_parallel_size"),
        ("grpo", "vllm_max_model_length", "rollouts.max_model_len"),
        ("grpo", "reward_weights", "rewards"),
        ("gkd", "teacher_model_name_or_path", "teacher.path"),
        ("distillation", "teacher_model_init_kwargs", "teacher.init_kwargs"),
        ("distillation", "teacher_model_revision", "teacher.revision"),
        ("ppo", "reward_model_path", "reward_model.path"),
        ("ppo", "sft_model_path", "model.path"),
        ("xpo", "reward_model_path", "reward_model.path"),
        ("online_dpo", "reward_model_path", "rewards"),
        ("sft", "fsdp", "launch.accelerate"),
        ("sft", "fsdp_config", "launch.accelerate"),
        ("sft", "parallelism_config", "launch.accelerate"),
    ],
)
def test_owned_keys_name_their_owner(method: str, key: str, place: str) -> None:
    assert f"`{place}`" in problem(method, key).message


def test_a_section_that_the_method_does_not_take_is_never_the_owner() -> None:
    assert "rollouts.backend" not in str(problem("sft", "use_vllm"))
    assert "takes no `rollouts`" in str(problem("sft", "use_vllm"))
    assert "takes no `rewards`" in str(problem("xpo", "reward_weights", [1.0]))
    assert "takes no `ref_model`" in str(problem("grpo", "ref_model_init_kwargs", {}))


def test_no_key_of_a_config_is_called_renamed_removed_or_unknown() -> None:
    """Whatever the pinned config has is either accepted or owned by another section, which the message names."""
    for name, row in METHODS.items():
        for field in fields(row.config):
            _, problems = check_section(row.config, {field: object()}, ("training",), method=name)
            for each in problems:
                owner = owner_of(row.config, field, name)
                assert owner or "must be" in each.message, each


@pytest.mark.parametrize(
    "class_name", [*(row.config for row in METHODS.values()), *peft_types().values(), "transformers:BitsAndBytesConfig"]
)
def test_every_default_fits_its_own_type(class_name: str) -> None:
    for name, field in fields(class_name).items():
        if field.default is not None:
            assert fit(field.schema, field.default) == field.default, name


def test_methods_with_their_own_spellings() -> None:
    assert check("grpo", scale_rewards=False, loss_type="dapo") == ({"scale_rewards": False, "loss_type": "dapo"}, [])
    assert check("online_dpo", beta="0.1") == ({"beta": 0.1}, [])
    assert check("xpo", alpha=[1e-5, "5e-6"]) == ({"alpha": [1e-5, 5e-6]}, [])
    assert check("dpo", loss_type="sigmoid") == ({"loss_type": "sigmoid"}, [])
    assert check("dpo", loss_type=["sigmoid", "sft"]) == ({"loss_type": ["sigmoid", "sft"]}, [])
    assert check("rloo", reward_clip_range=[-1, "1.0"]) == ({"reward_clip_range": [-1, 1.0]}, [])
    assert check("rloo", reward_clip_range=[-1])[1]


# --- peft ------------------------------------------------------------------------------------------------------------


def check_peft(**values: Any) -> tuple[dict[str, Any], list[Problem]]:
    return check_section("peft", values, ("peft",), method="sft")


def test_peft_type_picks_the_class() -> None:
    assert check_peft(r=16) == ({"r": 16}, [])
    assert check_peft(type="LoRA", r="16") == ({"type": "lora", "r": 16}, [])
    assert check_peft(type="vera", d_initial="0.1") == ({"type": "vera", "d_initial": 0.1}, [])
    _, problems = check_peft(type="vera", lora_alpha=32)
    assert [p.key for p in problems] == [("peft", "lora_alpha")]


def test_an_unknown_peft_type_names_the_nearest_and_nothing_else() -> None:
    clean, problems = check_peft(type="lorra", r=16)
    assert clean == {"r": 16}
    assert [(p.key, p.fix) for p in problems] == [(("peft", "type"), "did you mean lora?")]
    assert "it is one of" in check_peft(type="???")[1][0].fix


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lora_r", 16, "write `r`"),
        ("rank", 16, "write `r`"),
        ("lora_target_modules", "all-linear", "write `target_modules`"),
        ("target_module", [], "did you mean `target_modules`?"),
        ("peft_type", "LORA", "`peft.type`"),
        ("inference_mode", True, "leave it out"),
        ("base_model_name_or_path", "x", "`model.path`"),
        ("bias", "non", 'did you mean "none"?'),
        ("init_lora_weights", "pisa", 'did you mean "pissa"?'),
        ("r", 16.5, "a whole number"),
        ("learning_rate", 1e-4, "set `training.learning_rate`"),
    ],
)
def test_peft_problems(key: str, value: Any, words: str) -> None:
    _, problems = check_peft(**{key: value})
    assert words in str(problems[0])


def test_lora_initialisations() -> None:
    for value in (True, False, "gaussian", "pissa", "pissa_niter_16", "olora"):
        assert check_peft(init_lora_weights=value)[1] == []


# --- quantization and engine -----------------------------------------------------------------------------------------


def test_quantization() -> None:
    key = ("model", "quantization")
    values = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
    assert check_section("transformers:BitsAndBytesConfig", values, key, method="sft") == (values, [])
    wrong = {"bnb_4bit_compute_dtype": "bf16", "bits": 4, "load_in_4bits": True}
    _, problems = check_section("transformers:BitsAndBytesConfig", wrong, key, method=None)
    assert [p.fix for p in problems] == [
        'did you mean "bfloat16"?',
        "write `load_in_4bit: true` or `load_in_8bit: true`",
        "did you mean `load_in_4bit`?",
    ]


def engine(**values: Any) -> tuple[dict[str, Any], list[Problem]]:
    return check_section("vllm:serve", values, ("rollouts", "engine"), method="grpo")


def test_engine_flags() -> None:
    values = {
        "enable_prefix_caching": False,
        "max_num_seqs": 32,
        "max_num_batched_tokens": "8k",
        "hf_overrides": {"a": 1},
    }
    assert engine(**values) == (values, [])
    assert engine(max_num_seqs="32", swap=1)[0] == {"max_num_seqs": 32}


def test_a_flag_that_cannot_be_negated_is_left_out_when_false() -> None:
    assert engine(disable_log_stats=False) == ({}, [])
    assert engine(disable_log_stats=True) == ({"disable_log_stats": True}, [])


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("tensor_parallel_size", "rollouts.tensor_parallel_size"),
        ("data_parallel_size", "rollouts.data_parallel_size"),
        ("host", "rollouts.host"),
        ("port", "rollouts.port"),
        ("dtype", "rollouts.dtype"),
        ("max_model_len", "rollouts.max_model_len"),
        ("gpu_memory_utilization", "rollouts.gpu_memory_utilization"),
        ("model", "model.path"),
        ("revision", "model.revision"),
        ("seed", "seed"),
        ("trust_remote_code", "model.trust_remote_code"),
        ("served_model_name", ""),
        ("weight_transfer_config", ""),
        ("logprobs_mode", ""),
        ("max_logprobs", ""),
        ("api_key", ""),
        ("nnodes", ""),
        ("pipeline_parallel_size", ""),
    ],
)
def test_engine_flags_that_ptcli_owns(key: str, place: str) -> None:
    clean, problems = engine(**{key: 1})
    assert clean == {}
    assert f"`{place}`" in problems[0].message if place else "ptcli" in problems[0].message or problems[0].fix


# --- the tables ------------------------------------------------------------------------------------------------------


def test_every_engine_key_that_is_refused_is_one_of_vllms() -> None:
    assert {k for k, owner in owned.OWNED["engine"].items() if k not in fields("vllm:serve")} == {"model_tag"}


def test_every_successor_is_a_field_of_some_config() -> None:
    known = {field for row in METHODS.values() for field in fields(row.config)}
    for old, successors in owned.RENAMED["training"].items():
        assert set(successors) & known, old


def test_the_catalogue_says_what_it_was_made_from() -> None:
    assert set(versions()) == {"trl", "transformers", "peft", "accelerate", "vllm"}


def test_reading_it_imports_no_library_and_takes_milliseconds() -> None:
    code = (
        "import sys, time; from ptcli.recipe.catalogue import check_section; start = time.perf_counter();"
        "check_section('trl:GRPOConfig', {'beta': 0.1}, ('training',), method='grpo');"
        "assert time.perf_counter() - start < 0.2;"
        "assert not {'torch', 'transformers', 'trl', 'peft', 'accelerate', 'vllm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_whole_number_where_quantization_wants_a_float() -> None:
    clean, problems = check_section(
        "transformers:BitsAndBytesConfig", {"llm_int8_threshold": 6}, ("model", "quantization"), method="sft"
    )
    assert problems == []
    assert type(clean["llm_int8_threshold"]) is float
