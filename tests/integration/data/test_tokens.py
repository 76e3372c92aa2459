"""What is said to be trained of a row is what the method's real trainer trains, token by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ptcli.data.context import context_of
from ptcli.data.tokens import Encoded, Sample, TokenChecker, limits_of, load_tokenizer, render_show
from ptcli.data.tokens.show import pieces
from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import Recipe

Row = dict[str, Any]
Line = tuple[list[int], list[bool]]
"""Tokens of a sequence, and which are trained."""

IGNORED = -100
REWARD = "def plain(completions, **columns):\n    return [0.0] * len(completions)\n"
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# --- rows ------------------------------------------------------------------------------------------------------------


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief — naïve, 你好 🙂."}
LONG = "How many wells are there in the long survey of Lowen, and how many of them are dry? " * 3
PROMPTS = [
    [user("2+2=")],
    [SYSTEM, user("How many wells?\n\n")],
    [user("One?"), answer("No, two."), user("Sure?")],
    [user(LONG)],
]
ANSWERS = ["4", "There are 16 wells. 🙂", "Yes, I am sure: " + "two " * 30, "Many."]
WRONG = ["5", "There are 17 wells.", "No. " * 20, "Few, I believe."]
CHATS = list(zip(PROMPTS, ANSWERS, WRONG, strict=True))
TEXTS = [
    ("2+2=", " 4", " 5"),
    ("The answ", "er is 8.", "er is nine."),
    ("Naïve 你好: ", "🙂 yes", "no"),
    (LONG, "x", "y"),
]


def messages() -> list[Row]:
    return [{"messages": [*prompt, answer(text)]} for prompt, text, _ in CHATS]


def pair_chats(*, prompt: bool = True) -> list[Row]:
    if prompt:
        return [{"prompt": p, "chosen": [answer(c)], "rejected": [answer(r)]} for p, c, r in CHATS]
    return [{"chosen": [*p, answer(c)], "rejected": [*p, answer(r)]} for p, c, r in CHATS]


def pair_texts(*, prompt: bool = True) -> list[Row]:
    if prompt:
        return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TEXTS]
    return [{"chosen": p + c, "rejected": p + r} for p, c, r in TEXTS]


def completion_chats() -> list[Row]:
    return [{"prompt": p, "completion": [answer(c)], "label": i % 2 == 0} for i, (p, c, _) in enumerate(CHATS)]


def completion_texts() -> list[Row]:
    return [{"prompt": p, "completion": c, "label": i % 2 == 0} for i, (p, c, _) in enumerate(TEXTS)]


def steps() -> list[Row]:
    return [{"prompt": p, "completions": [c, c + " then", "so"], "labels": [True, False, True]} for p, c, _ in TEXTS]


def only(rows: Sequence[Row], *columns: str) -> list[Row]:
    return [{name: row[name] for name in columns} for row in rows]


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped tiny model's shape with a tokenizer that merges, and one that writes BOS before text."""
    import transformers

    from ptcli.builtin import MODEL

    folder = tmp_path_factory.mktemp("bos-model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    tokenizer.train_new_from_iterator(["The answer is 8. There are 16 wells. "] * 20, 300).save_pretrained(folder)
    _add_bos(folder)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(MARKED)
    return folder


def _add_bos(folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    number = 1 + max(*found["model"]["vocab"].values(), *(each["id"] for each in found["added_tokens"]))
    found["added_tokens"].append({**found["added_tokens"][0], "id": number, "content": "<s>", "special": True})
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(found))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))


@dataclass
class Run:
    """Rows with the real trainer that read them, and the checker that only says it would."""

    trainer: Any
    checker: TokenChecker
    rows: list[Row]
    tokenizer: Any
    encoded: list[Encoded] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        return [sample for each in self.encoded if not each.dropped for sample in each.samples]

    @property
    def lines(self) -> list[Line]:
        return [(sample.ids, sample.flags) for sample in self.samples]


@pytest.fixture
def build(model: Path, tmp_path: Path) -> Callable[..., Run]:
    """Builds a method's trainer on rows of ours, and the checker of the same recipe."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path / "datasets"
    datasets.disable_progress_bars()

    def make(method: str, rows: list[Row], **training: Any) -> Run:
        from ptcli.train.build import build_trainer

        recipe = _recipe(method, rows, model, tmp_path, training)
        trainer = build_trainer(recipe)
        tokenizer = load_tokenizer(recipe)
        context = context_of(recipe, "train", tokenizer=True)
        checker = TokenChecker(context, tokenizer, limits_of(recipe), rows[0])
        encoded = [each for row in rows if (each := checker.encode(row)) is not None]
        assert len(encoded) == len(rows)
        checker.add(list(enumerate(rows)))
        assert (checker.tally.rows, checker.tally.skipped) == (len(rows), 0)
        return Run(trainer, checker, rows, tokenizer, encoded)

    return make


def _recipe(method: str, rows: list[Row], model: Path, folder: Path, training: dict[str, Any]) -> Recipe:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARD)
    row, spec, data = METHODS[method], {"path": str(model)}, {"path": str(folder / "rows.jsonl")}
    usual = {"per_device_train_batch_size": 4, "max_steps": 1, "num_generations": 2, "total_episodes": 8}
    usual |= {"max_completion_length": 4, "max_new_tokens": 4, "response_length": 4, "num_mini_batches": 1}
    known = fields(row.config) if row.online else ("per_device_train_batch_size",)
    sections: dict[str, Any] = dict.fromkeys((*row.needs, *row.stand_ins), spec)
    if "rewards" in row.needs:
        sections["rewards"] = [{"use": f"{folder}/rewards.py:plain"}]
    return Recipe.model_validate(
        {
            "name": method,
            "method": method,
            "output_dir": str(folder / "out"),
            "model": spec,
            "data": {"train": [data], **({"eval": [data]} if row.wants_eval else {})},
            "launch": {"device": "cpu"},
            "training": {name: value for name, value in usual.items() if name in known} | training,
            **sections,
        }
    )


def collate(run: Run) -> list[dict[str, Any]]:
    """Every prepared row as a batch of its own."""
    dataset, collator = run.trainer.train_dataset, run.trainer.data_collator
    names = run.trainer._signature_columns or dataset.column_names
    kept = [name for name in dataset.column_names if name in names] or dataset.column_names
    return [collator([{name: row[name] for name in kept}]) for row in dataset]


def by_labels(ids: Any, labels: Any, attention: Any = None) -> list[Line]:
    attention = attention if attention is not None else ids == ids
    return [
        (row[mask.bool()].tolist(), (label[mask.bool()] != IGNORED).tolist())
        for row, label, mask in zip(ids, labels, attention, strict=True)
    ]


def by_mask(batch: dict[str, Any]) -> list[Line]:
    labels = batch["completion_mask"].clone()
    labels[labels == 0] = IGNORED
    return by_labels(batch["input_ids"], labels, batch["attention_mask"])


# --- methods that train on rows --------------------------------------------------------------------------------------

SFT_ROWS = {
    "messages": (messages(), {}),
    "assistant only": (messages(), {"assistant_only_loss": True}),
    "chats": (only(completion_chats(), "prompt", "completion"), {}),
    "texts": (only(completion_texts(), "prompt", "completion"), {"truncation_mode": "keep_end"}),
    "whole texts": ([{"text": p + c} for p, c, _ in TEXTS], {}),
    "everything": (only(completion_texts(), "prompt", "completion"), {"completion_only_loss": False}),
    "tokens": ([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}], {}),
}


@pytest.mark.parametrize("kind", SFT_ROWS)
def test_sft(kind, build):
    rows, training = SFT_ROWS[kind]
    run = build("sft", rows, max_length=96, **training)
    got = [line for batch in collate(run) for line in by_labels(batch["input_ids"], batch["labels"])]
    assert got == run.lines
    assert all(any(flags) for _, flags in got)


def test_sft_packed(build):
    run = build("sft", messages(), max_length=128, packing=True)
    got = [line for batch in collate(run) for line in by_labels(batch["input_ids"], batch["labels"])]
    packed = sorted(token for ids, _ in got for token in ids)
    assert packed == sorted(token for sample in run.samples for token in sample.ids)


@pytest.mark.parametrize("rows", [pair_chats(), pair_texts(), pair_chats(prompt=False), pair_texts(prompt=False)])
def test_dpo(rows, build):
    run = build("dpo", rows, max_length=96)
    assert [line for batch in collate(run) for line in by_mask(batch)] == run.lines
    assert any(each.dropped for each in run.encoded)
    assert any(sample.cut for sample in run.samples) or not isinstance(rows[0]["chosen"], list)


def test_dpo_that_keeps_the_end(build):
    run = build("dpo", pair_chats(), max_length=96, truncation_mode="keep_end")
    assert [line for batch in collate(run) for line in by_mask(batch)] == run.lines
    assert not any(each.dropped for each in run.encoded)


@pytest.mark.parametrize("rows", [completion_chats(), completion_texts(), pair_chats(), pair_texts(prompt=False)])
def test_kto(rows, build):
    run = build("kto", rows, max_length=96)
    got = [line for batch in collate(run) for line in by_mask(batch)]
    assert sorted(got) == sorted(run.lines)


@pytest.mark.parametrize("method", ["cpo", "orpo"])
@pytest.mark.parametrize("rows", [pair_chats(), pair_texts(), pair_texts(prompt=False)])
def test_cpo_and_orpo(method, rows, build):
    run = build(method, rows, max_length=200)
    got = []
    for row in run.trainer.train_dataset:
        for name in ("chosen", "rejected"):
            ids, labels = row[f"{name}_input_ids"], row[f"{name}_labels"]
            got.append((ids, [label != IGNORED for label in labels]))
    assert got == run.lines
    assert "cpo-truncation" in {rule for rule, _, _ in run.checker.tally.hits}


@pytest.mark.parametrize("rows", [completion_chats(), completion_texts(), pair_chats()])
def test_bco(rows, build):
    run = build("bco", rows, max_length=96)
    dataset = run.trainer.train_dataset
    got = [(row["completion_input_ids"], [each != IGNORED for each in row["completion_labels"]]) for row in dataset]
    assert sorted(got) == sorted(run.lines)
    assert "bco-truncation" in {rule for rule, _, _ in run.checker.tally.hits}


@pytest.mark.parametrize("rows", [pair_chats(), pair_texts(), pair_texts(prompt=False)])
def test_reward(rows, build):
    run = build("reward", rows, max_length=200)
    got = [
        ids[mask.bool()].tolist()
        for batch in collate(run)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert got == [sample.ids for sample in run.samples]
    assert any(each.dropped for each in run.encoded)


@pytest.mark.parametrize("training", [{}, {"train_on_last_step_only": True, "max_completion_length": 9}])
def test_prm(training, build):
    run = build("prm", steps(), max_length=96, **training)
    got = [(row["input_ids"], [each != IGNORED for each in row["labels"]]) for row in run.trainer.train_dataset]
    assert got == run.lines


def test_gkd(build):
    rows = [row for row in messages() if len(row["messages"][-1]["content"]) < 90]
    run = build("gkd", rows, max_length=96)
    got = []
    for row in run.trainer.train_dataset:
        batch = run.trainer.data_collator([row])
        got += by_labels(batch["input_ids"], batch["labels"], batch["attention_mask"])
    assert got == run.lines
    assert any(sample.cut for sample in run.samples)


# --- methods that generate -------------------------------------------------------------------------------------------


class _Asked(Exception):
    """The policy is asked to generate, which is all that is wanted to know."""


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[list[int]]]:
    """Trains until the policy is asked to generate; the prompts that it is asked with."""
    import transformers

    prompts: list[list[int]] = []

    def generate(self: Any, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        prompts.extend(ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True))
        raise _Asked

    monkeypatch.setattr(transformers.generation.utils.GenerationMixin, "generate", generate)

    def train(trainer: Any) -> list[list[int]]:
        with pytest.raises(_Asked):
            trainer.train()
        return prompts

    return train


ONLINE = [name for name, row in METHODS.items() if row.online and name != "gkd"]
SHORT = [*PROMPTS[:3], [user("Why?")]]


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("kind", ["chats", "texts"])
def test_prompts_that_are_generated_from(method, kind, build, generated):
    prompts: list[Any] = SHORT if kind == "chats" else ["2+2=", "The answ", "Naïve 你好 🙂", "How many wells?\n"]
    batch = 8 if METHODS[method].batching == "generation" else 4
    run = build(method, [{"prompt": prompt} for prompt in prompts], per_device_train_batch_size=batch)
    got = generated(run.trainer)
    assert {tuple(ids) for ids in got} == {tuple(sample.ids) for sample in run.samples}
    assert not any(sample.trained for sample in run.samples)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_what_is_shown_is_what_is_trained(build):
    run = build("dpo", pair_chats(), max_length=96)
    for encoded in run.encoded:
        for sample in encoded.samples:
            trained = [token for kind, ids in pieces(sample) for token in ids if kind == "trained"]
            assert trained == [token for token, flag in zip(sample.ids, sample.flags, strict=True) if flag]
    shown = render_show(run.encoded[0], run.tokenizer, colour=False)
    assert "<|im_start|>assistant\n[[4<|im_end|>]]" in shown


def _chats() -> Iterator[list[Row]]:
    for prompt, text, _ in CHATS:
        yield [*prompt, answer(text)]


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3", "gemma", "phi3", "deepseekv3", "glm4moe", "lfm2"])
def test_rendering_and_tokens_are_those_of_transformers(name, model):
    from ptcli.data.tokens.codec import Codec
    from ptcli.recipe.templates import read_named_template

    template = read_named_template(name)
    assert template is not None
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template.text
    codec = Codec(tokenizer)
    chats = [chat for chat in _chats() if chat[0]["role"] == "user"]
    texts = [codec.render(chat) for chat in chats] + [codec.render(chat[:-1], prompts=True) for chat in chats]
    theirs = [tokenizer.apply_chat_template(chat)["input_ids"] for chat in chats]
    theirs += [tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"] for chat in chats]
    assert codec.tokenize(texts, special=False) == theirs
    assert codec.tokenize([LONG, "x"], special=True) == tokenizer([LONG, "x"])["input_ids"]
    goes_on = [tokenizer.apply_chat_template(chat, continue_final_message=True, tokenize=False) for chat in chats]
    assert [codec.render_open(chat) for chat in chats] == goes_on
