"""Every method trains: half of the shipped recipes through the command line (the rest in tests/long), and what ptcli
does that TRL's trainers leave to the user."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.recipe.model import ModelSpec
from ptcli.train.processors import load_processor
from ptcli.train.prompts import check_padding, tokenize_prompts
from tests.integration.test_train import generate, quiet_and_offline, read_metrics, train  # noqa: F401
from tests.smoke_runs import USUAL, smoke

TINY = {"path": "builtin:tiny"}
PPO = {"total_episodes": 12, "response_length": 8}
LORA = {"r": 4, "target_modules": "all-linear"}


@pytest.mark.parametrize("method", USUAL)
def test_smoke(method: str, tmp_path: Path, ptcli_process: Callable) -> None:
    smoke(method, tmp_path / "run", ptcli_process)


# --- prompts as tokens -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_processor(ModelSpec(path="builtin:tiny"), generates=True)


def _decoded(tokenizer: Any, rows: list[dict[str, Any]]) -> list[str]:
    tokens = tokenize_prompts(Dataset.from_list(rows), tokenizer, "data.train")
    assert tokens.column_names == ["input_ids"]
    return tokenizer.batch_decode(list(tokens["input_ids"]))


def test_a_chat_ends_where_the_answer_begins(tokenizer: Any) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{n}+1="}], "answer": str(n + 1)} for n in (3, 1, 2)]
    expected = [f"<|im_start|>user\n{n}+1=<|im_end|>\n<|im_start|>assistant\n" for n in (3, 1, 2)]
    assert _decoded(tokenizer, rows) == expected


def test_an_answer_that_has_begun_goes_on(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "It is"}]
    (text,) = _decoded(tokenizer, [{"prompt": chat}])
    assert text.endswith("<|im_start|>assistant\nIt is")


def test_text_and_tokens_stay_as_they_are(tokenizer: Any) -> None:
    assert _decoded(tokenizer, [{"prompt": "1+1="}, {"prompt": "2+2="}]) == ["1+1=", "2+2="]
    rows = Dataset.from_list([{"input_ids": [5, 6], "length": 2}])
    assert tokenize_prompts(rows, tokenizer, "data.train").to_list() == [{"input_ids": [5, 6]}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "1+1="}], r"data\.train: there is no column `prompt`; found text"),
        ([{"prompt": "1+1="}, {"prompt": ""}], r"data\.train: row 1 has an empty prompt"),
        ([{"prompt": "1+1="}, {"prompt": None}], r"data\.train: row 1 has an empty prompt"),
    ],
)
def test_rows_without_a_prompt(rows: list[dict[str, Any]], message: str, tokenizer: Any) -> None:
    with pytest.raises(WorkError, match=message):
        tokenize_prompts(Dataset.from_list(rows), tokenizer, "data.train")


def test_padding_that_is_the_end_of_sequence() -> None:
    check_padding(load_processor(ModelSpec(path="builtin:tiny"), generates=True))
    with pytest.raises(WorkError, match=r"model\.pad_token.*<\|im_end\|>"):
        check_padding(load_processor(ModelSpec(path="builtin:tiny", pad_token="<|im_end|>"), generates=True))


# --- models beside the policy ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of the tiny one's shape that says other things."""
    folder = tmp_path_factory.mktemp("other")
    train("sft", folder, training={"max_steps": 10, "learning_rate": 1e-2})
    return {"path": str(folder)}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("scorer")
    train("reward", folder)
    return {"path": str(folder)}


def test_ppo_learns_from_a_trained_reward_model_and_leaves_only_the_policy(
    tmp_path: Path, scorer: dict[str, str]
) -> None:
    data = {"train": [{"path": "builtin:arithmetic", "take": 24}], "eval": 8}
    training = PPO | {"stop_token": None, "num_sample_generations": 1, "logging_steps": 1}
    trainer = train("ppo", tmp_path, reward_model=scorer, value_model=scorer, data=data, training=training)
    assert not any(parameter.requires_grad for parameter in trainer.reward_model.parameters())
    assert all(parameter.requires_grad for parameter in trainer.value_model.parameters())
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[0]["loss/value_avg"] > 0
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    end = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert end == trainer.processing_class.eos_token_id
    assert isinstance(generate(tmp_path), str)


def test_ppo_trains_an_adapter_against_the_base_without_it(tmp_path: Path, scorer: dict[str, str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ptcli.builtin import MODEL

    trainer = train("ppo", tmp_path, reward_model=scorer, value_model=scorer, training=PPO, peft=LORA)
    assert trainer.ref_model is None
    assert read_metrics(tmp_path)[-1]["objective/kl"] != 0.0
    assert not (tmp_path / "model.safetensors").exists()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), tmp_path)
    assert any(weights.abs().max() > 0 for name, weights in model.named_parameters() if "lora_B" in name)


def test_reward_models_come_with_their_own_tokenizers(tmp_path: Path) -> None:
    """TRL looks where the model's config says it came from, which is the base of an adapter."""
    scorer = {"path": str(tmp_path / "scorer")}
    train("reward", tmp_path / "scorer", peft=LORA)
    (tmp_path / "rewards.py").write_text("def zero(completions, **columns):\n    return [0.0] * len(completions)\n")
    rewards = [{"use": f"{tmp_path}/rewards.py:zero"}, {"use": scorer["path"], "weight": 2.0}]
    for method in ("online_dpo", "grpo"):
        trainer = train(method, tmp_path / method, rewards=rewards)
        nothing, tokenizer = trainer.reward_processing_classes
        assert nothing is None
        assert tokenizer.name_or_path == scorer["path"]
        assert trainer.reward_weights.tolist() == [1.0, 2.0]
    row = read_metrics(tmp_path / "grpo")[0]
    assert row["reward"] == pytest.approx(2 * row[f"rewards/{Path(scorer['path']).name}/mean"], abs=1e-5)


@pytest.mark.parametrize("method", ["gkd", "minillm", "distillation"])
def test_a_teacher_teaches_what_the_student_does_not_say(method: str, tmp_path: Path, other: dict[str, str]) -> None:
    import torch

    teacher = other | {"dtype": "bfloat16", "init_kwargs": {"attn_implementation": "eager"}}
    trainer = train(method, tmp_path / "other", teacher=teacher)
    assert abs(read_metrics(tmp_path / "other")[0]["loss"]) > 0.1
    assert {parameter.dtype for parameter in trainer.teacher_model.parameters()} == {torch.bfloat16}
    assert trainer.teacher_model.config._attn_implementation == "eager"
    train(method, tmp_path / "same", teacher=TINY, training={"max_steps": 1})
    assert read_metrics(tmp_path / "same")[0]["loss"] == pytest.approx(0.0, abs=1e-6)


def test_a_process_reward_model_as_an_adapter(tmp_path: Path) -> None:
    """PEFT would put an adapter on the new head and save that head whole, which it then refuses."""
    trainer = train("prm", tmp_path, peft=LORA)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert any("score.modules_to_save" in name for name in trained)
    assert not any("score" in name and "lora" in name for name in trained)


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["online_dpo", "prm", "kto"])
def test_what_a_row_says_of_evaluation_is_so(method: str, tmp_path: Path) -> None:
    """One method for each thing that the field can say; where a trainer has learned more, its row says too little."""
    row = METHODS[method]
    rows = [{"path": row.smoke_data, "take": 8}]
    training = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    sections: dict[str, Any] = {"rewards": [{"use": "ptcli.builtin.rewards:exact_match"}]} if row.needs else {}

    def evaluates(evaluation: Any) -> bool:
        try:
            train(method, tmp_path, data={"train": rows, "eval": evaluation}, training=training, **sections)
        except (ValueError, AttributeError):
            return False
        return any(name.startswith("eval_") for name in read_metrics(tmp_path)[-1])

    assert evaluates(rows) is (row.evaluates != "nothing")
    assert evaluates({"a": rows}) is (row.evaluates == "named sets")
