"""What a recipe says of its models, on real trainers; and that what is read without the libraries is what they read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch

from ptcli.builtin import MODEL
from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.plan.training_rules import FLASH
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.rendering import find_fault
from ptcli.recipe.templates import read_named_template, shipped_templates
from ptcli.recipe.tokenizers import read_vocabulary
from ptcli.train import start, worker
from ptcli.train.fresh import load_fresh
from ptcli.train.processors import load_processor

FRESH = {"path": "builtin:tiny", "from": "config"}
REWARD = "def length(completions, **columns):\n    return [float(len(each[0]['content'])) for each in completions]\n"


@pytest.fixture(autouse=True, scope="module")
def quiet_and_offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


def describe(method: str, output_dir: Path, **sections: Any) -> Recipe:
    """Two short steps on the shipped model and data."""
    row = METHODS[method]
    small = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "max_length": 64,
        "num_generations": 2,
        "max_completion_length": 8,
        "save_strategy": "no",
    }
    known = fields(row.config)
    base: dict[str, Any] = {
        "name": method,
        "method": method,
        "output_dir": str(output_dir),
        "model": {"path": "builtin:tiny", "dtype": "float32"},
        "data": {"train": [{"path": row.smoke_data, "take": 16}]},
        "launch": {"device": "cpu"},
        "training": {key: value for key, value in small.items() if key in known} | sections.pop("training", {}),
    }
    return Recipe.model_validate(base | sections)


def train(method: str, output_dir: Path, **sections: Any) -> Any:
    return worker.train(describe(method, output_dir, **sections))


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def first_loss(output_dir: Path) -> float:
    return metrics(output_dir)[0]["loss"]


# --- from: config ----------------------------------------------------------------------------------------------------


def test_random_weights_follow_from_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train("sft", tmp_path / name, model=FRESH, seed=seed)
    first = {name: first_loss(tmp_path / name) for name in ("a", "b", "c")}
    assert first["a"] == first["b"]
    assert first["a"] != first["c"]
    assert first["a"] == pytest.approx(5.606, abs=0.3)  # ln 272: of 272 tokens, a random model favours none
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_machines_that_share_a_folder_take_one_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of each writes; another one is ready while ours still writes."""
    theirs = tmp_path / "run" / "start" / "config.json"

    def load_late(*arguments: Any, **options: Any) -> Any:
        theirs.parent.mkdir()
        theirs.write_text("theirs")
        return load_processor(*arguments, **options)

    monkeypatch.setattr(start, "load_processor", load_late)
    recipe = start.with_start(describe("sft", tmp_path / "run", model=FRESH))
    assert recipe.model.path == str(theirs.parent)
    assert theirs.read_text() == "theirs"
    assert os.listdir(tmp_path / "run") == ["start"]


def test_a_folder_without_weights_is_enough(tmp_path: Path) -> None:
    """Also for a head that the config does not have."""
    folder = tmp_path / "architecture"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    trainer = train("reward", tmp_path / "run", model={"path": str(folder), "from": "config"})
    assert trainer.model.config.num_labels == 1
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_reference_is_the_same_random_model(tmp_path: Path) -> None:
    train("dpo", tmp_path / "dpo", model=FRESH)
    assert metrics(tmp_path / "dpo")[0]["rewards/margins"] == 0.0
    assert first_loss(tmp_path / "dpo") == pytest.approx(0.693147, abs=1e-5)
    (tmp_path / "rewards.py").write_text(REWARD)
    rewards = [{"use": f"{tmp_path}/rewards.py:length"}]
    train("grpo", tmp_path / "grpo", model=FRESH, rewards=rewards, training={"beta": 0.1})
    assert metrics(tmp_path / "grpo")[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_an_adapter_on_quantised_random_weights(tmp_path: Path) -> None:
    model = FRESH | {"quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    train("sft", tmp_path, model=model, peft={"r": 4, "target_modules": "all-linear"})
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "start")  # and not the path, which has other weights


def test_fresh_models_draw_nothing_from_the_run(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    before = torch.get_rng_state()
    arguments = {"dtype": "bfloat16", "attn_implementation": "eager", "num_hidden_layers": 1, "device_map": None}
    first = load_fresh(str(MODEL), "AutoModelForCausalLM", arguments)
    assert torch.equal(before, torch.get_rng_state())
    second = load_fresh(str(MODEL), "AutoModelForCausalLM", arguments)
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert (first.dtype, first.config._attn_implementation, len(first.model.layers)) == (torch.bfloat16, "eager", 1)
    assert first.generation_config.eos_token_id == 264
    assert not first.training


# --- tokenizers and templates ----------------------------------------------------------------------------------------


def test_a_template_file_and_tokens_are_trained_with_and_saved(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.role[0] }}: {{ m.content }}<|im_end|>{% endfor %}")
    model = {
        "path": "builtin:tiny",
        "chat_template": str(template),
        "eos_token": "<|im_start|>",
        "pad_token": "<|im_end|>",
    }
    trainer = train("sft", tmp_path / "run", model=model)
    tokenizer = trainer.processing_class
    assert tokenizer.decode(next(iter(trainer.train_dataset))["input_ids"]).startswith("u: ")
    saved = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    assert (saved["eos_token"], saved["pad_token"]) == ("<|im_start|>", "<|im_end|>")
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == template.read_text()


def test_what_only_the_worker_can_read_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    """As with a hub model, whose files are not here when the recipe is read."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    for changes, words in [
        ({"eos_token": "<none>"}, "model.eos_token: `<none>` is not in the tokenizer's vocabulary"),
        ({"chat_template": "none_such"}, "there is no file or TRL template `none_such`"),
    ]:
        with pytest.raises(WorkError, match=words):
            load_processor(ModelSpec(path=str(folder), **changes), generates=True)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m }")
    with pytest.raises(WorkError, match="line 2, does not parse: unexpected '}'"):
        load_processor(ModelSpec(path=str(folder)), generates=True)


def test_the_vocabulary_that_is_read_is_the_tokenizers() -> None:
    from transformers import AutoTokenizer

    assert read_vocabulary(MODEL) == AutoTokenizer.from_pretrained(MODEL).get_vocab()


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m.content }", "{{ a | none_such }}", "{% generation %}x"]
)
def test_what_does_not_parse_here_does_not_parse_there(template: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    assert "does not parse" in str(find_fault(template))
    with pytest.raises(jinja2.TemplateSyntaxError):
        _compile_jinja_template(template)


def test_the_flash_family_and_the_known_templates_are_trls() -> None:
    from transformers import AutoTokenizer
    from trl.chat_template_utils import get_training_chat_template
    from trl.trainer.sft_trainer import FLASH_ATTENTION_VARIANTS

    from ptcli.plan.training_rules import _has_training_form

    assert set(FLASH) == FLASH_ATTENTION_VARIANTS
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    known, wrong = 0, []
    for name in shipped_templates():
        template = read_named_template(name)
        assert template is not None
        if template.marks_answers:
            continue
        tokenizer.chat_template = template.text
        try:
            patched = get_training_chat_template(tokenizer) is not None
        except ValueError:
            patched = False
        known += patched
        wrong += [name] if patched != _has_training_form(template) else []
    assert wrong == []
    assert known >= 20


# --- packing ---------------------------------------------------------------------------------------------------------


def test_packed_rows_do_not_see_each_other_on_a_cpu(tmp_path: Path) -> None:
    """The loss of packed rows is that of the same rows alone: transformers masks by the positions. TRL warns of it."""
    trainer = train(
        "sft", tmp_path, training={"packing": True, "max_steps": 1, "max_length": 128, "learning_rate": 0.0}
    )
    (packed, *_) = trainer.train_dataset
    assert len(packed["seq_lengths"]) >= 2
    rows, start = [], 0
    for length in packed["seq_lengths"]:
        row = slice(start, start + length)
        rows.append({name: packed[name][row] for name in ("input_ids", "labels")} | {"seq_lengths": [length]})
        start += length
    together = _total_loss(trainer, packed)
    assert together == pytest.approx(sum(_total_loss(trainer, row) for row in rows), rel=1e-4)


def _total_loss(trainer: Any, row: dict[str, Any]) -> float:
    """Cross-entropy summed over the row's tokens; the first token of a text has no prediction."""
    batch = trainer.data_collator([row])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), batch)
    counted = sum(length - 1 for length in row["seq_lengths"])
    return loss.item() * counted
