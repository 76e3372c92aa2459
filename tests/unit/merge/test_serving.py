"""What is written beside the merged weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.merge.model import MergePlan, Output, Shard
from ptcli.merge.serving import tokenizer_folder, write_serving_files

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "vocab_size": 4, "eos_token_id": 1,
    "tie_word_embeddings": True, "_name_or_path": "somewhere",
}  # fmt: skip
VOCABULARY = {"a": 0, "<end>": 1, "<turn>": 2, "<pad>": 3}


def put(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def put_tokenizer(folder: Path, template: str | None = None, **special: Any) -> None:
    put(folder, "tokenizer.json", {"model": {"vocab": VOCABULARY}, "added_tokens": []})
    put(folder, "tokenizer_config.json", special)
    if template:
        put(folder, "chat_template.jinja", template)


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., MergePlan]:
    """A merge of an adapter in a run directory into a base with a tokenizer of its own."""
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "out"
    out.mkdir()
    put(base, "config.json", CONFIG)
    put(base, "generation_config.json", {"eos_token_id": 1, "temperature": 0.6})
    put(base, "LICENSE", "terms")
    put_tokenizer(base, "base's", eos_token="<end>")
    put(run, "adapter_config.json", {})
    put(run, "adapter_model.safetensors", "weights")

    def make(adapter: Path = run, **changes: Any) -> MergePlan:
        outputs = (
            Output("model.embed_tokens.weight", "BF16", (4, 2), None),
            Output("score.weight", "F32", (1, 2), None),
        )
        fields: dict[str, Any] = {
            "mode": "stream", "reason": "", "adapter": adapter, "adapter_config": {"peft_type": "LORA"}, "base": base,
            "base_name": "org/base", "base_revision": None, "base_config": CONFIG, "dtype": None,
            "shards": (Shard("model.safetensors", outputs),),
        }  # fmt: skip
        return MergePlan(**fields | changes)

    return make


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_config_tells_the_truth(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    write_serving_files(plan(config_changes={"tie_word_embeddings": False, "vocab_size": 6}), tmp_path / "out")
    config = read(tmp_path / "out", "config.json")
    assert config == {
        "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": 6, "eos_token_id": 1,
        "tie_word_embeddings": False,
    }  # fmt: skip


def test_changes_go_where_the_text_model_is_described(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    nested = {"architectures": [], "dtype": "float32", "text_config": {"vocab_size": 4, "dtype": "float32"}}
    write_serving_files(plan(base_config=nested, config_changes={"vocab_size": 6}), tmp_path / "out")
    config = read(tmp_path / "out", "config.json")
    assert config["text_config"] == {"vocab_size": 6, "dtype": "bfloat16"}
    assert config["dtype"] == "bfloat16"
    assert "vocab_size" not in config


def test_the_tokenizer_that_was_trained_with(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    out = tmp_path / "out"
    put_tokenizer(tmp_path / "run", "trained", eos_token={"content": "<turn>"}, pad_token="<pad>")
    write_serving_files(plan(), out)
    assert (out / "chat_template.jinja").read_text() == "trained"
    assert read(out, "generation_config.json") == {"eos_token_id": [2, 1], "temperature": 0.6, "pad_token_id": 3}
    assert read(out, "config.json")["eos_token_id"] == [2, 1]
    assert read(out, "config.json")["pad_token_id"] == 3
    assert (out / "LICENSE").read_text() == "terms"


def test_without_one_the_base_s(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    write_serving_files(plan(), tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "base's"
    assert read(tmp_path / "out", "generation_config.json")["eos_token_id"] == 1


def test_a_checkpoint_has_that_of_its_run(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    put_tokenizer(tmp_path / "run", None, eos_token="<turn>")
    put(tmp_path / "run/checkpoint-5", "adapter_config.json", {})
    made = plan(tmp_path / "run/checkpoint-5")
    assert tokenizer_folder(made) == tmp_path / "run"
    write_serving_files(made, tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "base's", "a chat cannot be served without one"


def test_the_head_of_a_reward_model(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    write_serving_files(plan(adapter_config={"peft_type": "LORA", "task_type": "SEQ_CLS"}), tmp_path / "out")
    config = read(tmp_path / "out", "config.json")
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}


def test_the_card_names_where_all_came_from(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    put(tmp_path / "run", "recipe.resolved.yaml", "method: sft\n")
    write_serving_files(plan(notes=("not tied any more",)), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for text in (
        "base_model: org/base",
        str(tmp_path / "run"),
        hashlib.sha256(b"method: sft\n").hexdigest(),
        hashlib.sha256(b"weights").hexdigest(),
        "not tied any more",
    ):
        assert text in card
    write_serving_files(plan(base_name=str(tmp_path / "base")), tmp_path / "out")
    assert "base_model" not in (tmp_path / "out/README.md").read_text(), "no repository of the hub"


def test_what_peft_wrote_is_kept(plan: Callable[..., MergePlan], tmp_path: Path) -> None:
    put(tmp_path / "out", "config.json", CONFIG | {"vocab_size": 9, "dtype": "float32"})
    write_serving_files(plan(mode="handover"), tmp_path / "out")
    assert read(tmp_path / "out", "config.json")["vocab_size"] == 9
