"""What goes with what, and the page that says so."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.methods import METHODS
from ptcli.plan import combinations, toolkit
from ptcli.plan.accelerate import load_strategy, shipped_names
from ptcli.plan.build import Planned
from ptcli.plan.combinations import CONDITIONS, REFUSALS, Combination, way
from ptcli.plan.model import Machine
from ptcli.recipe.modeling import layer_classes
from tests.unit.plan import combinations_page as page

Plans = Callable[..., Planned]
FOUR = {
    "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16", "bnb_4bit_compute_dtype": "bfloat16",
}  # fmt: skip
EIGHT = {"load_in_8bit": True}
LORA: dict[str, Any] = {"peft": {"r": 8}}
SERVER = {"rollouts": {"gpus": 1}}
COLOCATE = {"rollouts": {"mode": "colocate"}}


def on(strategy: str, **sections: Any) -> dict[str, Any]:
    return {"launch": {"accelerate": strategy, "gpus": 4}} | sections


def quantized(values: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"path": "builtin:tiny", "dtype": "bfloat16", "quantization": values}, **LORA}


def said(planned: Planned) -> list[str]:
    return [f"{'.'.join(map(str, problem.key))}: {problem}" for problem in planned.problems]


@pytest.fixture
def fsdp1(tmp_path: Path) -> str:
    (tmp_path / "fsdp1.yaml").write_text(yaml.safe_dump({"distributed_type": "FSDP", "fsdp_config": {"version": 1}}))
    return str(tmp_path / "fsdp1.yaml")


def test_the_ways_of_the_shipped_configs() -> None:
    found = {name: way(strategy) for name in shipped_names() if (strategy := load_strategy(name)[0])}
    assert found == {
        "single": "single", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3",
        "zero3_offload": "zero3", "fsdp2": "fsdp2", "fsdp2_offload": "fsdp2", "fsdp2_qlora": "fsdp2", "hsdp": "hsdp",
    }  # fmt: skip


SHARDED = ("zero3", "zero3_offload", "fsdp2", "fsdp2_offload", "hsdp")
WHOLE = ("ddp", "zero1", "zero2")
BY_FSDP = ("fsdp2", "fsdp2_offload", "fsdp2_qlora", "hsdp")


@pytest.mark.parametrize(
    ("strategies", "method", "sections", "text"),
    [
        (SHARDED, "sft", quantized(EIGHT), "model.quantization: 8-bit weights cannot be split over GPUs"),
        (WHOLE, "sft", quantized(EIGHT), None),
        (SHARDED, "sft", quantized(FOUR), None),
        (SHARDED, "gkd", {"teacher": {"path": "builtin:tiny", "quantization": EIGHT}}, "teacher.quantization: 8-bit"),
        (BY_FSDP, "grpo", quantized(FOUR) | SERVER, "model.quantization: an adapter on 4-bit weights that FSDP"),
        (BY_FSDP, "grpo", quantized(FOUR) | COLOCATE, "model.quantization: an adapter on 4-bit weights that FSDP"),
        (BY_FSDP, "grpo", quantized(FOUR), None),
        (("zero3", "zero3_offload", *WHOLE), "grpo", quantized(FOUR) | SERVER, None),
        (WHOLE, "grpo", quantized(EIGHT) | COLOCATE, "colocate does not work with 8-bit"),
        (WHOLE, "grpo", quantized(EIGHT) | SERVER, None),
        (BY_FSDP, "grpo", LORA | SERVER, None),
        (BY_FSDP, "ppo", {}, "launch.accelerate: {name} is FSDP, and the trainer of ppo has no way"),
        (("zero3", *WHOLE), "ppo", {}, None),
        (("zero3", "zero3_offload"), "nash_md", {}, "launch.accelerate: {name} is ZeRO-3, and the trainer of nash_md"),
        (BY_FSDP, "nash_md", {}, "launch.accelerate: {name} is FSDP, and the trainer of nash_md"),
        (WHOLE, "nash_md", {}, None),
        (("zero3",), "bco", {"training": {"precompute_ref_log_probs": True}}, "training.precompute_ref_log_probs"),
        (("zero2", "fsdp2"), "bco", {"training": {"precompute_ref_log_probs": True}}, None),
        (("zero3",), "dpo", {"training": {"precompute_ref_log_probs": True}}, None),
        (("zero3_offload",), "sft", {"training": {"optim": "adafactor"}}, "training.optim: training.optim adafactor"),
        (("zero3", "fsdp2_offload"), "sft", {"training": {"optim": "adafactor"}}, None),
    ],
)
def test_the_table(
    plan_of: Plans, strategies: tuple[str, ...], method: str, sections: dict[str, Any], text: str | None
) -> None:
    for name in strategies:
        found = said(plan_of(method, **on(name, **sections)))
        if text is None:
            assert found == [], name
        else:
            assert len(found) == 1, (name, found)
            assert text.format(name=name) in found[0]
            assert "; " in found[0], "it says what to do"


def test_an_adapter_under_fsdp_1_is_not_sent_to_vllm(plan_of: Plans, fsdp1: str) -> None:
    (line,) = said(plan_of("grpo", **on(fsdp1, **LORA, **SERVER)))
    assert "is FSDP 1" in line
    assert "fsdp_version: 2" in line
    assert said(plan_of("grpo", **on(fsdp1, **SERVER))) == []
    assert said(plan_of("sft", **on(fsdp1, **LORA))) == []


def test_methods_that_generate_cannot_split_sequences(plan_of: Plans, tmp_path: Path) -> None:
    sizes = {"parallelism_config_dp_shard_size": 2, "parallelism_config_cp_size": 2}
    config = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}, "parallelism_config": sizes}
    (tmp_path / "cp.yaml").write_text(yaml.safe_dump(config))
    assert said(plan_of("sft", **on(str(tmp_path / "cp.yaml")))) == []
    (line,) = said(plan_of("grpo", **on(str(tmp_path / "cp.yaml"))))
    assert "grpo generates, and cannot split sequences" in line


def test_a_note_on_what_every_gpu_gathers(plan_of: Plans) -> None:
    def noted(name: str, **sections: Any) -> bool:
        plan = plan_of("grpo", **on(name, **sections)).plan
        assert plan is not None
        return any("trl#5766" in note for note in plan.notes)

    assert noted("zero3", **LORA, **SERVER)
    assert not noted("zero2", **LORA, **SERVER)
    assert not noted("zero3", **SERVER)
    assert not noted("zero3", **LORA)


# --- conditions ------------------------------------------------------------------------------------------------------


def wrapping(tmp_path: Path, names: Any) -> dict[str, Any]:
    section = {"fsdp_version": 2, "fsdp_transformer_layer_cls_to_wrap": names}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"distributed_type": "FSDP", "fsdp_config": section}))
    return on(str(tmp_path / "mine.yaml"))


def test_the_layers_that_fsdp_wraps(plan_of: Plans, tmp_path: Path) -> None:
    config = json.loads((Path(page.ROOT) / "ptcli/builtin/model/config.json").read_text())
    mine = layer_classes(config)
    assert mine is not None
    (layer,) = mine.layers
    assert said(plan_of("sft", **wrapping(tmp_path, layer))) == []
    assert said(plan_of("sft", **wrapping(tmp_path, [layer]))) == []
    (line,) = said(plan_of("sft", **wrapping(tmp_path, f"{layer},GPT2Block")))
    assert "GPT2Block is no class of builtin:tiny" in line
    assert f"write {layer}" in line
    unknown = {"model": {"path": "org/not-here"}}
    assert said(plan_of("sft", **wrapping(tmp_path, "GPT2Block"), **unknown)) == []


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"model_type": "qwen3"}, ("Qwen3DecoderLayer",)),
        ({"model_type": "llama"}, ("LlamaDecoderLayer",)),
        ({"model_type": "gemma3_text"}, ("Gemma3DecoderLayer",)),
        ({"model_type": "gpt2"}, ("GPT2Block",)),
    ],
)
def test_layers_of_an_architecture(config: dict[str, Any], layers: tuple[str, ...]) -> None:
    """As transformers has them in the text of its modules."""
    found = layer_classes(config)
    assert found is not None
    assert set(layers) <= set(found.layers) <= found.all


@pytest.mark.parametrize(
    "config", [None, {}, {"model_type": "no_such"}, {"model_type": "../x"}, {"model_type": "llama", "auto_map": {}}]
)
def test_layers_that_are_not_known(config: dict[str, Any] | None) -> None:
    assert layer_classes(config) is None


@pytest.mark.parametrize(
    ("nvcc", "text"),
    [
        ("13.0", None),
        (None, "compiles with CUDA 13.0, and there is no nvcc here"),
        ("12.8", "compiles with CUDA 13.0, and nvcc here is 12.8"),
    ],
)
def test_an_offloaded_optimizer_is_compiled(
    plan_of: Plans, machine_of: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, nvcc: str | None, text: str
) -> None:
    monkeypatch.setattr(combinations, "read_torch_cuda", lambda: "13.0")
    monkeypatch.setattr(combinations, "read_nvcc", lambda: nvcc)
    machine = machine_of(*map(str, range(4)))
    found = said(plan_of("sft", machine, **on("zero3_offload")))
    assert len(found) == (text is not None)
    assert text is None or text in found[0]
    assert said(plan_of("sft", machine, **on("fsdp2_offload"))) == []
    assert said(plan_of("sft", "4", **on("zero3_offload"))) == [], "nothing is known of an assumed machine"


def test_deepspeed_is_installed(
    plan_of: Plans, machine_of: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    machine = machine_of(*map(str, range(4)))
    (line,) = said(plan_of("sft", machine, **on("zero2")))
    assert "zero2 needs DeepSpeed, which is not installed" in line
    assert said(plan_of("sft", machine, **on("fsdp2"))) == []
    assert said(plan_of("sft", "4", **on("zero2"))) == [], "nothing is known of an assumed machine"


def test_the_toolkit_that_torch_would_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    nvcc.chmod(0o755)
    assert toolkit.read_nvcc({"CUDA_HOME": str(tmp_path)}) == "12.8"
    assert toolkit.read_nvcc({"PATH": str(tmp_path / "bin")}) == "12.8"
    assert toolkit.read_nvcc({"CUDA_HOME": str(tmp_path / "bin")}) is None
    assert toolkit.cuda_home({"PATH": ""}) == "/usr/local/cuda"
    monkeypatch.delenv("DS_SKIP_CUDA_CHECK", raising=False)
    assert toolkit.same_cuda("12.8", "12.6")
    assert not toolkit.same_cuda("13.1", "13.0")
    monkeypatch.setenv("DS_SKIP_CUDA_CHECK", "1")
    assert toolkit.same_cuda("13.1", "13.0")


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_table_says() -> None:
    """`python -m tests.unit.plan.combinations_page --write` writes it again."""
    assert page.PAGE.read_text(encoding="utf-8") == page.render_page()


def test_every_mark_names_a_test_that_is_there() -> None:
    for tested in page.TESTED:
        path, _, function = tested.test.partition("::")
        text = (page.ROOT / path).read_text(encoding="utf-8")
        assert f"def {function}(" in text, tested.test


def test_no_tested_combination_is_refused() -> None:
    places = [place for tested in page.TESTED for place in tested.places()]
    assert places
    assert [place for place in places if any(refusal.covers(place) for refusal in REFUSALS)] == []


def test_every_refusal_is_met_somewhere() -> None:
    grid = [
        Combination(method, form, bits, how, rollouts, splits)
        for method in METHODS.values()
        for form, bits in page.FORMS.values()
        for how in (*page.WAYS, "fsdp1")
        for rollouts in page.MODES
        for splits in (False, True)
    ]
    for refusal in REFUSALS:
        covered = sum(map(refusal.covers, grid))
        assert 0 < covered < len(grid), refusal.message
    assert len({condition.says for condition in CONDITIONS}) == len(CONDITIONS)
