"""What ships is there, is small, says what it is, and is what the scripts in the repository make."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest

from ptcli.builtin import DATASETS, MODEL, MODELS, data_path, make_data, model_path
from ptcli.builtin.rewards import exact_match, length_reward
from ptcli.methods import METHODS, DatasetType

COLUMNS = {
    "arithmetic": {"prompt"},
    "arithmetic-text": {"text"},
    "arithmetic-messages": {"messages"},
    "arithmetic-prompt-completion": {"prompt", "completion"},
    "arithmetic-preference": {"prompt", "chosen", "rejected"},
    "arithmetic-unpaired": {"prompt", "completion", "label"},
    "arithmetic-steps": {"prompt", "completions", "labels"},
}
DATASET_TYPES = {
    "arithmetic": DatasetType.PROMPT_ONLY,
    "arithmetic-text": DatasetType.LANGUAGE_MODELING,
    "arithmetic-messages": DatasetType.LANGUAGE_MODELING,
    "arithmetic-prompt-completion": DatasetType.PROMPT_COMPLETION,
    "arithmetic-preference": DatasetType.PREFERENCE,
    "arithmetic-unpaired": DatasetType.UNPAIRED_PREFERENCE,
    "arithmetic-steps": DatasetType.STEPWISE_SUPERVISION,
}


def read(name):
    return [json.loads(line) for line in data_path(name).read_text(encoding="utf-8").splitlines()]


def said(messages, role):
    """The text of a chat of one message."""
    (message,) = messages
    assert set(message) == {"role", "content"}
    assert message["role"] == role
    return message["content"]


def asked(text):
    """The value of a question such as `7+12=`."""
    return str(sum(map(int, text.removesuffix("=").split("+"))))


# names


def test_names_work_with_and_without_prefix():
    assert model_path("tiny") == model_path("builtin:tiny") == MODEL
    assert data_path("builtin:arithmetic") == data_path("arithmetic")
    assert MODELS == ("tiny",)


@pytest.mark.parametrize("name", ["builtin:arithmetics", "", "../model/config", "tiny"])
def test_unknown_data_set_names_those_there_are(name):
    with pytest.raises(KeyError, match="builtin:arithmetic-steps"):
        data_path(name)


def test_unknown_model_names_those_there_are():
    with pytest.raises(KeyError, match="builtin:tiny"):
        model_path("builtin:huge")


def test_the_module_is_light():
    code = "import sys, ptcli.builtin, ptcli.builtin.rewards; print({m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    for heavy in ("torch", "transformers", "trl", "datasets", "tokenizers", "numpy"):
        assert f"'{heavy}'" not in loaded


# data


def test_every_dataset_type_ships():
    assert set(COLUMNS) == set(DATASET_TYPES) == set(DATASETS)
    assert set(DATASET_TYPES.values()) == set(DatasetType)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_smoke_data_of_a_method_has_a_type_it_accepts(method):
    name = method.smoke_data.removeprefix("builtin:")
    assert data_path(method.smoke_data).is_file()
    assert DATASET_TYPES[name] in method.datasets


@pytest.mark.parametrize("name", DATASETS)
def test_committed_data_are_what_the_script_makes(name):
    assert data_path(name).read_text(encoding="utf-8") == make_data.encode(make_data.rows_of(name))


@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_distinct_and_carry_the_answer(name):
    rows = read(name)
    assert len(rows) == 400
    assert len({json.dumps(row.get("prompt") or row.get("messages") or row["text"]) for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == COLUMNS[name] | {"answer", "solution"}
        assert row["answer"] == row["solution"] == str(int(row["answer"]))


def test_data_are_small():
    assert sum(data_path(name).stat().st_size for name in DATASETS) < 500_000


def test_prompts_ask_for_their_answer():
    assert all(asked(said(row["prompt"], "user")) == row["answer"] for row in read("arithmetic"))


def test_text_is_question_and_answer():
    assert all(row["text"] == row["text"].partition("=")[0] + "=" + row["answer"] for row in read("arithmetic-text"))


def test_messages_end_with_the_answer():
    for row in read("arithmetic-messages"):
        user, assistant = row["messages"]
        assert asked(said([user], "user")) == said([assistant], "assistant") == row["answer"]


def test_completions_are_the_answer():
    for row in read("arithmetic-prompt-completion"):
        assert asked(said(row["prompt"], "user")) == said(row["completion"], "assistant") == row["answer"]


def test_chosen_is_right_and_rejected_is_not():
    for row in read("arithmetic-preference"):
        assert asked(said(row["prompt"], "user")) == said(row["chosen"], "assistant") == row["answer"]
        assert int(said(row["rejected"], "assistant")) >= 0
        assert said(row["rejected"], "assistant") != row["answer"]


def test_labels_of_completions_are_true_and_mixed():
    rows = read("arithmetic-unpaired")
    for row in rows:
        assert asked(said(row["prompt"], "user")) == row["answer"]
        assert row["label"] is (said(row["completion"], "assistant") == row["answer"])
    # KTO and BCO need both kinds among any few rows.
    assert all({first["label"], second["label"]} == {True, False} for first, second in pairwise(rows))


def test_labels_of_steps_are_true_and_mixed():
    seen = set()
    for row in read("arithmetic-steps"):
        assert asked(row["prompt"]) == row["answer"]
        a, b, c = map(int, row["prompt"].removesuffix("=").split("+"))
        first, second = row["completions"]
        middle, end = int(first.partition("=")[2]), int(second.partition("=")[2])
        assert (first, second) == (f"{a}+{b}={middle}", f"{middle}+{c}={end}")
        assert row["labels"] == [middle == a + b, end == a + b + c]
        seen.add(tuple(row["labels"]))
    assert {(True, True), (True, False), (False, False)} <= seen


# model and tokenizer, read as files


def test_weights_are_well_under_a_megabyte():
    assert (MODEL / "model.safetensors").stat().st_size <= 750_000


def test_config_is_what_rollout_servers_can_run():
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] == 32  # vLLM's CPU attention has 32 and 64, not 16
    assert config["max_position_embeddings"] >= 4096
    assert config["num_attention_heads"] % 2 == config["num_key_value_heads"] % 2 == 0  # tensor parallel over two GPUs
    assert config["tie_word_embeddings"] is False


def test_config_says_the_dtype_of_the_weights():
    with (MODEL / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    dtypes = {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
    assert dtypes == {"F32"}
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "float32"


def test_all_configs_agree_on_how_a_turn_ends():
    vocabulary = {
        token["content"]: token["id"] for token in json.loads((MODEL / "tokenizer.json").read_text())["added_tokens"]
    }
    tokenizer = json.loads((MODEL / "tokenizer_config.json").read_text())
    assert (tokenizer["eos_token"], tokenizer["pad_token"]) == ("<|im_end|>", "<|pad|>")
    for file in ("config.json", "generation_config.json"):
        config = json.loads((MODEL / file).read_text())
        assert config["eos_token_id"] == vocabulary["<|im_end|>"]
        assert config["pad_token_id"] == vocabulary["<|pad|>"]


def test_no_token_id_is_without_a_token():
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    ids = {*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])}
    assert ids == set(range(json.loads((MODEL / "config.json").read_text())["vocab_size"]))


# reward


def test_exact_match_of_plain_and_chat_completions():
    chat = [[{"role": "assistant", "content": text}] for text in ("19", " 19\n", "\\boxed{19}", "")]
    assert exact_match(chat, ["19"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert exact_match(["19", "190", "1 9"], answer=["19"] * 3, prompts=["7+12="] * 3, solution=["19"] * 3) == [1, 0, 0]


def test_exact_match_of_odd_completions():
    odd = [[], [{"role": "assistant", "content": None}], [{"role": "tool", "content": "7"}, {"content": "19"}]]
    assert exact_match(odd, ["19"] * 3) == [0.0, 0.0, 1.0]


def test_exact_match_refuses_answers_of_another_number():
    with pytest.raises(ValueError, match="zip"):
        exact_match(["19"], ["19", "20"])


def test_length_reward_peaks_at_its_target_and_is_symmetric() -> None:
    texts = ["x" * length for length in range(41)]
    rewards = length_reward(texts, target=20, answer=["1"] * 41)
    assert rewards[20] == 0.0
    assert rewards == rewards[::-1]
    assert rewards[:21] == sorted(set(rewards))
    assert rewards[0] == -1.0


def test_length_reward_measures_the_last_message_of_a_chat() -> None:
    chat = [{"role": "assistant", "content": "x" * 7}]
    assert length_reward([chat, "x" * 7], target=7) == [0.0, 0.0]
    assert length_reward([chat], target=0) == [-7.0]
