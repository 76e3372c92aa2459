"""Trainer arguments that do not go together, and what a plan says about the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptcli.methods import METHODS
from ptcli.plan.build import Planned
from ptcli.plan.first_row import first_row, is_conversational
from ptcli.plan.machine import assume_machine
from ptcli.plan.training_rules import FLASH
from ptcli.recipe.catalogue import fields
from ptcli.recipe.code import find_module
from ptcli.recipe.model import DataEntry
from ptcli.recipe.templates import read_named_template

Plans = Callable[..., Planned]

ONE = "1x80GiB"
CPU = {"device": "cpu"}


def said(planned: Planned) -> list[str]:
    return [f"{'.'.join(map(str, problem.key))}: {problem.message}; {problem.fix}" for problem in planned.problems]


def only(planned: Planned, key: str) -> str:
    (line,) = said(planned)
    assert line.startswith(f"{key}: "), line
    return line


def notes(planned: Planned, word: str) -> list[str]:
    assert planned.plan is not None, said(planned)
    return [note for note in planned.plan.notes if word in note]


# --- attention and packing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["model", "teacher"])
def test_flash_attention_has_no_cpu_kernels(plan_of: Plans, section: str) -> None:
    spec = {"path": "builtin:tiny", "attn_implementation": "flash_attention_2"}
    line = only(plan_of("gkd", launch=CPU, **{section: spec}), f"{section}.attn_implementation")
    assert "flash_attention_2 needs a GPU; use sdpa on a CPU" in line


def test_flash_attention_has_no_float32_kernels(plan_of: Plans) -> None:
    model = {"path": "builtin:tiny", "attn_implementation": "flash_attention_2"}
    training = {"bf16": False}
    assert "half precision only" in only(
        plan_of("sft", ONE, model=model, training=training), "model.attn_implementation"
    )
    assert said(plan_of("sft", ONE, model=model | {"dtype": "bfloat16"}, training=training)) == []
    assert said(plan_of("sft", ONE, model=model)) == []


def test_float16_weights_cannot_be_trained_with_a_scaled_loss(plan_of: Plans) -> None:
    half, fp16 = {"path": "builtin:tiny", "dtype": "float16"}, {"fp16": True}
    assert "cannot be scaled back; set model.dtype: float32" in only(
        plan_of("sft", ONE, model=half, training=fp16), "model.dtype"
    )
    value = {"reward_model": {"path": "builtin:tiny"}, "value_model": half}
    only(plan_of("ppo", ONE, training=fp16, **value), "value_model.dtype")
    for fine in (
        plan_of("sft", ONE, training=fp16),
        plan_of("sft", ONE, model=half),
        plan_of("sft", ONE, model=half, training=fp16, peft={"r": 4}),
        plan_of("sft", "2x80GiB", model=half, training=fp16, launch={"accelerate": "zero2"}),
    ):
        assert said(fine) == []


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", None])
@pytest.mark.parametrize("attention", [None, "sdpa", "eager"])
def test_packing_wants_flash_attention(plan_of: Plans, strategy: str | None, attention: str | None) -> None:
    training = {"packing": True} | ({"packing_strategy": strategy} if strategy else {})
    model = {"path": "builtin:tiny", "attn_implementation": attention}
    line = only(plan_of("sft", ONE, model=model, training=training), "training.packing")
    assert f"({strategy or 'bfd'})" in line
    assert f"attention {attention or 'sdpa'} they may see each other" in line
    assert "flash_attention_2" in line
    assert "packing_strategy: wrapped" in line


@pytest.mark.parametrize("attention", FLASH)
def test_packing_with_flash_attention_is_fine(plan_of: Plans, attention: str) -> None:
    model = {"path": "builtin:tiny", "attn_implementation": attention}
    assert said(plan_of("sft", ONE, model=model, training={"packing": True})) == []


def test_wrapped_packing_and_a_cpu_need_none(plan_of: Plans) -> None:
    assert said(plan_of("sft", ONE, training={"packing": True, "packing_strategy": "wrapped"})) == []
    assert said(plan_of("sft", launch=CPU, training={"packing": True})) == []


def test_packing_needs_a_length(plan_of: Plans) -> None:
    training = {"packing": True, "packing_strategy": "wrapped", "max_length": None}
    assert "up to training.max_length, which is null" in only(
        plan_of("sft", ONE, training=training), "training.packing"
    )


def test_padding_free_without_packing_cuts_nothing(plan_of: Plans) -> None:
    model = {"path": "builtin:tiny", "attn_implementation": "flash_attention_2"}
    line = only(plan_of("sft", ONE, model=model, training={"padding_free": True}), "training.padding_free")
    assert "does not cut rows to max_length (1024)" in line
    assert said(plan_of("sft", ONE, model=model, training={"padding_free": True, "max_length": None})) == []
    assert said(plan_of("sft", ONE, model=model, training={"padding_free": True, "packing": True})) == []
    line = only(plan_of("sft", ONE, training={"padding_free": True, "max_length": None}), "training.padding_free")
    assert "wrapped" not in line


def test_the_flash_family_is_trls() -> None:
    trl = find_module("trl")
    assert trl is not None
    text = (trl.parent / "trainer" / "sft_trainer.py").read_text(encoding="utf-8")
    block = text.split("FLASH_ATTENTION_VARIANTS = {")[1].split("}")[0]
    assert {part.strip().strip('"') for part in block.split(",") if part.strip()} == set(FLASH)


# --- Liger -----------------------------------------------------------------------------------------------------------


def test_liger_needs_a_gpu_and_to_be_installed(plan_of: Plans) -> None:
    training = {"use_liger_kernel": True}
    assert "its kernels need a GPU" in only(plan_of("sft", launch=CPU, training=training), "training.use_liger_kernel")
    here = replace(assume_machine(ONE), assumed=False)
    assert "not installed" in only(plan_of("sft", here, training=training), "training.use_liger_kernel")
    assert said(plan_of("sft", ONE, training=training)) == []
    assert said(plan_of("sft", here, training={"use_liger_kernel": False})) == []


@pytest.mark.parametrize(
    ("method", "training", "key"),
    [
        ("sft", {"loss_type": "chunked_nll"}, "training.loss_type"),
        ("dpo", {"loss_type": ["sigmoid", "sft"]}, "training.loss_type"),
        ("dpo", {"f_divergence_type": "js_divergence"}, "training.f_divergence_type"),
        ("dpo", {"precompute_ref_log_probs": True}, "training.precompute_ref_log_probs"),
        ("kto", {"loss_type": "apo_zero_unpaired"}, "training.loss_type"),
        ("grpo", {"off_policy_mask_threshold": 2.0}, "training.off_policy_mask_threshold"),
        ("grpo", {"top_entropy_quantile": 0.8}, "training.top_entropy_quantile"),
        ("grpo", {"entropy_coef": 0.01}, "training.entropy_coef"),
        ("grpo", {"use_adaptive_entropy": True}, "training.use_adaptive_entropy"),
    ],
)
def test_what_trl_refuses_with_liger(plan_of: Plans, method: str, training: dict[str, Any], key: str) -> None:
    base = {"max_completion_length": 8} if "max_completion_length" in fields(METHODS[method].config) else {}
    assert said(plan_of(method, ONE, training=base | training)) == []
    line = only(plan_of(method, ONE, training=base | training | {"use_liger_kernel": True}), key)
    assert "does not go with use_liger_kernel" in line


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_liger_with_its_defaults(plan_of: Plans, method: str) -> None:
    assert said(plan_of(method, ONE, training={"use_liger_kernel": True})) == []


# --- loss on the assistant's words -----------------------------------------------------------------------------------

ANSWERS = {"assistant_only_loss": True}
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_template_without_marks_is_refused_and_one_with_them_taken(plan_of: Plans, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(PLAIN)
    model = {"path": "builtin:tiny", "chat_template": str(template)}
    line = only(plan_of("sft", ONE, model=model, training=ANSWERS), "training.assistant_only_loss")
    assert f"{template} does not mark what the assistant says" in line
    assert "{% generation %}" in line
    template.write_text(PLAIN.replace("{{ m.content }}", "{%- generation -%}{{ m.content }}{% endgeneration %}"))
    assert said(plan_of("sft", ONE, model=model, training=ANSWERS)) == []


def test_templates_that_trl_knows_are_taken(plan_of: Plans, tmp_path: Path) -> None:
    assert said(plan_of("sft", ONE, model={"path": "builtin:tiny", "chat_template": "qwen3"}, training=ANSWERS)) == []
    known = read_named_template("qwen2_5")
    assert known is not None
    copy = tmp_path / "copy.jinja"
    copy.write_text(known.text)
    model = {"path": "builtin:tiny", "chat_template": str(copy)}
    assert said(plan_of("sft", ONE, model=model, training=ANSWERS)) == []


def test_the_models_own_template_is_looked_at(plan_of: Plans, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    model = {"path": str(tmp_path)}
    assert "has no chat template" in only(
        plan_of("sft", ONE, model=model, training=ANSWERS), "training.assistant_only_loss"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": PLAIN}))
    line = only(plan_of("sft", ONE, model=model, training=ANSWERS), "training.assistant_only_loss")
    assert "tokenizer_config.json does not mark" in line
    assert said(plan_of("sft", ONE, model={"path": "org/elsewhere"}, training=ANSWERS)) == []


def test_text_has_no_assistant(plan_of: Plans) -> None:
    data = {"train": [{"path": "builtin:arithmetic-text"}]}
    model = {"path": "builtin:tiny", "chat_template": "qwen3"}
    line = only(plan_of("sft", ONE, model=model, data=data, training=ANSWERS), "training.assistant_only_loss")
    assert "needs chats (a column `messages`), and rows of data.train have text, " in line


def test_chats_in_another_column_are_said_to_be(plan_of: Plans, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"conversations": [{"role": "user", "content": "x"}]}\n')
    model = {"path": "builtin:tiny", "chat_template": "qwen3"}
    line = only(
        plan_of("sft", ONE, model=model, data={"train": [{"path": str(path)}]}, training=ANSWERS),
        "training.assistant_only_loss",
    )
    assert line.endswith("have conversations; leave it out, or rename: {conversations: messages}")


def test_the_first_row_of_what_can_be_read_cheaply(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"conversations": [{"role": "user", "content": "x"}], "a": 1}\n')
    row = first_row(DataEntry(path=str(path), rename={"conversations": "messages"}))
    assert row == {"messages": [{"role": "user", "content": "x"}], "a": 1}
    assert is_conversational(row)
    assert not is_conversational({"text": "x", "prompt": "y"})
    chat = {"rename": {"conversations": "messages"}, "prompt": "{a}", "columns": ["prompt"]}
    assert first_row(DataEntry.model_validate({"path": str(path), "filter": "own.py:f", **chat})) == {"prompt": "1"}
    assert first_row(DataEntry.model_validate({"path": str(path), "map": "own.py:f"})) is None
    path.write_text("not json\n")
    assert first_row(DataEntry(path=str(path))) is None
    assert first_row(DataEntry(path="org/elsewhere")) is None
    assert is_conversational(first_row(DataEntry(path="builtin:arithmetic")) or {})


def test_a_reward_model_reads_chats_through_its_own_template(plan_of: Plans, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    rewards = [{"use": "trl.rewards:accuracy_reward"}, {"use": "builtin:tiny"}, {"use": str(tmp_path)}]
    assert "has no chat template" in only(plan_of("grpo", ONE, rewards=rewards), "rewards.2.use")
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    assert said(plan_of("grpo", ONE, rewards=rewards)) == []


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if "sync_ref_model" in fields(row.config)])
def test_a_reference_that_moves_needs_weights_of_its_own(plan_of: Plans, method: str) -> None:
    base = {"max_completion_length": 8} if "max_completion_length" in fields(METHODS[method].config) else {}
    sync = base | {"sync_ref_model": True}
    key = "training.sync_ref_model"
    assert said(plan_of(method, ONE, training=sync | {"beta": 0.1})) == []
    assert "beta is 0" in only(plan_of(method, ONE, training=sync | {"beta": 0.0}), key)
    assert "the model without it" in only(plan_of(method, ONE, training=sync | {"beta": 0.1}, peft={"r": 4}), key)


def test_a_reference_that_is_computed_once_does_not_move(plan_of: Plans) -> None:
    training = {"sync_ref_model": True, "precompute_ref_log_probs": True}
    assert "computes the reference once" in only(plan_of("dpo", ONE, training=training), "training.sync_ref_model")


# --- a KL term from a batch's other rows -----------------------------------------------------------------------------


def test_a_kl_term_needs_rows_beside_each_other(plan_of: Plans) -> None:
    alone = {"per_device_train_batch_size": 1}
    assert "a second row" in only(plan_of("kto", ONE, training=alone), "training.per_device_train_batch_size")
    assert said(plan_of("kto", ONE, training=alone | {"loss_type": "apo_zero_unpaired"})) == []
    shuffled = {"train_sampling_strategy": "random"}
    assert "one beside it" in only(plan_of("kto", ONE, training=shuffled), "training.train_sampling_strategy")
    assert said(plan_of("dpo", ONE, training=alone | shuffled)) == []


# --- notes -----------------------------------------------------------------------------------------------------------

HALF = {"path": "builtin:tiny", "dtype": "bfloat16"}


def test_every_model_says_what_its_weights_are_held_in(plan_of: Plans) -> None:
    tiny = {"path": "builtin:tiny"}
    for method, sections in [("ppo", ("reward_model", "value_model", "ref_model")), ("gkd", ("teacher",))]:
        recipe = plan_of(method, ONE, **dict.fromkeys(sections, tiny)).plan.recipe
        assert [getattr(recipe, name).dtype for name in ("model", *sections)] == ["float32"] * (len(sections) + 1)


def test_small_steps_on_half_precision_weights_are_noted(plan_of: Plans) -> None:
    small = {"learning_rate": 1e-6}
    assert len(notes(plan_of("sft", ONE, model=HALF, training=small), "smaller than the rounding")) == 1
    assert len(notes(plan_of("dpo", "2x80GiB", model=HALF), "learning rate 1e-06")) == 1
    for planned in (
        plan_of("sft", ONE, training=small),
        plan_of("sft", ONE, model=HALF, training={"learning_rate": 2e-5}),
        plan_of("sft", ONE, model=HALF, training=small, peft={"r": 4}),
        plan_of("sft", "2x80GiB", model=HALF, training=small, launch={"accelerate": "zero2"}),
        plan_of("sft", "2x80GiB", model=HALF, training=small, launch={"accelerate": "fsdp2"}),
    ):
        assert notes(planned, "rounding") == []


def test_float16_training_of_a_bfloat16_checkpoint_is_noted(plan_of: Plans, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    model = {"path": str(tmp_path)}
    assert len(notes(plan_of("sft", ONE, model=model, training={"fp16": True}), "was trained in bfloat16")) == 1
    assert len(notes(plan_of("sft", ONE, model=model | {"dtype": "float16"}), "was trained in bfloat16")) == 1
    assert notes(plan_of("sft", ONE, model=model), "was trained in bfloat16") == []


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.online])
def test_a_length_that_is_not_said_is_noted(plan_of: Plans, method: str) -> None:
    (note,) = notes(plan_of(method, ONE), "completions are cut at TRL's default")
    name = note.split()[0].removeprefix("training.")
    assert notes(plan_of(method, ONE, training={name: 100}), "completions are cut") == []


def test_a_cut_of_the_sampling_is_noted_where_vllm_corrects(plan_of: Plans) -> None:
    training = {"max_completion_length": 8, "top_p": 0.8, "top_k": 20}
    (note,) = notes(plan_of("grpo", rollouts={"gpus": 1}, training=training), "top_p")
    assert "top_p 0.8 and top_k 20" in note
    off = training | {"vllm_importance_sampling_correction": False}
    assert notes(plan_of("grpo", rollouts={"gpus": 1}, training=off), "top_p") == []
    assert notes(plan_of("grpo", training=training), "top_p") == []
    assert notes(plan_of("grpo", rollouts={"gpus": 1}, training={"max_completion_length": 8}), "top_p") == []


def test_padding_free_where_it_does_nothing_is_noted(plan_of: Plans) -> None:
    assert len(notes(plan_of("dpo", ONE, training={"padding_free": True}), "pads all the same")) == 1


def test_random_weights_and_random_heads_are_noted(plan_of: Plans, tmp_path: Path) -> None:
    (note,) = notes(plan_of("sft", ONE, model={"path": "builtin:tiny", "from": "config"}, seed=7), "random")
    assert note == "model: random weights of the architecture of builtin:tiny, from seed 7"
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    model = {"path": str(tmp_path)}
    assert len(notes(plan_of("xpo", ONE, reward_model=model), "without a score")) == 1
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1})
    )
    assert notes(plan_of("xpo", ONE, reward_model=model), "without a score") == []


def test_vocabularies_that_cannot_be_compared_are_noted(plan_of: Plans) -> None:
    (note,) = notes(plan_of("gkd", ONE, teacher={"path": "org/teacher"}), "not on this machine")
    assert "org/teacher" in note
    assert notes(plan_of("gkd", ONE), "not on this machine") == []


def test_a_server_of_random_weights_loads_none(plan_of: Plans) -> None:
    fresh = {"path": "builtin:tiny", "from": "config"}
    plan = plan_of("grpo", model=fresh, rollouts={"gpus": 1}).plan
    assert plan is not None
    argv = plan.steps[0].argv
    assert argv[argv.index("--load-format") + 1] == "dummy"
    other = plan_of("grpo", model=fresh, rollouts={"gpus": 1, "engine": {"load_format": "auto"}}).plan
    assert other is not None
    assert "dummy" not in other.steps[0].argv
    plain = plan_of("grpo", rollouts={"gpus": 1}).plan
    assert plain is not None
    assert "--load-format" not in plain.steps[0].argv


def test_guards_that_have_nothing_to_watch_are_said(plan_of: Plans) -> None:
    guards = {"kl": "stop", "entropy": "off", "non_finite": "warn"}
    (note,) = notes(plan_of("sft", ONE, guards=guards), "guards.")
    assert note.startswith("guards.kl: sft generates no completions")
    assert notes(plan_of("sft", ONE), "guards.") == []
    assert notes(plan_of("grpo", ONE, guards={"entropy": "stop"}), "nothing to watch") == []
