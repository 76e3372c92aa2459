"""Memory in closed form: published sizes, the arithmetic of sharding and quantising, what is refused and what not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.plan.build import Planned
from ptcli.plan.memory import GIB, count_parameters
from ptcli.plan.memory.adapters import describe_adapter
from ptcli.plan.memory.architecture import Architecture, Weight, describe_config
from ptcli.plan.memory.rollouts import Engine, fill
from ptcli.plan.memory.sources import published_config
from ptcli.plan.memory.training import (
    OPTIMIZERS,
    Shards,
    Widths,
    decide_widths,
    frozen_bytes,
    fsdp_shards,
    read_quantization,
    trained_bytes,
    zero_shards,
)
from ptcli.plan.render import render_json, render_text

Plans = Callable[..., Planned]
ROOT = Path(__file__).parents[3]
PUBLISHED = json.loads((ROOT / "ptcli/plan/memory/published.json").read_text())


def sizes(kind: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, **more: Any) -> Any:
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocabulary,
    } | more  # fmt: skip


LLAMA_8B = sizes("llama", 4096, 14336, 32, 32, 8, 128256, tie_word_embeddings=False, max_position_embeddings=131072)
QWEN3_MOE = sizes("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128, moe_intermediate_size=768)


def described(config: Any) -> Architecture:
    found = describe_config(config)
    assert found is not None
    return found


def folder_of(tmp_path: Path, config: Any) -> str:
    """A model's folder with its config and, as if it were whole, a file of weights without any."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (sizes("qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True), 494_032_768),  # Qwen2.5-0.5B
        (sizes("qwen2", 3584, 18944, 28, 28, 4, 152064), 7_615_616_512),  # Qwen2.5-7B
        (sizes("qwen3", 1024, 3072, 28, 16, 8, 151936, tie_word_embeddings=True), 596_049_920),  # Qwen3-0.6B
        (LLAMA_8B, 8_030_261_248),  # Llama-3.1-8B
        (sizes("mistral", 4096, 14336, 32, 32, 8, 32768), 7_248_023_552),  # Mistral-7B-v0.3
        (sizes("gemma2", 2304, 9216, 26, 8, 4, 256000), 2_614_341_888),  # gemma-2-2b
        ({"model_type": "gemma2"} | {"vocab_size": 256000}, 2_614_341_888),  # all that its class has as a default
        (sizes("gemma3_text", 1152, 6912, 26, 4, 1, 262144), 999_885_952),  # gemma-3-1b
        ({"model_type": "smollm3"}, 3_075_098_624),  # SmolLM3-3B
        (sizes("phi3", 3072, 8192, 32, 32, 32, 32064), 3_821_079_552),  # Phi-3-mini
        (sizes("olmo2", 4096, 11008, 32, 32, 32, 100352), 7_298_617_344),  # OLMo-2-7B
        (QWEN3_MOE, 30_532_122_624),  # Qwen3-30B-A3B
        (sizes("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8), 46_702_792_704),  # Mixtral-8x7B
        (sizes("gpt_oss", 2880, 2880, 24, 64, 8, 201088, num_local_experts=32), 20_914_757_184),  # gpt-oss-20b
        (
            sizes(
                "qwen2_moe", 2048, 5632, 24, 16, 16, 151936, num_experts=60, moe_intermediate_size=1408,
                shared_expert_intermediate_size=5632,
            ),
            14_315_784_192,  # Qwen1.5-MoE-A2.7B
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)  # fmt: skip
def test_published_sizes(config: Any, parameters: int) -> None:
    assert described(config).parameters == parameters


@pytest.mark.parametrize("row", PUBLISHED, ids=[row["models"][0] for row in PUBLISHED])
def test_the_table_of_published_models(row: Any) -> None:
    assert all(count_parameters(name) == row["parameters"] for name in row["models"])


_MODEL = r"^(?:\w*model|teacher):(?: *\{|[^\n]*\n(?:  [^\n]*\n)*?  )path: *\"?([\w.-]+/[\w.-]+)"
_REWARD = r"^  - use: *\"?([A-Za-z][\w.-]+/[\w.-]+)\"?"


def test_every_hub_model_of_the_recipes_is_in_the_table() -> None:
    texts = [path.read_text() for path in (ROOT / "recipes").rglob("*.yaml")]
    named = {name for text in texts for each in (_MODEL, _REWARD) for name in re.findall(each, text, re.MULTILINE)}
    assert len(named) >= 40
    assert {name for name in named if published_config(name) is None} == set()


def test_the_parts_of_a_model() -> None:
    parts = described(QWEN3_MOE).parts()
    assert sum(parts.values()) == 30_532_122_624
    assert parts["experts"] == 48 * 128 * 3 * 2048 * 768
    assert parts["router"] == 48 * 128 * 2048
    assert parts["head"] == parts["embeddings"] == 151936 * 2048


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"model_type": "mamba", "hidden_size": 8},
        {"model_type": "llama", "hidden_size": 64},
        LLAMA_8B | {"hidden_size": "many"},
        LLAMA_8B | {"num_attention_heads": 0},
        LLAMA_8B | {"vocab_size": True},
        LLAMA_8B | {"vision_config": {}},
    ],
    ids=str,
)
def test_what_cannot_be_counted_is_unknown(config: Any) -> None:
    assert describe_config(config) is None


def test_where_parameters_are_known_from(tmp_path: Path) -> None:
    assert count_parameters("org/model") is None
    assert count_parameters("builtin:nothing") is None
    assert count_parameters("Qwen/Qwen3-0.6B") == 596_049_920
    assert count_parameters(folder_of(tmp_path, LLAMA_8B)) == 8_030_261_248


def test_heads() -> None:
    for head, more in (("sequence_classification", 4096), ("token_classification", 2 * 4096 + 2)):
        found = describe_config(LLAMA_8B, head)  # type: ignore[arg-type]
        assert found is not None
        assert found.parameters == 8_030_261_248 - 128256 * 4096 + more


# ---------------------------------------------------------------- adapters


def test_lora() -> None:
    """r (in + out) a matrix; all seven of a layer of Llama 3.1 8B with r 16 are 41.9 million."""
    found = describe_adapter(described(LLAMA_8B), {"r": 16, "target_modules": "all-linear"}, "causal_lm")
    assert found is not None
    assert found.parameters == 41_943_040
    one = describe_adapter(described(LLAMA_8B), {"target_modules": ["q_proj"]}, "causal_lm")
    dora = describe_adapter(described(LLAMA_8B), {"target_modules": ["q_proj"], "use_dora": True}, "causal_lm")
    assert one
    assert dora
    assert one.parameters == 32 * 8 * (4096 + 4096)
    assert dora.parameters == one.parameters + 32 * 4096


def test_a_module_that_is_trained_whole_is_a_copy() -> None:
    section = {"r": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    found = describe_adapter(described(LLAMA_8B), section, "causal_lm")
    assert found is not None
    assert sum(weight.size for weight in found.copies) == 128256 * 4096
    scored = describe_config(LLAMA_8B, "sequence_classification")
    assert scored is not None
    head = describe_adapter(scored, {"target_modules": "all-linear"}, "sequence_classification")
    assert head is not None
    assert [weight.size for weight in head.copies] == [4096]


@pytest.mark.parametrize("section", [{"type": "vera"}, {"use_qalora": True}, {"target_modules": "("}], ids=str)
def test_an_adapter_that_cannot_be_counted(section: Any) -> None:
    assert describe_adapter(described(LLAMA_8B), section, "causal_lm") is None


# ---------------------------------------------------------------- bytes of training

MILLION = Weight("layer.weight", (1000, 1000), "mlp", linear=True)
ONE = [((MILLION,), 4.0)]
FLOAT32 = Widths(4, 4, 4)


def per_weight(items: dict[str, float]) -> dict[str, float]:
    return {name: size / 1_000_000 for name, size in items.items() if size}


@pytest.mark.parametrize(
    ("optim", "states"),
    [
        ("adamw_torch", 8), ("adamw_torch_fused", 8), ("adamw_bnb_8bit", 2 * (1 + 4 * 3907 / 1e6)), ("sgd", 0),
        ("adagrad", 4), ("lion_32bit", 4), ("adafactor", 4 * 2000 / 1e6), ("paged_adamw_32bit", 0),
        ("something_new", 0),
    ],
)  # fmt: skip
def test_states_of_an_optimizer(optim: str, states: float) -> None:
    items = trained_bytes(ONE, FLOAT32, OPTIMIZERS.get(optim, OPTIMIZERS["sgd"]), Shards())
    assert items["optimizer"] / 1_000_000 == pytest.approx(states)


def test_small_tensors_and_embeddings_have_wide_states() -> None:
    adam = OPTIMIZERS["adamw_bnb_8bit"]
    assert adam.bytes_of(Weight("norm.weight", (1024,), "norms"), 4.0) == 2 * 4 * 1024
    assert adam.bytes_of(Weight("embed.weight", (1000, 1000), "embeddings"), 2.0) == 2 * 4 * 1_000_000


def test_what_changes_weights_at_once_keeps_no_gradients() -> None:
    assert trained_bytes(ONE, FLOAT32, OPTIMIZERS["lomo"], Shards())["gradients"] == 0


@pytest.mark.parametrize(
    ("shards", "weights", "gradients", "states"),
    [
        (zero_shards(0, 8), 1, 1, 1),
        (zero_shards(1, 8), 1, 1, 8),
        (zero_shards(2, 8), 1, 8, 8),
        (zero_shards(3, 8), 8, 8, 8),
        (fsdp_shards(8), 8, 8, 8),
    ],
)
def test_zero_and_fsdp_shard(shards: Shards, weights: int, gradients: int, states: int) -> None:
    """ZeRO, table 1: 2, 2 and 12 bytes a parameter in mixed precision with Adam."""
    widths = decide_widths("float32", "bf16", "DEEPSPEED", 1, quantized=False)
    items = per_weight(trained_bytes([((MILLION,), widths.trained)], widths, OPTIMIZERS["adamw_torch"], shards))
    assert items == {
        "weights": 2 / weights, "gradients": 2 / gradients, "master weights": 4 / states, "optimizer": 8 / states,
    }  # fmt: skip


def test_what_is_offloaded_takes_nothing() -> None:
    for shards, left in (
        (zero_shards(3, 8, offload_weights=True, offload_optimizer=True), set()),
        (zero_shards(3, 8, offload_optimizer=True), {"weights"}),
        (zero_shards(2, 8, offload_optimizer=True), {"weights"}),
        (fsdp_shards(8, offload=True), set()),
    ):
        assert set(per_weight(trained_bytes(ONE, FLOAT32, OPTIMIZERS["adamw_torch"], shards))) == left


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        (("float32", "bf16", "MULTI_GPU", 0, False), Widths(4, 4, 4)),  # autocast: weights stay as they are
        (("bfloat16", "bf16", "MULTI_GPU", 0, False), Widths(2, 2, 4)),  # PEFT: a float32 adapter
        (("bfloat16", "bf16", "NO", 0, True), Widths(2, 2, 2)),  # TRL: bf16 on quantised weights
        (("bfloat16", "bf16", "FSDP", 0, False), Widths(2, 4, 4)),  # accelerate: float32
        (("float32", "bf16", "DEEPSPEED", 2, False), Widths(2, 2, 2, 4, 4)),
        (("float32", "no", "DEEPSPEED", 2, False), Widths(4, 4, 4, 4, 4)),
        (("float32", "no", "DEEPSPEED", 3, False), Widths(4, 4, 4, 4, 4)),
    ],
)
def test_widths(arguments: tuple[Any, ...], widths: Widths) -> None:
    dtype, precision, kind, stage, quantized = arguments
    assert decide_widths(dtype, precision, kind, stage, quantized=quantized) == widths


def test_nf4() -> None:
    """QLoRA, section 3: 4 + 0.5 bits a weight with float32 scales, 4 + 0.127 with quantised ones."""
    for double, bits in ((False, 4.5), (True, 4.127)):
        quantization = read_quantization({"load_in_4bit": True, "bnb_4bit_use_double_quant": double})
        assert quantization is not None
        large = Weight("layer.weight", (8192, 8192), "mlp", linear=True)
        assert 8 * quantization.bytes_of(large) / large.size == pytest.approx(bits, rel=1e-3)
    assert read_quantization({"load_in_4bit": False}) is None
    assert read_quantization(None) is None


def test_what_stays_as_it_is_beside_quantised_weights() -> None:
    model = described(LLAMA_8B)
    quantization = read_quantization({"load_in_4bit": True, "bnb_4bit_use_double_quant": True})
    plain = 2 * (2 * 128256 * 4096 + 65 * 4096)
    linear = 8_030_261_248 - plain // 2
    total = frozen_bytes(model, 2.0, quantization, Shards())
    assert total == pytest.approx(plain + linear * 4.127 / 8, rel=1e-3)
    assert total / GIB == pytest.approx(5.31, abs=0.02)
    whole = frozen_bytes(model, 2.0, quantization, fsdp_shards(8, shards_quantized=False))
    assert whole == pytest.approx(plain / 8 + linear * 4.127 / 8, rel=1e-3)


def test_modules_that_are_not_to_be_quantised() -> None:
    quantization = read_quantization({"load_in_8bit": True, "llm_int8_skip_modules": ["q_proj", "layers.1"]})
    assert quantization is not None
    names = {weight.module for weight in described(LLAMA_8B).weights if quantization.takes(weight)}
    assert "lm_head" in names
    assert "model.layers.0.self_attn.k_proj" in names
    assert not {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.embed_tokens"} & names


# ---------------------------------------------------------------- bytes of rollouts


def engine(**facts: Any) -> Engine:
    return Engine(**{"share": 72 * GIB, "width": 2.0, "cache_width": 2.0, "max_model_len": 4096} | facts)


def test_kv_cache() -> None:
    """Llama 3.1 8B: 2 x 32 layers x 8 heads x 128 x 2 bytes are 128 KiB a token."""
    room = fill(described(LLAMA_8B), engine())
    assert (room.weights, room.token, room.sequence) == (2 * 8_030_261_248, 128 * 1024, 4096 * 128 * 1024)
    assert room.cache == 72 * GIB - room.weights
    assert (room.tokens, int(room.sequences or 0)) == (room.cache // (128 * 1024), 114)
    assert fill(described(LLAMA_8B), engine(cache_width=1.0)).token == 64 * 1024


def test_tensor_parallel_splits_heads_as_long_as_there_are_some() -> None:
    model = described(LLAMA_8B)
    whole = fill(model, engine())
    for tensor, shared in ((2, 2), (8, 8), (16, 8)):
        room = fill(model, engine(tensor=tensor))
        assert (room.weights, room.token) == (whole.weights // tensor, whole.token // shared)
    assert fill(model, engine(tensor=2, pipeline=2)).token == whole.token // 4


def test_layers_that_look_back_a_window_keep_no_more() -> None:
    gemma = described(sizes("gemma3_text", 1152, 6912, 26, 4, 1, 262144, sliding_window=512))
    assert [cache.window for cache in gemma.caches[:6]] == [512] * 5 + [None]
    room = fill(gemma, engine())
    assert room.sequence == (22 * 512 + 4 * 4096) * 2 * 256 * 2


def test_weights_that_leave_nothing() -> None:
    room = fill(described(LLAMA_8B), engine(share=10 * GIB))
    assert room.cache < 0
    assert (room.tokens, room.sequences) == (0, 0)


# ---------------------------------------------------------------- in the plan


def good(planned: Planned) -> Any:
    assert planned.problems == ()
    return planned.plan


def test_the_plan_says_what_is_held(plan_of: Plans) -> None:
    plan = good(plan_of("sft", "8x80GiB", model={"path": "Qwen/Qwen3-1.7B"}, launch={"accelerate": "fsdp2"}))
    memory = render_json(plan)["memory"]
    assert memory["parameters"] == memory["trained_parameters"] == 1_720_574_976
    each = 1_720_574_976 * 4 // 8
    assert memory["trainer"] == {"weights": each, "gradients": each, "optimizer": 2 * each}
    assert (memory["trainer_least_bytes"], memory["trainer_largest"]) == (4 * each, "optimizer")
    text = "a trainer GPU holds at least 3.2 GiB of 80.0 GiB: optimizer 1.6 GiB, weights 0.8 GiB, gradients 0.8 GiB; no"
    assert text in render_text(plan)


def test_a_server_says_how_many_sequences(plan_of: Plans) -> None:
    plan = good(plan_of(
        "grpo", "8x80GiB", model={"path": "meta-llama/Llama-3.1-8B"}, rollouts={"gpus": 4, "max_model_len": 4096},
        launch={"gpus": 4, "accelerate": "zero3"},
    ))  # fmt: skip
    assert plan.memory["rollouts_sequences"] == 114
    assert "weights 15.0 GiB, the rest for a KV cache of at most 467291 tokens, 114 sequences of 4096" in render_text(
        plan
    )


@pytest.mark.parametrize(
    ("method", "sections", "items"),
    [
        ("dpo", {}, {"reference"}),
        ("dpo", {"training": {"precompute_ref_log_probs": True}}, set()),
        ("dpo", {"peft": {"type": "lora"}}, set()),
        ("dpo", {"ref_model": {"path": "builtin:tiny"}, "peft": {}}, {"reference"}),
        ("xpo", {"peft": {}}, {"reference", "reward model"}),
        ("grpo", {"training": {"beta": 0.0}}, set()),
        ("grpo", {"training": {"beta": 0.1}, "rewards": [{"use": "builtin:tiny"}]}, {"reference", "reward model"}),
        ("ppo", {}, {"reference", "reward model", "value model"}),
        ("gkd", {}, {"teacher"}),
        ("sft", {}, set()),
    ],
)
def test_models_beside_the_one_that_is_trained(plan_of: Plans, method: str, sections: Any, items: set[str]) -> None:
    memory = good(plan_of(method, "1x80GiB", launch={"gpus": 1}, **sections)).memory
    assert memory["trainer"].keys() - {"weights", "gradients", "optimizer"} == items


def test_logits_are_said_and_not_counted(plan_of: Plans) -> None:
    """A row may be shorter than the longest; a chunked loss makes no such tensor."""
    dpo = good(plan_of("dpo", "1x80GiB", training={"per_device_train_batch_size": 4, "max_length": 1024})).memory
    assert dpo["trainer_logits_bytes"] == 2 * 4 * 1024 * 272 * 2
    assert "trainer_logits_bytes" not in good(plan_of("sft", "1x80GiB")).memory
    sft = good(plan_of("sft", "1x80GiB", training={"loss_type": "nll", "max_length": 100})).memory
    assert sft["trainer_logits_bytes"] == 8 * 100 * 272 * 2


def test_what_is_unknown_is_said(plan_of: Plans) -> None:
    plan = good(plan_of("gkd", "1x80GiB", teacher={"path": "org/teacher"}, launch={"gpus": 1}))
    assert plan.memory["unknown_models"] == ["org/teacher"]
    assert "unknown of org/teacher: no config.json on this machine" in render_text(plan)


def test_a_quantised_models_adapter(plan_of: Plans) -> None:
    """The paged optimizer's states need not be on the GPU."""
    quantized = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    model = {"path": "meta-llama/Llama-3.1-70B", "dtype": "bfloat16", "quantization": quantized}
    memory = good(plan_of("sft", "1x80GiB", model=model, peft={"r": 16, "target_modules": "all-linear"})).memory
    assert memory["trained_parameters"] == 207_093_760
    assert memory["trainer"]["weights"] / GIB == pytest.approx(37.1, abs=0.2)
    assert memory["trainer"]["gradients"] == 2 * 207_093_760


# ---------------------------------------------------------------- refused, and not


def only(planned: Planned) -> Any:
    (problem,) = planned.problems
    return problem


def test_a_model_that_cannot_fit_is_refused(plan_of: Plans) -> None:
    big = {"path": "meta-llama/Llama-3.1-8B"}
    problem = only(plan_of("sft", "1x80GiB", model=big, launch={"gpus": 1}))
    assert problem.key == ("launch", "accelerate")
    assert "each trainer GPU has 80.0 GiB, and training holds at least 119.7 GiB on it" in problem.message
    assert "most of it optimizer, 59.8 GiB" in problem.message
    assert "train an adapter" in problem.fix
    assert "zero3" in problem.fix
    assert "reference 29.9 GiB" in only(plan_of("dpo", "8x80GiB", model=big, launch={"accelerate": "ddp"})).message


@pytest.mark.parametrize(
    ("machine", "launch", "more"),
    [
        ("8x80GiB", {"accelerate": "zero3"}, {}),
        ("8x80GiB", {"accelerate": "fsdp2"}, {}),
        ("1x80GiB", {"gpus": 1, "accelerate": "zero3_offload"}, {}),
        ("1x80GiB", {"gpus": 1}, {"peft": {}}),
        ("1x80GiB", {"gpus": 1}, {"training": {"optim": "sgd"}}),
        ("1", {"gpus": 1}, {}),
        ("1x160GiB", {"gpus": 1}, {}),
    ],
)
def test_what_could_fit_is_not_refused(plan_of: Plans, machine: str, launch: Any, more: Any) -> None:
    assert plan_of("sft", machine, model={"path": "meta-llama/Llama-3.1-8B"}, launch=launch, **more).problems == ()


def test_an_unknown_model_is_never_refused(plan_of: Plans) -> None:
    assert plan_of("sft", "1x1GiB", model={"path": "org/model-400b"}).problems == ()


def test_a_device_map_may_leave_layers_in_main_memory(plan_of: Plans) -> None:
    model = {"path": "meta-llama/Llama-3.1-8B", "init_kwargs": {"device_map": "auto"}}
    assert plan_of("sft", "1x8GiB", model=model, launch={"gpus": 1}).problems == ()


ROLLOUTS = {"gpus": 1, "max_model_len": 4096}


@pytest.mark.parametrize(
    ("machine", "rollouts", "text"),
    [
        ("2x16GiB", {}, "gives vLLM 14.4 GiB, and its copy of the weights alone takes 15.0 GiB"),
        ("2x24GiB", {"max_model_len": 65536}, "one sequence of rollouts.max_model_len 65536 tokens takes 8.0 GiB"),
        ("2x24GiB", {}, ""),
        ("3x16GiB", {"gpus": 2, "tensor_parallel_size": 2}, ""),
        ("2x24GiB", {"max_model_len": 65536, "engine": {"kv_cache_dtype": "fp8"}}, ""),
        ("2x24GiB", {"max_model_len": 65536, "engine": {"kv_cache_memory_bytes": 10**10}}, ""),
        ("2x16GiB", {"engine": {"quantization": "fp8"}}, ""),
        ("2x16GiB", {"engine": {"cpu_offload_gb": 8}}, ""),
        ("2x16GiB", {"url": "http://127.0.0.1:8000"}, ""),
    ],
)
def test_servers_that_cannot_start(plan_of: Plans, machine: str, rollouts: Any, text: str) -> None:
    quantized = {"load_in_4bit": True}
    model = {"path": "meta-llama/Llama-3.1-8B", "dtype": "bfloat16", "quantization": quantized}
    planned = plan_of("grpo", machine, model=model, peft={}, rollouts=ROLLOUTS | rollouts, launch={"gpus": 1})
    assert len(planned.problems) == bool(text), planned.problems
    assert not text or text in planned.problems[0].message


def test_every_recipe_of_its_machine_fits_and_too_small_ones_do_not(ptcli: Callable[..., Any]) -> None:
    recipe = ROOT / "recipes/llama3/llama-3.1-70b-sft-full.yaml"
    assert ptcli("train", recipe, "--dry-run", "--assume-gpus", "2x8x141GiB").code == 0
    result = ptcli("train", recipe, "--dry-run", "--assume-gpus", "2x8x40GiB")
    assert result.code == 2
    assert "training holds at least 65.7 GiB on it, most of it optimizer, 32.9 GiB" in result.err


def test_the_readmes_lines(ptcli: Callable[..., Any]) -> None:
    recipe = ROOT / "recipes/llama3/llama-3.1-8b-grpo-full.yaml"
    printed = ptcli("train", recipe, "--dry-run", "--assume-gpus", "8x80GiB").out
    shown = re.findall(r"^# memory .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown == re.findall(r"^# memory .*$", printed, re.MULTILINE)
    assert len(shown) == 3
