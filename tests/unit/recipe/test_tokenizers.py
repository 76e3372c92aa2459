"""Special tokens, vocabularies that must be the same, scorers that give one number, models of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe
from ptcli.recipe.random_weights import check_random_weights
from ptcli.recipe.scorers import check_scorers
from ptcli.recipe.tokenizers import check_tokenizers, known_tokens, read_vocabulary

TOKENS = ["<|pad|>", "<|im_end|>", "a", "b", "c"]


def write_tokenizer(folder: Path, tokens: list[str] = TOKENS, *, added: list[str] = [], **config: Any) -> Path:  # noqa: B006
    """A model folder of tokenizer.json and config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    every = [*tokens, *added]
    model = {"type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)}, "merges": []}
    entries = [{"id": every.index(token), "content": token, "special": True} for token in added]
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": entries}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(every), **config}))
    return folder


def recipe_of(method: str = "sft", **sections: Any) -> Recipe:
    row = METHODS[method]
    needs: dict[str, Any] = {
        "rewards": [{"use": "trl.rewards:accuracy_reward"}],
        "reward_model": {"path": "builtin:tiny"},
        "teacher": {"path": "builtin:tiny"},
    }
    base = {
        "name": "test",
        "method": method,
        "output_dir": "runs/test",
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": row.smoke_data}]},
    }
    return Recipe.model_validate(base | {name: needs[name] for name in row.needs} | sections)


def shown(problems: Any) -> list[str]:
    return [f"{'.'.join(map(str, problem.key))}: {problem.message}; {problem.fix}" for problem in problems]


def only(problems: Any) -> Problem:
    (problem,) = problems
    return problem


# --- special tokens --------------------------------------------------------------------------------------------------


def test_a_token_of_the_vocabulary_is_taken(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "m", added=["<extra>"])
    for token in ("<|im_end|>", "<extra>", "a"):
        assert shown(check_tokenizers(recipe_of(model={"path": str(folder), "eos_token": token}))) == []


def test_a_token_that_is_none_is_refused_with_the_nearest(tmp_path: Path) -> None:
    model = {"path": "builtin:tiny", "eos_token": "<|imend|>", "pad_token": "nothing like it"}
    first, second = check_tokenizers(recipe_of(model=model))
    assert first.key == ("model", "eos_token")
    assert "the tokenizer of builtin:tiny has no token '<|imend|>'" in first.message
    assert first.fix == "did you mean '<|im_end|>'?"
    assert second.key == ("model", "pad_token")
    assert second.fix == "its own end-of-sequence token is '<|im_end|>'"


def test_what_transformers_adds_when_it_loads_is_known(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": {"content": "[PAD]"}, "added_tokens_decoder": {"9": {"content": "<new>"}}})
    )
    assert known_tokens(folder) == {*TOKENS, "[PAD]", "<new>"}


def test_a_tokenizer_that_is_not_here_or_not_readable_is_not_judged(tmp_path: Path) -> None:
    assert shown(check_tokenizers(recipe_of(model={"path": "org/elsewhere", "eos_token": "<x>"}))) == []
    folder = tmp_path / "sp"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x07")
    assert shown(check_tokenizers(recipe_of(model={"path": str(folder), "eos_token": "<x>"}))) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", json.dumps({"a": 0, "b": 1})),
        ("vocab.txt", "a\nb\n"),
        ("tokenizer.json", json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.5]]}})),
    ],
)
def test_the_forms_of_a_vocabulary(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_vocabulary(tmp_path) == {"a": 0, "b": 1}


def test_a_file_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["a"])
    assert read_vocabulary(tmp_path) == {"a": 0}
    write_tokenizer(tmp_path, ["b"])
    assert read_vocabulary(tmp_path) == {"b": 0}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": 3}', '{"model": {"vocab": 3}, "added_tokens": 3}'])
def test_a_broken_tokenizer_file_is_no_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    model = {"path": str(tmp_path), "eos_token": "<x>"}
    assert shown(check_tokenizers(recipe_of("gkd", model=model, teacher={"path": str(tmp_path)}))) == []


# --- two vocabularies ------------------------------------------------------------------------------------------------

WITH_TEACHER = [row.name for row in METHODS.values() if "teacher" in row.needs]
SCORED = [(row.name, section) for row in METHODS.values() for section in row.same_vocabulary if section != "teacher"]


def test_the_rows_say_who_shares_the_vocabulary() -> None:
    assert len(WITH_TEACHER) == 3
    assert {"reward_model", "value_model"} == {section for _, section in SCORED}
    assert all(METHODS[name].same_vocabulary == ("teacher",) for name in WITH_TEACHER)


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_a_teacher_with_another_size_is_refused(method: str, tmp_path: Path) -> None:
    student = write_tokenizer(tmp_path / "student")
    teacher = write_tokenizer(tmp_path / "teacher", vocab_size=8)
    problem = only(check_tokenizers(recipe_of(method, model={"path": str(student)}, teacher={"path": str(teacher)})))
    assert problem.key == ("teacher", "path")
    assert problem.message == "`teacher` has a vocabulary of 8 tokens (vocab_size), and `model` one of 5"


def test_a_teacher_of_one_size_with_other_tokens_is_refused(tmp_path: Path) -> None:
    """TRL compares the sizes alone, and trains."""
    student = write_tokenizer(tmp_path / "student")
    teacher = write_tokenizer(tmp_path / "teacher", ["<|pad|>", "<|im_end|>", "a", "c", "b"])
    recipe = recipe_of("gkd", model={"path": str(student)}, teacher={"path": str(teacher)})
    problem = only(check_tokenizers(recipe))
    assert problem.message == (
        "`teacher` and `model` have different vocabularies of the same size (5): "
        "token 3 is 'c' there and 'b' in `model`"
    )


def test_a_vision_teacher_nests_its_size(tmp_path: Path) -> None:
    student = write_tokenizer(tmp_path / "student")
    teacher = write_tokenizer(tmp_path / "teacher")
    (teacher / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 9}}))
    recipe = recipe_of("gkd", model={"path": str(student)}, teacher={"path": str(teacher)})
    assert "vocabulary of 9 tokens" in only(check_tokenizers(recipe)).message


@pytest.mark.parametrize("added", [[], ["<later>"]])
def test_the_same_tokens_with_one_added_later_are_the_same(tmp_path: Path, added: list[str]) -> None:
    student = write_tokenizer(tmp_path / "student", added=added, vocab_size=8)
    teacher = write_tokenizer(tmp_path / "teacher", vocab_size=8)
    recipe = recipe_of("gkd", model={"path": str(student)}, teacher={"path": str(teacher)})
    assert shown(check_tokenizers(recipe)) == []


def test_sentencepiece_models_are_compared_as_files(tmp_path: Path) -> None:
    for name, content in (("student", b"one"), ("teacher", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(content)
    sections = {"model": {"path": str(tmp_path / "student")}, "teacher": {"path": str(tmp_path / "teacher")}}
    assert "their tokenizer.model files differ" in only(check_tokenizers(recipe_of("gkd", **sections))).message
    (tmp_path / "teacher" / "tokenizer.model").write_bytes(b"one")
    assert shown(check_tokenizers(recipe_of("gkd", **sections))) == []


@pytest.mark.parametrize(("method", "section"), SCORED)
def test_a_scorer_reads_the_policys_tokens(method: str, section: str, tmp_path: Path) -> None:
    policy = write_tokenizer(tmp_path / "policy")
    scorer = write_tokenizer(tmp_path / "scorer", ["<|im_end|>", "<|pad|>", "a", "b", "c"])
    sections = {"model": {"path": str(policy)}, "reward_model": {"path": str(policy)}, section: {"path": str(scorer)}}
    problem = only(check_tokenizers(recipe_of(method, **sections)))
    assert problem.key == (section, "path")
    assert "different vocabularies" in problem.message


@pytest.mark.parametrize(("rows", "count"), [(4, 1), (5, 0), (64, 0)])
def test_a_scorer_needs_room_for_every_token_and_may_have_more(rows: int, count: int, tmp_path: Path) -> None:
    policy = write_tokenizer(tmp_path / "policy")
    scorer = write_tokenizer(tmp_path / "scorer", vocab_size=rows)
    sections = {"model": {"path": str(policy)}, "reward_model": {"path": str(scorer)}}
    assert len(shown(check_tokenizers(recipe_of(SCORED[0][0], **sections)))) == count


@pytest.mark.parametrize("method", [row.name for row in METHODS.values() if "rewards" in row.needs])
def test_a_reward_model_among_rewards_has_its_own_tokenizer(method: str, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", ["x", "y"])
    assert shown(check_tokenizers(recipe_of(method, rewards=[{"use": str(other)}]))) == []


# --- scorers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "a classifier of 2 labels"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 5}, "a classifier of 5 labels"),
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": dict.fromkeys("012", "x")}, "of 3 labels"),
        ({"architectures": ["LlamaForTokenClassification"], "id2label": {"0": "x"}}, "labels tokens"),
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, ""),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, ""),
        ({"architectures": ["LlamaForCausalLM"]}, ""),
        ({}, ""),
    ],
)
def test_a_scorer_gives_one_number(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    path = str(write_tokenizer(tmp_path / "m", **config))
    for recipe, key in [
        (recipe_of("xpo", reward_model={"path": path}), ("reward_model", "path")),
        (recipe_of("ppo", value_model={"path": path}), ("value_model", "path")),
        (recipe_of("grpo", rewards=[{"use": "trl.rewards:accuracy_reward"}, {"use": path}]), ("rewards", 1, "use")),
    ]:
        problems = list(check_scorers(recipe))
        assert [problem.key for problem in problems] == ([key] if words else [])
        assert all(words in problem.message for problem in problems)


# --- from: config ----------------------------------------------------------------------------------------------------


def fresh(**fields: Any) -> dict[str, Any]:
    return {"path": "builtin:tiny", "from": "config", **fields}


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_are_taken_by_every_method(method: str) -> None:
    assert shown(check_random_weights(recipe_of(method, model=fresh()))) == []


def test_an_adapter_is_no_architecture(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert "is an adapter" in only(check_random_weights(recipe_of(model=fresh(path=str(tmp_path))))).message
    problem = only(check_random_weights(recipe_of(model=fresh(adapter="continue"))))
    assert problem.key == ("model", "from")


def test_only_the_policy_can_be_quantised() -> None:
    quantization = {"load_in_4bit": True}
    assert shown(check_random_weights(recipe_of(model=fresh(quantization=quantization)))) == []
    recipe = recipe_of("gkd", teacher=fresh(quantization=quantization))
    assert only(check_random_weights(recipe)).key == ("teacher", "quantization")


def test_a_server_does_not_see_a_changed_config() -> None:
    model = fresh(init_kwargs={"num_hidden_layers": 1, "low_cpu_mem_usage": True})
    problem = only(check_random_weights(recipe_of("grpo", model=model, rollouts={"gpus": 1})))
    assert "(num_hidden_layers)" in problem.message
    assert shown(check_random_weights(recipe_of("grpo", model=model))) == []
