"""What a recipe without mistakes becomes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptcli.errors import Problem
from ptcli.recipe.loading import load_recipe

from .broken import GOOD, GRPO
from .conftest import Load


def test_defaults(load: Load, folder: Path) -> None:
    recipe = load(GOOD, name="my-run.yaml").require()
    assert (recipe.name, recipe.seed, recipe.output_dir) == ("my-run", 42, str(folder / "runs/my-run"))
    assert recipe.training == {}
    assert recipe.rollouts.model_fields_set == set()


def test_scalars_are_what_the_field_wants(load: Load, folder: Path) -> None:
    (folder / "mine.py").write_text("def reward(completions, **kwargs): ...")
    text = GRPO[: GRPO.index("rewards")].replace(
        "tiny}", "tiny, revision: 007, trust_remote_code: off, attn_implementation: no}"
    ) + (
        "name: 2024\n"
        "training: {learning_rate: 1e-5, adam_epsilon: 1E-8, max_steps: 1_0, report_to: none, "
        "run_name: 12, bf16: yes}\n"
        "launch: {env: {A: 1, B: 1.50, C: no, D: 0x10, E: 2024-01-02, F: true}, nodes: 0x2}\n"
        "rewards:\n  - use: mine.py:reward\n"
        "    args: {a: no, b: on, c: 2024-01-02, d: 012, e: ~, f: .5, g: -.inf, h: 0o17}\n"
    )
    loaded = load(text)
    assert [str(p.where) for p in loaded.problems] == ["recipe.yaml:5:53"]
    assert loaded.recipe
    recipe = loaded.recipe
    assert recipe.name == "2024"
    assert (recipe.model.revision, recipe.model.trust_remote_code, recipe.model.attn_implementation) == (
        "007",
        False,
        "no",
    )
    assert recipe.training == {
        "learning_rate": 1e-5, "adam_epsilon": 1e-8, "report_to": "none", "run_name": "12", "bf16": True,
    }  # fmt: skip
    assert recipe.launch.env == {"A": "1", "B": "1.50", "C": "no", "D": "0x10", "E": "2024-01-02", "F": "true"}
    assert recipe.launch.nodes == 2
    assert recipe.rewards[0].args == {
        "a": "no", "b": "on", "c": "2024-01-02", "d": "012", "e": None, "f": 0.5, "g": float("-inf"), "h": 15,
    }  # fmt: skip


def test_gpus_stay_what_they_are(load: Load) -> None:
    recipe = load(GRPO + "rollouts: {gpus: [0, 'GPU-1', GPU-2, '3']}\nlaunch: {gpus: 2}\n").require()
    assert recipe.rollouts.gpus == [0, "GPU-1", "GPU-2", "3"]
    assert recipe.launch.gpus == 2


def test_whole_number_where_a_number_is_meant(load: Load) -> None:
    recipe = load(GRPO.replace('reward"', 'reward", weight: 2') + "guards: {no_progress_seconds: 30}\n").require()
    assert isinstance(recipe.rewards[0].weight, float)
    assert isinstance(recipe.guards.no_progress_seconds, float)


def test_empty_sections(load: Load) -> None:
    recipe = load(GOOD + "training:\nlaunch:\n  # nothing\nrollouts:\npeft:\nextends:\n").require()
    assert recipe.training == {}
    assert recipe.peft is None


def test_aliases_and_merge_keys(load: Load) -> None:
    text = "rewards:\n  - &a {use: 'trl.rewards:accuracy_reward', args: &b {x: 1, y: 2}}\n"
    text += "  - {<<: *a, args: {<<: *b, y: 3}}\n  - *a\n"
    recipe = load(GRPO[: GRPO.index("rewards")] + text).require()
    assert [c.args for c in recipe.rewards] == [{"x": 1, "y": 2}, {"x": 1, "y": 3}, {"x": 1, "y": 2}]


def test_byte_order_mark_and_windows_lines(folder: Path) -> None:
    (folder / "r.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() + b"sed: 1\r\n")
    assert [str(p.where) for p in load_recipe(Path("r.yaml")).problems] == ["r.yaml:4:1"]


def test_columns_count_characters(load: Load) -> None:
    loaded = load(GOOD + "training: {run_name: 'é😀漢', lr: 1}\n")
    assert str(loaded.problems[0].where) == "recipe.yaml:4:29"


@pytest.mark.parametrize("levels", [8, 30])
def test_alias_bomb_is_refused_at_once(load: Load, levels: int) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    text = GOOD + "\n".join(lines)
    start = time.process_time()
    loaded = load(text)
    assert time.process_time() - start < 0.5
    assert [str(p.where) for p in loaded.problems] == ["recipe.yaml:8:10"]
    assert "aliases" in str(loaded.problems[0])


@pytest.mark.parametrize("value", ["[%s]", "{%s}", "'%s'"])
def test_bomb_of_references_is_refused_at_once(load: Load, value: str) -> None:
    lines = ["a0: xxxxxxxxxx"]
    for n in range(1, 30):
        references = [f"${{a{n - 1}}}"] * 10
        inner = {"[%s]": ", ".join(f'"{r}"' for r in references), "'%s'": "".join(references)}.get(value)
        inner = inner or ", ".join(f'k{i}: "{r}"' for i, r in enumerate(references))
        lines.append(f"a{n}: {value % inner}")
    start = time.process_time()
    loaded = load(GOOD + "\n".join(lines))
    assert time.process_time() - start < 2
    assert any("once references are written out" in p.message for p in loaded.problems)


def test_deep_chain_of_references_is_no_crash(load: Load) -> None:
    chain = "".join(f"  a{n}: ${{training.a{n + 1}}}\n" for n in range(3000))
    loaded = load(GOOD + "training:\n" + chain + "  a3000: 1\n")
    assert any("too many references" in p.message for p in loaded.problems)


def test_loading_is_fast(load: Load) -> None:
    text = GRPO + "training: {learning_rate: 1e-6, num_generations: 8, max_completion_length: 256, bf16: true}\n"
    load(text).require()
    times = []
    for _ in range(5):
        start = time.process_time()
        load(text, "training.max_steps=5")
        times.append(time.process_time() - start)
    assert min(times) < 0.1


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A file that this process may not read, also when the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = Path(name, "r.yaml")
        path.write_text(GOOD)
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield path
        os.seteuid(user)


def test_no_permission(unreadable: Path) -> None:
    (problem,) = load_recipe(unreadable).problems
    assert str(problem) == f"{unreadable}: no permission to read it; change its permissions"


def test_not_a_regular_file(folder: Path) -> None:
    os.mkfifo(folder / "r.yaml")
    (problem,) = load_recipe(Path("r.yaml")).problems
    assert "regular file" in problem.message


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "none/r.yaml"])
def test_impossible_names(folder: Path, name: str) -> None:
    loaded = load_recipe(Path(name))
    assert len(loaded.problems) == 1
    assert loaded.recipe is None


def test_best_effort_recipe_counts_entries_as_the_file_does(load: Load) -> None:
    entries = "".join(f"  - {{use: 'os.path:{name}'}}\n" for name in ("join", "split"))
    loaded = load(GRPO + f"callbacks:\n  - {{usee: x}}\n{entries}")
    assert loaded.recipe
    assert len(loaded.recipe.callbacks) == 2
    located = loaded.sources.locate(Problem("x", key=("callbacks", 1, "use", "deeper")))
    assert str(located.where) == "recipe.yaml:8:6"
    assert located.key == ("callbacks", 2, "use", "deeper")


def test_locate_falls_back_to_the_section_and_to_the_file(load: Load) -> None:
    sources = load(GOOD + "launch: {nodes: 1}\n").sources
    assert str(sources.locate(Problem("x", key=("launch", "gpus", 0))).where) == "recipe.yaml:4:1"
    assert str(sources.locate(Problem("x", key=("rollouts",))).where) == "recipe.yaml:1:1"


# --- extends ---------------------------------------------------------------------------------------------------------


def test_extends_merges_deeply_and_later_ones_win(load: Load, folder: Path) -> None:
    (folder / "a.yaml").write_text(GOOD + "training: {max_steps: 1, learning_rate: 1}\nseed: 1\nlaunch: {nodes: 2}\n")
    (folder / "b.yaml").write_text("training: {max_steps: 2, warmup_steps: 2}\nseed: 2\n")
    recipe = load("extends: [a.yaml, b.yaml]\ntraining: {warmup_steps: 3}\n").require()
    assert recipe.training == {"max_steps": 2, "learning_rate": 1, "warmup_steps": 3}
    assert (recipe.seed, recipe.launch.nodes, recipe.name) == (2, 2, "recipe")


def test_lists_replace_and_null_removes(load: Load, folder: Path) -> None:
    (folder / "a.yaml").write_text(GRPO + "peft: {r: 8}\nrollouts: {gpus: 1}\n")
    recipe = load("extends: a.yaml\nrewards: [{use: 'trl.rewards:think_format_reward'}]\npeft:\nrollouts:\n").require()
    assert [reward.use for reward in recipe.rewards] == ["trl.rewards:think_format_reward"]
    assert recipe.peft is None


def test_base_of_two_bases_is_no_circle(load: Load, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "root.yaml").write_text(GOOD)
    (folder / "d/a.yaml").write_text("extends: ../root.yaml\nseed: 3\n")
    (folder / "d/b.yaml").write_text("extends: ../root.yaml\nname: b\n")
    recipe = load("extends: [d/a.yaml, ./d/b.yaml]\n").require()
    assert (recipe.seed, recipe.name) == (3, "b")


def test_many_shared_bases_are_read_once(load: Load, folder: Path) -> None:
    for n in range(25):
        (folder / f"b{n}.yaml").write_text(f"extends: [b{n + 1}.yaml, b{n + 1}.yaml]\n")
    (folder / "b25.yaml").write_text(GOOD)
    start = time.process_time()
    load("extends: [b0.yaml, b0.yaml]\n").require()
    assert time.process_time() - start < 2


def test_endless_chain_of_bases(load: Load, folder: Path) -> None:
    for n in range(100):
        (folder / f"b{n}.yaml").write_text(f"extends: b{n + 1}.yaml\n" + GOOD)
    (problem,) = load("extends: b0.yaml\n").problems
    assert "chain of more than" in problem.message


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides(load: Load) -> None:
    recipe = load(
        GRPO,
        "training.learning_rate=1e-6",
        "data.train.0.take=5",
        "data.train[0].split=train[:9]",
        "launch={env: {A: b}}",
        "launch.nodes=2",
        "rewards=[{use: 'trl.rewards:think_format_reward', weight: 2}]",
        "name='x: y'",
        "peft.r=8",
        "peft.target_modules=[q_proj]",
        "training.run_name=a=b: c # d",
    ).require()
    assert recipe.training == {"learning_rate": 1e-6, "run_name": "a=b: c # d"}
    assert (recipe.data.train[0].take, recipe.data.train[0].split) == (5, "train[:9]")
    assert (recipe.launch.env, recipe.launch.nodes) == ({"A": "b"}, 2)
    assert [(r.use, r.weight) for r in recipe.rewards] == [("trl.rewards:think_format_reward", 2.0)]
    assert recipe.name == "x: y"
    assert recipe.peft == {"r": 8, "target_modules": ["q_proj"]}


def test_later_override_wins_and_references_see_overrides(load: Load, folder: Path) -> None:
    recipe = load(GOOD + "name: a-${seed}\n", "seed=1", "seed=7").require()
    assert (recipe.name, recipe.output_dir) == ("a-7", str(folder / "runs/a-7"))


def test_override_of_extends(load: Load, folder: Path) -> None:
    (folder / "b.yaml").write_text("seed: 5\n")
    (folder / "d").mkdir()
    recipe = load("extends: none.yaml\n" + GOOD, "extends=b.yaml", name="d/r.yaml").require()
    assert recipe.seed == 5


def test_override_with_null(load: Load) -> None:
    assert load(GOOD + "peft: {r: 8}\n", "peft=").require().peft is None


@pytest.mark.parametrize(
    "training", ["save_strategy: epoch", "eval_steps: 5", "save_strategy: best", "eval_strategy: steps"]
)
def test_best_model_needs_evaluation_where_it_saves(load: Load, training: str) -> None:
    text = GOOD.replace("]}", "], eval: 0.1}") + f"training: {{load_best_model_at_end: true, {training}}}\n"
    assert load(text).problems == ()
