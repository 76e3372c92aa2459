"""A folder to load recipes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ptcli.recipe.loading import Loaded, load_recipe

Load = Callable[..., Loaded]

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For hypothesis on a machine that is busy with other things."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    """Writes a text as `recipe.yaml`, or as another file, and loads it."""

    def load(text: str, *overrides: str, name: str = "recipe.yaml") -> Loaded:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return load_recipe(Path(name), overrides)

    return load
