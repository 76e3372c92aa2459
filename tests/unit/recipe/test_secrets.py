"""Secrets stay references until they are revealed."""

from __future__ import annotations

import pytest

from ptcli.errors import RequestError
from ptcli.recipe.loading import dump_recipe
from ptcli.recipe.secrets import is_secret_name, reveal

from .broken import GOOD
from .conftest import Load


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_qqqqqqqqqqqqqqqqqqq")
    monkeypatch.setenv("MY_API_KEY", "k-e-y")


def test_secret_stays_a_reference_everywhere(load: Load) -> None:
    text = (
        "training: {hub_token: '${oc.env:HF_TOKEN}', run_name: '${training.hub_token}'}\n"
        "launch: {env: {WANDB_API_KEY: '${oc.env:MY_API_KEY,none}', HEADER: 'Bearer ${oc.env:MY_API_KEY}'}}\n"
    )
    recipe = load(GOOD + text).require()
    assert recipe.training == {"hub_token": "${oc.env:HF_TOKEN}", "run_name": "${oc.env:HF_TOKEN}"}
    assert recipe.launch.env == {"WANDB_API_KEY": "${oc.env:MY_API_KEY,none}", "HEADER": "Bearer ${oc.env:MY_API_KEY}"}
    for text in (dump_recipe(recipe), repr(recipe), recipe.model_dump_json()):
        assert "hf_qqq" not in text
        assert "k-e-y" not in text


def test_override_with_a_reference(load: Load) -> None:
    recipe = load(GOOD, "training.hub_token=${oc.env:HF_TOKEN}").require()
    assert recipe.training == {"hub_token": "${oc.env:HF_TOKEN}"}


def test_default_counts_when_the_variable_is_not_set(load: Load) -> None:
    recipe = load(GOOD + "launch: {env: {A_TOKEN: '${oc.env:UNSET_TOKEN,offline}'}}\n").require()
    assert recipe.launch.env == {"A_TOKEN": "${oc.env:UNSET_TOKEN,offline}"}
    assert reveal(recipe.launch.env) == {"A_TOKEN": "offline"}


def test_reveal() -> None:
    value = {"a": ["x ${oc.env:HF_TOKEN}", 1, None], "b": {"c": "${oc.env:MY_API_KEY}${oc.env:OTHER_KEY,z}"}}
    assert reveal(value) == {"a": ["x hf_qqqqqqqqqqqqqqqqqqq", 1, None], "b": {"c": "k-e-yz"}}
    assert reveal("${oc.env:HOME} ${name}") == "${oc.env:HOME} ${name}"
    assert reveal("${oc.env:A_KEY}", {"A_KEY": "${oc.env:B_KEY}"}) == "${oc.env:B_KEY}"


def test_reveal_of_what_is_not_set() -> None:
    with pytest.raises(RequestError, match="UNSET_TOKEN is not set"):
        reveal("${oc.env:UNSET_TOKEN}")


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "hf_token", "MYTOKEN"]
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["HOME", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEYBOARD", "MONKEYS", "HF_HOME"])
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "model: {path: builtin:tiny, eos_token: abc, pad_token: '<|endoftext|>'}\n",
        "model: {path: builtin:tiny, revision: 0123456789abcdef0123456789abcdef01234567}\n",
        "launch: {env: {TOKENIZERS_PARALLELISM: x, HF_HUB_DISABLE_IMPLICIT_TOKEN: 1}}\n",
        "launch: {env: {GOOGLE_APPLICATION_CREDENTIALS: /a/b}}\n",
        "launch: {env: {HF_HOME: /x/hf_cache, A_TOKEN: ''}}\n",
        "training: {include_num_input_tokens_seen: true, hub_token: null, eos_token: x}\n",
        "data: {train: [{path: 'builtin:arithmetic-messages', rename: {password: prompt, token: text}}]}\n",
        "training: {hub_model_id: me/hf_alpaca20k, run_name: sk-learn-classifier-finetune-run-2}\n",
        "callbacks: [{use: 'watch:Watch', args: {token: </think>, stop_token: <|im_end|>}}]\n",
    ],
)
def test_no_secrets(load: Load, text: str) -> None:
    key = text.partition(":")[0]
    good = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(f"{key}:"))
    assert not [p for p in load(good + text).problems if "secret" in p.message]
