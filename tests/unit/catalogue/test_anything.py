"""Whatever is written, the answer is a value or a problem, never a traceback."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ptcli.recipe.catalogue import check_section, fields
from ptcli.recipe.code import NotFound, find_object
from ptcli.recipe.local_models import BadWeights, read_header

CLASSES = [
    "trl:GRPOConfig",
    "trl:DPOConfig",
    "peft",
    "peft:LoraConfig",
    "transformers:BitsAndBytesConfig",
    "vllm:serve",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(SCALARS, inner), max_leaves=5)


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(CLASSES), st.sampled_from(["grpo", "sft", None]), VALUES)
def test_every_entry_is_kept_or_a_problem(data: st.DataObject, name: str, method: str | None, value: Any) -> None:
    known = sorted(fields("peft:LoraConfig" if name == "peft" else name))
    key = data.draw(st.sampled_from([*known, "type"]) | st.text() | st.integers())
    clean, problems = check_section(name, {key: value}, ("here",), method=method)
    assert len(problems) <= 1
    assert not (clean and problems)
    assert all(problem.key[0] == "here" and problem.message for problem in problems)


@settings(deadline=None)
@given(
    st.sampled_from(["1e999", "-1e999", "9" * 5000, "1e", "0x10", "٣", "1,5", "", " 1 ", "+", "."]),
    st.sampled_from(["learning_rate", "max_steps"]),
)
def test_odd_numbers(text: str, key: str) -> None:
    clean, problems = check_section("trl:SFTConfig", {key: text}, (), method="sft")
    assert problems or clean == {key: 1}


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_as_weights(tmp_path_factory: Any, content: bytes) -> None:
    path: Path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(BadWeights):
        assert isinstance(read_header(path), dict)


@settings(deadline=None)
@given(st.text() | st.from_regex(r"[a-z.]{0,9}:[a-z]{0,3}"))
def test_any_text_as_a_function(text: str) -> None:
    with contextlib.suppress(NotFound):
        find_object(text)
