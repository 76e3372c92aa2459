"""The prompt that is cut off pairs is the one that TRL cuts off."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ptcli.data.rules.facts import extract_prompt


@pytest.fixture(scope="module")
def original() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """TRL's function, without importing TRL."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "data_utils.py").read_text()
    (node,) = [
        each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef) and each.name == "extract_prompt"
    ]
    names: dict[str, Any] = {}
    exec(f"from typing import *\nfrom collections.abc import *\n{ast.unparse(node)}", names)
    return names["extract_prompt"]


def test_texts_and_chats_are_cut_like_there(original: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    random = Random(3)
    for number in range(3000):
        make = _text if number % 2 else _chat
        chosen, rejected = make(random), make(random)
        expected = original({"chosen": chosen, "rejected": rejected})
        assert extract_prompt(chosen, rejected) == (expected["prompt"], expected["chosen"], expected["rejected"])


def _text(random: Random) -> str:
    return "".join(random.choice("a b") for _ in range(random.randint(1, 6)))


def _chat(random: Random) -> list[dict[str, str]]:
    return [{"role": random.choice(("user", "assistant"))} for _ in range(random.randint(1, 4))]
