"""The tiny model does what the demo, the smoke runs and the other tests count on."""

import json
import random
import warnings

import datasets
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import (
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    is_chat_template_stop_token_trained,
    supports_tool_calling,
)
from trl.rewards import accuracy_reward

from ptcli.builtin import DATASETS, MODEL, data_path, train_model
from ptcli.builtin.make_tokenizer import make_tokenizer
from ptcli.builtin.rewards import exact_match

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 7, "b": "zwölf"}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "a sum", "parameters": {"type": "object"}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "7+zwölf="},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "19"},
    {"role": "assistant", "content": "19 ✓"},
    {"role": "user", "content": "Danke"},
    {"role": "assistant", "content": "Bitte"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in data_path("arithmetic").read_text().splitlines()]


def any_texts(count=500):
    """Random text from all of Unicode, and what is special to this tokenizer, from a fixed seed."""
    rng = random.Random(0)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    odd = ["", "\\boxed{12}", "\\begin\\boxer", "<|im_end|>", "<tool_call>", " 12 , n't .", "\r\n\t \x00", "  "]
    for _ in range(count):
        letters = "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randrange(50)))
        yield letters + rng.choice(odd) + letters[::-1]


def complete(model, tokenizer, prompts, **how):
    """The tokens that the model adds to each prompt, at most 12."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=12, **how)[:, batch["input_ids"].shape[1] :]


def as_chats(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


# tokenizer


def test_any_text_comes_back_exactly(tokenizer):
    for text in any_texts():
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_loaded_tokenizer_equals_the_made_one(tokenizer, tmp_path):
    made = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(MODEL).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in any_texts():
        assert made(text)["input_ids"] == tokenizer(text)["input_ids"] == again(text)["input_ids"]
    for name in ("chat_template", "special_tokens_map", "model_max_length", "padding_side"):
        assert getattr(made, name) == getattr(tokenizer, name) == getattr(again, name)
    assert made.get_vocab() == tokenizer.get_vocab() == again.get_vocab()


def test_arithmetic_is_read_letter_by_letter(tokenizer):
    assert tokenizer.tokenize("17+2=19") == list("17+2=19")
    assert tokenizer.tokenize("\\boxed{19}") == ["\\boxed{", "1", "9", "}"]


def test_nothing_is_added_to_a_text(tokenizer):
    assert tokenizer("")["input_ids"] == []
    assert tokenizer.bos_token is None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


# chat template


def test_template_is_fit_for_training_as_it_is(tokenizer):
    assert is_chat_template_prefix_preserving(tokenizer)
    assert is_chat_template_stop_token_trained(tokenizer)
    assert supports_tool_calling(tokenizer)
    assert get_training_chat_template(tokenizer) is None


@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_every_prompt_is_a_prefix_of_the_whole_chat(tokenizer, tools):
    whole = tokenizer.apply_chat_template(CHAT, tools=tools, tokenize=False)
    for end in range(1, len(CHAT)):
        answers = CHAT[end]["role"] == "assistant"
        start = tokenizer.apply_chat_template(CHAT[:end], tools=tools, tokenize=False, add_generation_prompt=answers)
        assert whole.startswith(start)


def test_mask_covers_what_the_assistant_writes(tokenizer):
    ids, mask = (
        tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)[key]
        for key in ("input_ids", "assistant_masks")
    )
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 7, "b": "zwölf"}}\n</tool_call>'
    written = tokenizer.decode([token for token, own in zip(ids, mask, strict=True) if own])
    assert written == f"{call}<|im_end|>19 ✓<|im_end|>Bitte<|im_end|>"


def test_system_message_and_tools_share_a_turn(tokenizer):
    text = tokenizer.apply_chat_template(CHAT, tools=[TOOL], tokenize=False)
    assert text.count("<|im_start|>system") == text.count("Be brief.") == 1
    assert json.dumps(TOOL) in text


def test_content_may_come_in_parts(tokenizer):
    parts = [{"role": "user", "content": [{"type": "text", "text": "7+"}, {"type": "text", "text": "12="}]}]
    plain = [{"role": "user", "content": "7+12="}]
    render = tokenizer.apply_chat_template
    assert render(parts, tokenize=False) == render(plain, tokenize=False) == "<|im_start|>user\n7+12=<|im_end|>\n"


# model


def test_model_loads_without_a_warning(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForCausalLM.from_pretrained(MODEL, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.float32
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_greedy_answers_are_right(model, tokenizer, rows):
    prompts = [tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in rows]
    texts = tokenizer.batch_decode(complete(model, tokenizer, prompts, do_sample=False), skip_special_tokens=True)
    assert sum(exact_match(texts, [row["answer"] for row in rows])) > 0.9 * len(rows)


@pytest.mark.parametrize("form", ["chat", "system", "plain"])
def test_half_of_the_sampled_answers_are_right(model, tokenizer, rows, form):
    """Room to learn for `exact_match` and, because some answers are boxed, for TRL's own reward too."""
    torch.manual_seed(0)
    system = [{"role": "system", "content": "You are a calculator."}] if form == "system" else []
    prompts = [
        row["prompt"][0]["content"]
        if form == "plain"
        else tokenizer.apply_chat_template(system + row["prompt"], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    tokens = complete(model, tokenizer, prompts, do_sample=True, temperature=1.0)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    exact = exact_match(texts, [row["answer"] for row in rows])
    boxed = accuracy_reward(as_chats(texts), [row["solution"] for row in rows])
    assert 0.35 < sum(exact) / len(rows) < 0.65
    assert 0.08 < sum(boxed) / len(rows) < 0.35
    ended = sum(tokenizer.eos_token_id in row for row in tokens.tolist())
    assert ended > 0.98 * len(rows)


# data


@pytest.mark.parametrize("name", DATASETS)
def test_data_set_loads(name, tmp_path):
    rows = datasets.load_dataset("json", data_files=str(data_path(name)), split="train", cache_dir=str(tmp_path))
    assert len(rows) == 400
    assert {"answer", "solution"} < set(rows.column_names)


def test_accuracy_reward_knows_every_solution():
    rows = [json.loads(line) for name in DATASETS for line in data_path(name).read_text().splitlines()]
    solutions = sorted({row["solution"] for row in rows}, key=int)
    right = as_chats(f"\\boxed{{{solution}}}" for solution in solutions)
    wrong = as_chats(f"\\boxed{{{int(solution) + 1}}}" for solution in solutions)
    assert accuracy_reward(right, solutions) == [1.0] * len(solutions)
    assert accuracy_reward(wrong, solutions) == [0.0] * len(solutions)


# the script


def test_same_seed_trains_the_same_model(tokenizer, monkeypatch):
    monkeypatch.setattr(train_model, "STEPS", 3)
    first, second = (train_model.train_model(tokenizer).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_committed_configs_are_what_the_script_makes(tokenizer):
    shipped = AutoConfig.from_pretrained(MODEL).to_dict()
    made = train_model.model_config(tokenizer).to_dict()
    ours = ("architectures", "_name_or_path", "transformers_version")
    assert {k: v for k, v in shipped.items() if k not in ours} == {k: v for k, v in made.items() if k not in ours}
