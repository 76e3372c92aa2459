"""The token rules, each with rows that break it and rows that only look as if they did."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptcli.builtin import MODEL
from ptcli.data.context import context_of
from ptcli.data.model import Finding, Profile, Row
from ptcli.data.tokens import (
    TokenChecker,
    conclude_tokens,
    eval_mask_mismatch,
    limits_of,
    load_tokenizer,
    merge,
    render_show,
    summarize,
)
from ptcli.errors import RequestError, WorkError
from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe
from ptcli.recipe.templates import read_named_template

PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LENIENT = PLAIN.replace("' + m['content'] + '", "' }}{{ m.content }}{{ '")
THINKS = PLAIN.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
USER = {"role": "user", "content": "How many wells?"}
ANSWER = {"role": "assistant", "content": "There are 16 wells."}
LONG = {"role": "user", "content": "How many wells? " * 20}
CHAT = [USER, ANSWER]
CALL = {"type": "function", "function": {"name": "count_wells", "arguments": {}}}

Check = Callable[..., dict[str, Finding]]


def recipe_of(folder: Path | str, method: str = "sft", **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "method": method,
            "output_dir": "/x",
            "model": {"path": str(folder), **sections.pop("model", {})},
            "data": {"train": [{"path": "/rows.jsonl"}]},
            **sections,
        }
    )


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped tokenizer with a few merges, in a folder without a model."""
    found = json.loads((MODEL / "tokenizer.json").read_text())
    vocabulary, merges = found["model"]["vocab"], found["model"]["merges"]
    number = 1 + max(*vocabulary.values(), *(each["id"] for each in found["added_tokens"]))
    for left, right in ("er", "an", "sw", ("an", "sw"), ("answ", "er")):
        merges.append([left, right])
        vocabulary[left + right] = number
        number += 1
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(found))
    (folder / "tokenizer_config.json").write_bytes((MODEL / "tokenizer_config.json").read_bytes())
    (folder / "chat_template.jinja").write_text(PLAIN)
    return folder


@pytest.fixture
def check(tokenizer_files: Path, tmp_path: Path) -> Check:
    """The findings on rows, by rule. `template`, `config` (the model's) and `change` say with what they are read."""

    def run(method: str, rows: list[Row], **given: Any) -> dict[str, Finding]:
        folder = _folder(tokenizer_files, tmp_path, given.pop("template", PLAIN), given.pop("config", None))
        change = given.pop("change", lambda tokenizer: None)
        recipe = recipe_of(folder, method, **given)
        tokenizer = load_tokenizer(recipe)
        change(tokenizer)
        context = context_of(recipe, "train", tokenizer=True)
        checker = TokenChecker(context, tokenizer, limits_of(recipe))
        checker.add(list(enumerate(rows)))
        found = conclude_tokens(checker.tally, context)
        assert summarize(checker.tally, context) or not checker.tally.rows
        return {finding.rule: finding for finding in found}

    return run


def _folder(source: Path, folder: Path, template: str, config: dict[str, Any] | None) -> Path:
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    if not template:
        (folder / "chat_template.jinja").unlink()
    (folder / "config.json").unlink(missing_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def limit(tokens: int | None, **others: Any) -> dict[str, Any]:
    return {"training": {"max_length": tokens, **others}}


def severities(found: dict[str, Finding]) -> dict[str, str]:
    return {rule: finding.severity for rule, finding in found.items()}


# --- templates -------------------------------------------------------------------------------------------------------


def test_good_rows_have_no_finding(check):
    pair = {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "None."}]}
    rows: dict[str, list[Row]] = {
        "sft": [{"messages": CHAT}, {"messages": [USER, ANSWER, USER, ANSWER]}],
        "dpo": [pair],
        "kto": [pair, {"prompt": [USER], "completion": [ANSWER], "label": True}],
        "cpo": [pair, {"prompt": "2+2=", "chosen": " 4", "rejected": " 5"}],
        "bco": [pair],
        "reward": [pair],
        "grpo": [{"prompt": [USER]}],
        "xpo": [{"prompt": "2+2="}],
        "ppo": [{"prompt": [USER]}],
        "gkd": [{"messages": CHAT}],
        "prm": [{"prompt": "2+2=", "completions": ["It is", "4"], "labels": [True, True]}],
    }
    for method, each in rows.items():
        assert check(method, each) == {}, method


def test_no_template(check):
    found = check("grpo", [{"prompt": [USER]}, {"prompt": "text"}], template="")
    assert severities(found) == {"missing-chat-template": "error"}
    assert (found["missing-chat-template"].count, found["missing-chat-template"].rows) == (1, (0,))


def test_a_template_that_refuses_a_row(check):
    strict = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + PLAIN
    rows = [{"messages": CHAT}, {"messages": [{"role": "system", "content": "Be brief."}, *CHAT]}]
    found = check("sft", rows, template=strict)
    assert severities(found) == {"template-raises": "error"}
    assert found["template-raises"].rows == (1,)
    assert "no system" in found["template-raises"].message


def test_rows_that_no_template_could_render_are_left_to_the_structure_rules(check):
    broken = [
        {"content": "x"},
        {"role": "user"},
        {"role": "user", "content": None},
        "text",
        {"role": "user", "content": 3},
    ]
    assert check("sft", [{"messages": [USER, each]} for each in broken]) == {}


def test_contents_that_are_not_rendered(check):
    deaf = "{% for m in messages if m.role in ('user', 'assistant') %}" + PLAIN.partition("%}")[2]
    system, developer = ({"role": role, "content": "Be brief."} for role in ("system", "developer"))
    assert severities(check("sft", [{"messages": [developer, *CHAT]}], template=deaf)) == {"unknown-role": "error"}
    assert check("sft", [{"messages": [developer, *CHAT]}]) == {}
    found = check("sft", [{"messages": [system, *CHAT]}], template=deaf)
    assert severities(found) == {"template-drops-content": "warning"}
    mute = PLAIN.replace("m['content']", "(m['content'] if m['role'] == 'user' else 'ok')")
    assert severities(check("sft", [{"messages": CHAT}], template=mute)) == {"template-drops-content": "error"}


def test_white_space_that_is_rendered_in_another_way_is_no_loss(check):
    trimmed = PLAIN.replace("m['content']", "m['content'] | trim")
    chat = [{"role": "user", "content": "  How\n\nmany?  \n"}, ANSWER]
    assert check("sft", [{"messages": chat}], template=trimmed) == {}


def test_reasoning_that_is_not_rendered(check):
    chat = [USER, {**ANSWER, "reasoning_content": "I count them."}]
    assert severities(check("sft", [{"messages": chat}])) == {"template-drops-content": "warning"}
    thought = {"role": "assistant", "content": "<think>\nI count.\n</think>\n\nSixteen."}
    qwen = read_named_template("qwen3").text
    found = check("sft", [{"messages": [USER, thought, *CHAT]}], template=qwen)
    assert severities(found) == {"template-drops-content": "warning"}
    assert check("sft", [{"messages": [USER, thought]}], template=qwen) == {}


def test_tool_calls_that_are_not_rendered(check):
    calls = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "16"},
        ANSWER,
    ]
    assert severities(check("sft", [{"messages": calls}])) == {"template-drops-tools": "error"}
    assert check("sft", [{"messages": calls}], template=read_named_template("qwen3").text) == {}
    described = [{"messages": CHAT, "tools": json.dumps([CALL])}]
    assert severities(check("sft", described)) == {"template-drops-tools": "warning"}


def test_contents_in_parts(check):
    parts = [{**USER, "content": [{"type": "text", "text": "How many?"}]}, ANSWER]
    assert severities(check("sft", [{"messages": parts}])) == {"content-parts": "error"}
    assert severities(check("sft", [{"messages": parts}], template=LENIENT)) == {"content-parts": "error"}
    assert check("sft", [{"messages": parts}], template=read_named_template("qwen2_5_vl").text) == {}


@pytest.mark.parametrize(("method", "answers"), [("sft", ["completion"]), ("dpo", ["chosen", "rejected"])])
def test_a_generation_prompt_that_no_answer_begins_with(method, answers, check):
    row = {"prompt": [USER]} | {name: [{**ANSWER, "content": f"{name} wells"}] for name in answers}
    assert severities(check(method, [row], template=THINKS)) == {"template-not-prefix-stable": "error"}
    thought = {name: [{**ANSWER, "content": f"<think>\n{name} wells"}] for name in answers}
    assert check(method, [row | thought], template=THINKS) == {}


def test_such_a_prompt_matters_to_gkd_and_not_to_cpo(check):
    row = {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "None."}]}
    assert check("cpo", [row], template=THINKS) == {}
    assert "template-not-prefix-stable" in check("gkd", [{"messages": CHAT}], template=THINKS)


# --- boundaries and special tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_words_that_are_cut_between_prompt_and_completion(method, check):
    def row(prompt: str, text: str) -> Row:
        if method == "dpo":
            return {"prompt": prompt, "chosen": text, "rejected": text[:-1] + "?"}
        return {"prompt": prompt, "completion": text, "label": True}

    found = check(method, [row("The answ", "er is 8."), row("The answer", " is 8.")])
    assert severities(found) == {"boundary-token-merge": "error"}
    assert (found["boundary-token-merge"].count, found["boundary-token-merge"].rows) == (1, (0,))
    assert check(method, [row("The ", "answer is 8.")]) == {}


def test_special_tokens_in_text(check):
    found = check("sft", [{"text": "a <|reserved|> b"}, {"text": "a <|im_end|>"}, {"text": "a b"}])
    assert severities(found) == {"special-token-in-text": "warning"}
    assert found["special-token-in-text"].rows == (0,)


def test_answers_that_do_not_end(check):
    endless = PLAIN.replace("<|im_end|>", "<|reserved|>")
    assert severities(check("sft", [{"messages": CHAT}], template=endless)) == {"no-eos": "warning"}
    assert check("grpo", [{"prompt": [USER]}], template=endless) == {}
    config = {"model_type": "llama"}
    assert (
        check("sft", [{"messages": CHAT}], template=endless, model={"eos_token": "<|reserved|>"}, config=config) == {}
    )


def test_padding_with_the_end_token(check):
    def end(tokenizer: Any) -> None:
        tokenizer.pad_token = tokenizer.eos_token

    def nothing(tokenizer: Any) -> None:
        tokenizer.pad_token = None

    for change in (end, nothing):
        assert severities(check("dpo", [], change=change)) == {"pad-is-eos": "warning"}


def test_bos_twice(check):
    def begin(tokenizer: Any) -> None:
        tokenizer.bos_token = "<|reserved|>"

    found = check("sft", [{"text": "<|reserved|><|reserved|>a"}, {"text": "<|reserved|>a"}], change=begin)
    assert found["double-bos"].rows == (0,)
    assert found["double-bos"].severity == "warning"


def test_a_vocabulary_that_is_larger_than_the_embedding(check):
    rows = [{"messages": CHAT}]
    assert severities(check("sft", rows, config={"vocab_size": 270})) == {"vocab-vs-embeddings": "error"}
    assert check("sft", rows, config={"vocab_size": 400}) == {}
    tokens = [{"input_ids": [5, 400]}, {"input_ids": [5, 399]}]
    found = check("sft", tokens, config={"vocab_size": 400})
    assert severities(found) == {"token-id-range": "error"}
    assert found["token-id-range"].rows == (0,)


# --- lengths ---------------------------------------------------------------------------------------------------------


def _pair(prompt: Any, chosen: str, rejected: str) -> Row:
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {"prompt": prompt} | {
        name: [{**ANSWER, "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))
    }


@pytest.mark.parametrize("method", ["sft", "gkd"])
def test_conversations_that_are_cut(method, check):
    found = check(method, [{"messages": [LONG, ANSWER]}, {"messages": CHAT}], **limit(96))
    assert severities(found) == {"truncation": "warning"}
    assert found["truncation"].share == 0.5


def test_rows_that_lose_their_answer(check):
    short, long = ({"prompt": [each], "completion": [ANSWER]} for each in (USER, LONG))
    found = check("sft", [short, long], **limit(96))
    assert severities(found) == {"truncation": "warning", "completion-truncated-away": "warning"}
    assert found["completion-truncated-away"].rows == (1,)
    assert check("sft", [long, long], **limit(96))["completion-truncated-away"].severity == "error"
    packed = check("sft", [short, long], **limit(96, packing=True))
    assert packed["completion-truncated-away"].severity == "error"


def test_answers_of_which_little_is_left(check):
    prompt = "x" * 60
    assert check("dpo", [_pair(prompt, "y" * 40, "z" * 40)], **limit(70)).keys() == {"truncation"}
    found = check("dpo", [_pair(prompt, "y" * 40, "z" * 40)], **limit(63))
    assert severities(found) == {"truncation": "warning", "completion-truncated-away": "warning"}
    dropped = check("kto", [_pair(prompt, "y" * 40, "z" * 40), _pair("a", "b", "c")], **limit(60))
    assert severities(dropped) == {"truncation": "warning", "completion-truncated-away": "warning"}


def test_pairs_that_differ_only_in_what_is_cut(check):
    pairs = [_pair("2+2=", "y" * 40 + "a", "y" * 40 + "b")]
    assert severities(check("dpo", pairs, **limit(32))) == {"truncation": "warning", "truncated-identical": "error"}
    assert check("dpo", pairs, **limit(64)) == {}


def test_the_arithmetic_of_cpo_and_bco(check):
    pair = _pair("x" * 60, "y" * 20, "z" * 30)
    assert check("orpo", [pair], **limit(91)) == {}
    assert check("orpo", [pair], **limit(90))["cpo-truncation"].severity == "error"
    assert check("bco", [pair], **limit(93)) == {}
    assert severities(check("bco", [pair], **limit(82))) == {"truncation": "warning"}
    assert check("bco", [pair], **limit(62))["bco-truncation"].severity == "error"


def test_pairs_that_a_reward_model_never_sees(check):
    pairs = [_pair("x" * 60, "y", "z" * 30), _pair("x", "y", "z")]
    found = check("reward", pairs, **limit(64))
    assert severities(found) == {"reward-filtered": "warning"}
    assert check("reward", pairs[:1], **limit(64))["reward-filtered"].severity == "error"


def test_steps_without_a_label(check):
    row = {"prompt": "x" * 30, "completions": ["y", "z"], "labels": [True, False]}
    assert check("prm", [row], **limit(32)).keys() == {"truncation"}
    assert check("prm", [row], **limit(31))["completion-truncated-away"].severity == "error"


def test_prompts_that_leave_no_room(check):
    config = {"max_position_embeddings": 64}
    rows = [{"prompt": "x" * 40}, {"prompt": "x" * 10}]
    found = check("grpo", rows, config=config, training={"max_completion_length": 32})
    assert severities(found) == {"rl-prompt-not-truncated": "warning"}
    assert found["rl-prompt-not-truncated"].rows == (0,)
    assert check("grpo", rows, training={"max_completion_length": 32}) == {}
    served = check("grpo", rows, rollouts={"gpus": 1, "max_model_len": 64}, training={"max_completion_length": 32})
    assert severities(served) == {"rl-prompt-not-truncated": "warning"}
    assert severities(check("nash_md", rows, **limit(64, max_new_tokens=32))) == {"rl-prompt-not-truncated": "warning"}


# --- masks -----------------------------------------------------------------------------------------------------------


def test_only_the_assistant(check):
    rows, only = [{"messages": CHAT}], {"training": {"assistant_only_loss": True}}
    assert severities(check("sft", rows, **only)) == {"assistant-only-loss": "error"}
    qwen = read_named_template("qwen3").text
    assert check("sft", rows, template=qwen, **only) == {}
    found = check("sft", [{"messages": [USER]}], template=qwen, **only)
    assert found["assistant-mask-empty"].severity == "error"


def test_evaluation_rows_of_another_kind():
    context = context_of(recipe_of(MODEL), "train", tokenizer=True)
    text, pairs = Profile(rows=2), Profile(rows=3)
    text.columns[("text",)] = 2
    pairs.columns[("completion", "prompt")] = 3
    (found,) = eval_mask_mismatch(text, pairs, context)
    assert (found.rule, found.severity, found.count) == ("eval-mask-mismatch", "warning", 3)
    assert eval_mask_mismatch(pairs, text, context)
    assert eval_mask_mismatch(pairs, pairs, context) == []
    said = context_of(recipe_of(MODEL, training={"completion_only_loss": True}), "train", tokenizer=True)
    assert eval_mask_mismatch(text, pairs, said) == []
    assert eval_mask_mismatch(text, pairs, context_of(recipe_of(MODEL, "dpo"), "train", tokenizer=True)) == []


# --- tallies ---------------------------------------------------------------------------------------------------------


def test_tallies_of_parts_are_that_of_the_whole():
    recipe = recipe_of("builtin:tiny", "dpo", **limit(64))
    tokenizer, context = load_tokenizer(recipe), context_of(recipe, "train", tokenizer=True)
    rows = [_pair([USER], "There are 16.", "No.") for _ in range(5)] + [_pair([LONG], "16.", "No.")] * 5 + [{}]
    whole, parts = (TokenChecker(context, tokenizer, limits_of(recipe)) for _ in range(2))
    whole.add(list(enumerate(rows)))
    parts.add(list(enumerate(rows[:7])))
    tally = parts.reset()
    parts.add(list(enumerate(rows[7:])))
    merge(tally, pickle.loads(pickle.dumps(parts.tally)), 7)
    assert tally == whole.tally
    assert (whole.tally.rows, whole.tally.skipped, whole.tally.dropped) == (10, 1, 5)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_folder_with_nothing_but_a_tokenizer(tokenizer_files):
    tokenizer = load_tokenizer(
        recipe_of(tokenizer_files, model={"eos_token": "<|reserved|>", "chat_template": "qwen3"})
    )
    assert tokenizer.eos_token == "<|reserved|>"
    assert tokenizer.chat_template == read_named_template("qwen3").text
    assert limits_of(recipe_of(tokenizer_files)).embeddings is None
    assert limits_of(recipe_of("builtin:tiny")).embeddings == 272


def test_what_cannot_be_loaded(tokenizer_files, tmp_path):
    with pytest.raises(WorkError, match="eos_token: `<nothing>` is not in"):
        load_tokenizer(recipe_of(tokenizer_files, model={"eos_token": "<nothing>"}))
    with pytest.raises(WorkError, match="cannot be loaded"):
        load_tokenizer(recipe_of(tmp_path))
    with pytest.raises(RequestError, match="there is no model"):
        load_tokenizer(recipe_of(tmp_path / "nowhere"))


def test_torch_is_not_imported(tokenizer_files):
    code = (
        "import sys\n"
        "from ptcli.data.tokens import TokenChecker, load_tokenizer\n"
        "from ptcli.recipe.model import Recipe\n"
        "model, data = {'path': sys.argv[1]}, {'train': [{'path': 'x'}]}\n"
        "given = {'name': 'x', 'method': 'sft', 'output_dir': '/x', 'model': model, 'data': data}\n"
        "recipe = Recipe.model_validate(given)\n"
        "tokenizer = load_tokenizer(recipe, hide_torch=True)\n"
        "print(tokenizer('2+2=')['input_ids'])\n"
        "assert not {'torch', 'trl', 'datasets', 'accelerate', 'vllm'} & set(sys.modules)\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('torch')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tokenizer_files)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == load_tokenizer(recipe_of(tokenizer_files))("2+2=")["input_ids"]


# --- anything --------------------------------------------------------------------------------------------------------

_SCALARS = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=True) | st.text(max_size=8)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]) | _SCALARS, "content": _SCALARS},
        optional={"tool_calls": st.lists(_SCALARS | st.just(CALL), max_size=2), "thinking": _SCALARS},
    )
    | _SCALARS,
    max_size=4,
)
_VALUES = st.recursive(_SCALARS | _MESSAGES, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
_COLUMNS = (
    "text", "messages", "prompt", "completion", "completions", "chosen", "rejected", "label", "labels", "input_ids",
    "tools", "chat_template_kwargs", "completion_mask", "conversations", "chosen_ids", "rejected_ids",
)  # fmt: skip
_ROWS = st.lists(st.dictionaries(st.sampled_from(_COLUMNS), _VALUES, max_size=5), max_size=4)


@pytest.fixture(scope="module")
def checkers() -> dict[str, TokenChecker]:
    made = {}
    for method in METHODS:
        training = {"max_length": 16} if method in ("sft", "dpo", "kto", "cpo", "bco", "reward", "prm", "gkd") else {}
        recipe = recipe_of("builtin:tiny", method, training=training)
        context = context_of(recipe, "train", tokenizer=True)
        made[method] = TokenChecker(context, load_tokenizer(recipe), limits_of(recipe))
    return made


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_ROWS)
def test_nothing_raises(method, rows, checkers):
    checker = checkers[method]
    before = checker.tally.rows + checker.tally.skipped
    checker.add(list(enumerate(rows)))
    assert checker.tally.rows + checker.tally.skipped == before + len(rows)
    conclude_tokens(checker.tally, checker.context)
    for row in rows:
        encoded = checker.encode(row)
        if encoded is not None:
            render_show(encoded, checker.codec.tokenizer, colour=True)
