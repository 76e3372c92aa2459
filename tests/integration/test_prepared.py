"""Rows that were turned into tokens before the launch are what the trainer would have made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptcli.recipe.model import Recipe

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PEFT = {"type": "lora", "r": 4, "target_modules": "all-linear"}


@pytest.fixture(autouse=True, scope="module")
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setenv("PTCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe(folder: Path, method: str, data: str, training: dict[str, Any], **sections: Any) -> Recipe:
    entry = {"path": f"builtin:{data}", "take": 12}
    return Recipe.model_validate(
        {
            "name": "x",
            "method": method,
            "output_dir": str(folder / "run"),
            "model": {"path": "builtin:tiny", **sections.pop("model", {})},
            "data": {"train": [entry], "eval": sections.pop("evaluation", [entry | {"take": 3}])},
            "training": {
                "max_steps": 1, "bf16": False, "report_to": "none", "eval_strategy": "no", "save_strategy": "no",
                "per_device_train_batch_size": 2, "logging_steps": 1, **training,
            },
            "launch": {"device": "cpu"},
            **sections,
        }
    )  # fmt: skip


CASES = {
    "sft": ("sft", "arithmetic-messages", {}, {}),
    "sft text": ("sft", "arithmetic-text", {"max_length": 24}, {}),
    "sft completion": ("sft", "arithmetic-prompt-completion", {"shuffle_dataset": True}, {}),
    "sft marked": ("sft", "arithmetic-messages", {"assistant_only_loss": True}, {"marked": True}),
    "sft packed": ("sft", "arithmetic-messages", {"packing": True, "max_length": 64, "eval_packing": False}, {}),
    "sft named": ("sft", "arithmetic-messages", {}, {"evaluation": {"a/b": [{"path": "builtin:arithmetic-messages"}]}}),
    "dpo": ("dpo", "arithmetic-preference", {"max_length": 48}, {"peft": PEFT}),
    "kto": ("kto", "arithmetic-unpaired", {}, {"peft": PEFT}),
    "kto pairs": ("kto", "arithmetic-preference", {"loss_type": "apo_zero_unpaired"}, {"peft": PEFT}),
    "reward": ("reward", "arithmetic-preference", {"max_length": 40}, {}),
    "cpo": ("cpo", "arithmetic-preference", {"max_length": 64}, {}),
    "orpo": ("orpo", "arithmetic-preference", {}, {}),
    "bco": ("bco", "arithmetic-unpaired", {}, {"peft": PEFT}),
    "prm": ("prm", "arithmetic-steps", {}, {}),
}


USUAL = ("sft", "sft packed", "dpo", "kto", "reward", "cpo", "bco", "prm")
"""Those that every run of the tests tries; the others are in tests/long."""


@pytest.mark.parametrize("case", USUAL)
def test_the_same_as_the_trainer_makes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    the_same_as_the_trainer_makes(case, tmp_path, monkeypatch)


def the_same_as_the_trainer_makes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptcli.train.build import build_trainer
    from ptcli.train.prepared import prepare

    method, data, training, extra = CASES[case]
    sections = dict(extra)
    if sections.pop("marked", False):
        (tmp_path / "marked.jinja").write_text(TEMPLATE)
        sections["model"] = {"chat_template": str(tmp_path / "marked.jinja")}
    given = recipe(tmp_path, method, data, training, **sections)

    plain = build_trainer(given)
    expected, losses = rows_of(plain), train(plain)

    folder = prepare(given)
    assert folder is not None
    assert prepare(given) == folder
    refuse_to_prepare(monkeypatch, type(plain))
    kept = build_trainer(given)
    assert rows_of(kept) == expected
    assert len(kept.train_dataset) > 0
    assert train(kept) == losses


def rows_of(trainer: Any) -> list[Any]:
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    return [
        (name, rows.column_names, [dict(row) for row in rows])
        for name, rows in {"train": trainer.train_dataset, **sets}.items()
    ]


def train(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def refuse_to_prepare(monkeypatch: pytest.MonkeyPatch, trainer_class: type) -> None:
    """From here on, only single rows are turned into tokens: those that are compared."""
    from datasets import Dataset

    original = Dataset.map

    def only_one(rows: Any, *rest: Any, **named: Any) -> Any:
        assert len(rows) <= 2, "the trainer prepares its rows once more"
        return original(rows, *rest, **named)

    monkeypatch.setattr(Dataset, "map", only_one)


def test_prompts_as_tokens(tmp_path: Path) -> None:
    from ptcli.methods import METHODS
    from ptcli.train.build import build_arguments
    from ptcli.train.data import load_data
    from ptcli.train.prepared import load, prepare
    from ptcli.train.processors import load_processor
    from ptcli.train.prompts import tokenize_prompts

    given = recipe(tmp_path, "ppo", "arithmetic", {}, reward_model={"path": "builtin:tiny"})
    assert prepare(given)
    arguments = build_arguments(given, METHODS["ppo"], by_path=False)
    processor = load_processor(given.model, generates=True)
    train, evaluation = load_data(given)
    found = load(given, arguments, processor, train, evaluation)
    assert found
    assert list(found.tokens["train"]) == list(tokenize_prompts(train, processor, "data.train"))


def test_what_changes_the_tokens_changes_the_folder(tmp_path: Path) -> None:
    from ptcli.train.prepared import prepare

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{n}+1={n + 1}"}) + "\n" for n in range(5)))
    template = tmp_path / "own.jinja"
    template.write_text(TEMPLATE)
    entry = {"path": str(rows)}

    def folder(training: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **keys: Any) -> Path:
        given = recipe(tmp_path, "sft", "arithmetic-text", training or {}, model=model or {}, evaluation=None)
        data = {"train": [entry | keys]}
        found = prepare(Recipe.model_validate({**given.model_dump(), "data": data}))
        assert found
        return found

    first = folder()
    assert folder({"learning_rate": 0.1, "per_device_train_batch_size": 4}) == first
    others = [
        folder({"max_length": 5}), folder(model={"chat_template": str(template)}), folder(take=3), folder(shuffle=True),
        folder(rename={"text": "text"}),
    ]  # fmt: skip
    rows.write_text(json.dumps({"text": "another"}) + "\n")
    assert len({first, *others, folder()}) == 7


def test_what_was_changed_is_made_again(tmp_path: Path) -> None:
    from ptcli.train.build import build_trainer
    from ptcli.train.prepared import prepare

    given = recipe(tmp_path, "sft", "arithmetic-text", {"max_length": 30})
    folder = prepare(given)
    assert folder
    about = json.loads((folder / "about.json").read_text())
    about["first"]["train"][0]["input_ids"][0] += 1
    (folder / "about.json").write_text(json.dumps(about))
    assert len(build_trainer(given).train_dataset) == 12
    assert not folder.exists()

    folder = prepare(given)
    assert folder
    (folder / "0" / "state.json").unlink()
    assert len(build_trainer(given).train_dataset) == 12
    assert not folder.exists()


def test_no_secret_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptcli.train.prepared import prepare

    secret = "hf_" + "s" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    folder = prepare(recipe(tmp_path, "sft", "arithmetic-text", {"hub_token": "${oc.env:HF_TOKEN}"}))
    assert folder
    assert all(secret.encode() not in file.read_bytes() for file in folder.rglob("*") if file.is_file())
