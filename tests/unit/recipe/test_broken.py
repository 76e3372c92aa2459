"""Every broken recipe of the table is refused at the right place, in the right words, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptcli.errors import RequestError
from ptcli.recipe.loading import load_recipe

from .broken import GROUPS, Broken

CASES = [pytest.param(case, id=f"{group}: {case.name}") for group, cases in GROUPS.items() for case in cases]


def write(folder: Path, files: str | bytes | dict[str, str | bytes]) -> None:
    for name, content in (files if isinstance(files, dict) else {"recipe.yaml": files}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("case", CASES)
def test_broken_recipe(case: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    write(tmp_path, case.files)

    loaded = load_recipe(Path("recipe.yaml"), case.overrides)

    shown = "\n".join(map(str, loaded.problems))
    assert [str(problem.where) for problem in loaded.problems] == [position for position, *_ in case.errors], shown
    for problem, (_, *texts) in zip(loaded.problems, case.errors, strict=True):
        for text in texts:
            assert text in f"{problem.message}; {problem.fix}"
    assert (loaded.recipe is None) == case.hopeless
    with pytest.raises(RequestError) as raised:
        loaded.require()
    assert raised.value.exit_code == 2
    assert str(raised.value) == shown


def test_table_is_large_enough() -> None:
    cases = [case for group in GROUPS.values() for case in group]
    assert len(cases) >= 100
    assert sum(len(case.errors) >= 2 for case in cases) >= 10
    elsewhere = [case for case in cases if any(not place.startswith("recipe.yaml") for place, *_ in case.errors)]
    assert len(elsewhere) >= 5


def test_message_is_one_line_and_never_repeats_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "hf_" + "q" * 34
    recipe = f"method: {secret}\nmodel: {{path: {secret}}}\nname: {{a: {secret}}}\ntraining: {{hub_token: {secret}}}\n"
    write(tmp_path, recipe)
    overrides = (f"training.hub_token={secret}", f"launch.env.X={secret}", f"name={secret}")
    problems = load_recipe(Path("recipe.yaml"), overrides).problems
    assert len(problems) >= 5
    for problem in problems:
        assert secret not in str(problem)
        assert "\n" not in str(problem)
