"""`guards:` as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptcli.recipe.dump import dump_recipe
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import EntropyGuard, Recipe

SFT = "{method: sft, model: {path: 'builtin:tiny'}, data: {train: [{path: 'builtin:arithmetic-messages'}]}, guards: %s}"
RLOO = """
method: rloo
model: {path: builtin:tiny}
data: {train: [{path: builtin:arithmetic}]}
rewards: [{use: "trl.rewards:accuracy_reward"}]
"""


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml", overrides).require()


@pytest.mark.parametrize("word", ["off", "'off'", '"off"', "!!str off"])
def test_off_is_a_word(tmp_path: Path, word: str) -> None:
    recipe = load(tmp_path, SFT % f"{{non_finite: {word}}}")
    assert recipe.guards.non_finite == "off"
    assert recipe.guards.guard("non_finite").action == "off"


def test_an_override_is_a_word_or_a_field(tmp_path: Path) -> None:
    recipe = load(tmp_path, SFT % "{entropy: {above: 5}}", "guards.entropy.patience=7", "guards.adapter_moves=off")
    assert recipe.guards.guard("entropy") == EntropyGuard(above=5.0, patience=7)
    assert recipe.guards.guard("adapter_moves").action == "off"


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    recipe = load(tmp_path, SFT % "{kl: off, entropy: {above: 5}, reward_variance: {action: off}}")
    text = dump_recipe(recipe)
    assert "kl: 'off'" in text, "other readers of YAML take a bare off for false"
    assert load(tmp_path, text).guards == recipe.guards


def test_kl_can_be_watched_where_there_is_a_penalty(tmp_path: Path) -> None:
    assert load(tmp_path, RLOO + "guards: {kl: stop}\n").guards.kl == "stop"
    assert load(tmp_path, RLOO.replace("rloo", "grpo") + "guards: {kl: stop}\ntraining: {beta: 0.1}\n")
    assert load(tmp_path, RLOO.replace("rloo", "grpo") + "guards: {kl: off}\n")


def test_the_beta_of_a_distance_to_a_teacher_is_no_penalty(tmp_path: Path) -> None:
    text = SFT.replace("sft", "gkd").replace("}, guards", "}, teacher: {path: 'builtin:tiny'}, guards")
    assert load(tmp_path, text % "{kl: warn}", "training.beta=0.0").guards.kl == "warn"
