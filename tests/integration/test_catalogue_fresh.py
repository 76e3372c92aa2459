"""The committed catalogue against the installed libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ptcli.recipe.catalogue import PATH, versions


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalogue of what is installed, made in a process of its own: it sets vLLM up for its help texts."""
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.json"
    code = (
        "import sys, pathlib; from ptcli.recipe import generate_catalogue as g;"
        "pathlib.Path(sys.argv[1]).write_text(g.render(g.generate()), encoding='utf-8')"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=300, env=environment)
    return path


def test_versions_are_the_installed_ones() -> None:
    assert {name: version(name).partition("+")[0] for name in versions()} == versions()


def test_the_committed_catalogue_is_what_would_be_generated(regenerated: Path) -> None:
    committed, current = (json.loads(path.read_text(encoding="utf-8")) for path in (PATH, regenerated))
    for part in ("versions", "shared", "peft_types", "accelerate"):
        assert committed[part] == current[part], "run `make catalogue`"
    assert committed["classes"].keys() == current["classes"].keys()
    for name, entry in committed["classes"].items():
        assert entry == current["classes"][name], f"{name}: run `make catalogue`"
    assert PATH.read_text(encoding="utf-8") == regenerated.read_text(encoding="utf-8"), "run `make catalogue`"
