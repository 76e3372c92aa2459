"""What is streamed, what is handed over, what is refused: from headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import RequestError
from ptcli.merge.model import AddLora, Replace, ReplaceRows
from ptcli.merge.plan import plan_merge

from .folders import INNER, RANK, VOCAB, WIDTH, linear, llama, lora, make_adapter, make_base, shard, write_tensors

PREFIX = "base_model.model."
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def refusal(adapter: Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        plan_merge(str(adapter), **options)
    return str(caught.value)


def names_of(adapter: Path, **options: Any) -> dict[str, tuple]:
    """Name of each changed tensor, and its operations."""
    plan = plan_merge(str(adapter), **options)
    assert plan.mode == "stream", plan.reason
    return {each.name: each.operations for each in plan.outputs if each.operations}


# --- plain -----------------------------------------------------------------------------------------------------------


def test_plain_lora_is_streamed_and_the_files_stay(base: Path, tmp_path: Path) -> None:
    plan = plan_merge(str(make_adapter(tmp_path / "adapter", base)))
    changed = {each.name for each in plan.outputs if each.operations}
    assert changed == {f"{module}.weight" for module in linear(llama())}
    assert [shard.like for shard in plan.shards] == [base / "model.safetensors"]
    assert (plan.mode, plan.reason, plan.config_changes, plan.notes) == ("stream", "", {}, ())
    assert all(each.operations[0].scale == 2.0 for each in plan.outputs if each.operations)


def test_planning_takes_milliseconds_and_no_torch(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    plan_merge(str(adapter))
    start = time.perf_counter()
    plan_merge(str(adapter))
    assert time.perf_counter() - start < 0.5
    code = (
        f"import sys; from ptcli.merge.plan import plan_merge as p; p({str(adapter)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_run_is_merged_from_its_top_and_never_from_ref(base: Path, tmp_path: Path) -> None:
    run = make_adapter(tmp_path / "run", base)
    make_adapter(run / "ref", base, lora_alpha=64)
    make_adapter(run / "checkpoint-500", base, lora_alpha=16)
    assert names_of(run)[f"{UP}.weight"][0].scale == 2.0
    assert names_of(Path(f"{run}@500"))[f"{UP}.weight"][0].scale == 4.0


def test_a_run_that_has_only_a_reference_is_refused(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "run" / "ref", base)
    make_adapter(tmp_path / "run" / "checkpoint-20", base)
    assert f"name one of its checkpoints: {tmp_path / 'run'}@20" in refusal(tmp_path / "run")


# --- the adapter -----------------------------------------------------------------------------------------------------


def without_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_off(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def lying(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[2,', 1))


def half_a_pair(folder: Path) -> None:
    shapes = lora(linear(llama()), llama())
    del shapes[f"{PREFIX}{UP}.lora_B.weight"]
    write_tensors(folder / "adapter_model.safetensors", shapes, "F32")


def config_is_a_list(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (without_config, "has no adapter_config.json"),
    "a config that is none": (config_is_a_list, "is not a JSON mapping"),
    "no weights": (without_weights, "has no adapter weights (adapter_model.safetensors)"),
    "cut off": (cut_off, "is cut off: 10 bytes are missing"),
    "a header that lies": (lying, "has a header that cannot be true"),
    "half a pair": (half_a_pair, "has no lora_B beside it"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_adapter_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    spoil, said = SPOILT[name]
    adapter = make_adapter(tmp_path / "adapter", base)
    spoil(adapter)
    assert said in refusal(adapter)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    assert f"did you mean {tmp_path / 'adapters'}" in refusal(tmp_path / "adapter")


def test_a_whole_model_has_nothing_to_merge(base: Path) -> None:
    assert "there is nothing to merge: serve it as it is" in refusal(base)


# config of the adapter, what the message says
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "there is no merge of it: serve it with PEFT"),
    "prefix tuning": ({"peft_type": "PREFIX_TUNING"}, "there is no merge of it"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "PEFT does not support merging it"),
    "layer replication": ({"layer_replication": [[0, 2], [1, 2]]}, "layers of the base that share their weights"),
    "a key of a newer PEFT": ({"use_fora": True, "peft_version": "0.30"}, "the pinned PEFT does not know: `use_fora`"),
    "a type of a newer PEFT": ({"peft_type": "XLORA9"}, "type xlora9, which the pinned PEFT does not know"),
    "CorDA": ({"init_lora_weights": "corda"}, "which cannot be repeated"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "which cannot be repeated"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, "which cannot be repeated"),
    "a random PiSSA": ({"init_lora_weights": "pissa_niter_16"}, "which cannot be repeated"),
    "another rank than the tensors": ({"r": 8}, "has rank 4, "),
    "no base": ({"base_model_name_or_path": ""}, "give it with --base PATH"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, base: Path, tmp_path: Path) -> None:
    config, said = REFUSED[name]
    assert said in refusal(make_adapter(tmp_path / "adapter", base, **config))


# config of the adapter, why it is handed over
HANDED_OVER: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "`use_dora`"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "`init_lora_weights: pissa`"),
    "OLoRA": ({"init_lora_weights": "olora"}, "`init_lora_weights: olora`"),
    "MiCA": ({"init_lora_weights": "mica"}, "`init_lora_weights: mica`"),
    "parameters": ({"target_parameters": ["mlp.up_proj.weight"]}, "`target_parameters`"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "`use_bdlora`"),
    "QALoRA": ({"use_qalora": True}, "`use_qalora`"),
    "KaSA": ({"kasa_config": {"x": 1}}, "`kasa_config`"),
    "MonteCLoRA": ({"monteclora_config": {"x": 1}}, "`monteclora_config`"),
    "VeLoRA": ({"velora_config": {"x": 1}}, "`velora_config`"),
    "Arrow": ({"arrow_config": {"x": 1}}, "`arrow_config`"),
    "fan-in-fan-out where it is not certain": ({"fan_in_fan_out": True}, "`fan_in_fan_out`"),
    "IA3": ({"peft_type": "IA3"}, "ia3 is merged by PEFT"),
    "LoHa": ({"peft_type": "LOHA"}, "loha is merged by PEFT"),
    "LoKr": ({"peft_type": "LOKR"}, "lokr is merged by PEFT"),
    "OFT": ({"peft_type": "OFT"}, "oft is merged by PEFT"),
    "VeRA": ({"peft_type": "VERA"}, "vera is merged by PEFT"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "adalora is merged by PEFT"),
    "LN tuning": ({"peft_type": "LN_TUNING"}, "ln_tuning is merged by PEFT"),
}
OF_LORA_ONLY = ("r", "lora_alpha")


@pytest.mark.parametrize("name", HANDED_OVER)
def test_handed_over(name: str, base: Path, tmp_path: Path) -> None:
    config, said = HANDED_OVER[name]
    adapter = make_adapter(tmp_path / "adapter", base, **config)
    if config.get("peft_type", "LORA") != "LORA":
        told = json.loads((adapter / "adapter_config.json").read_text())
        told = {key: value for key, value in told.items() if key not in OF_LORA_ONLY}
        (adapter / "adapter_config.json").write_text(json.dumps(told))
    plan = plan_merge(str(adapter))
    assert plan.mode == "handover"
    assert said in plan.reason
    assert plan.memory > (base / "model.safetensors").stat().st_size


def test_models_with_layers_of_both_orientations_are_handed_over(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", model_type="imagegpt")
    assert "either orientation" in plan_merge(str(make_adapter(tmp_path / "adapter", base))).reason


NEUTRAL = {
    "auto_mapping": None, "revision": None, "inference_mode": True, "bias": "none", "exclude_modules": None,
    "fan_in_fan_out": False, "init_lora_weights": True, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "peft_version": "0.21.2", "qalora_group_size": 16,
    "rank_pattern": {}, "alpha_pattern": {}, "target_parameters": None, "trainable_token_indices": None,
    "use_dora": False, "use_qalora": False, "use_rslora": False, "arrow_config": None, "corda_config": None,
    "eva_config": None, "alora_invocation_tokens": None, "ensure_weight_tying": False, "lora_ga_config": None,
}  # fmt: skip


def test_what_peft_writes_of_a_plain_adapter_is_streamed(base: Path, tmp_path: Path) -> None:
    assert plan_merge(str(make_adapter(tmp_path / "adapter", base, **NEUTRAL))).mode == "stream"


def test_an_adapter_that_starts_orthogonal_or_by_data_is_plain(base: Path, tmp_path: Path) -> None:
    for start in ("gaussian", "eva", "orthogonal"):
        adapter = make_adapter(tmp_path / start, base, init_lora_weights=start)
        assert plan_merge(str(adapter)).mode == "stream"


def test_what_lacks_is_an_error_unless_it_is_allowed(base: Path, tmp_path: Path) -> None:
    modules = [module for module in linear(llama()) if module != UP]
    adapter = make_adapter(tmp_path / "adapter", base, lora(modules, llama()))
    assert f"its config targets {UP}, for which it has no tensors" in refusal(adapter)
    assert f"{UP}.weight" not in names_of(adapter, allow_missing=True)
    whole_kind = make_adapter(
        tmp_path / "kind", base, lora([each for each in modules if "up_proj" not in each], llama())
    )
    assert "up_proj" in refusal(whole_kind)


def test_modules_that_the_config_leaves_out_are_not_missed(base: Path, tmp_path: Path) -> None:
    first = lora([module for module in linear(llama()) if ".0." in module], llama())
    assert len(names_of(make_adapter(tmp_path / "one", base, first, layers_to_transform=[0]))) == 3
    rest = lora([module for module in linear(llama()) if module != UP], llama())
    assert len(names_of(make_adapter(tmp_path / "two", base, rest, exclude_modules=[UP]))) == 5
    pattern = r".*layers\.0\..*_proj"
    assert len(names_of(make_adapter(tmp_path / "three", base, first, target_modules=pattern))) == 3


# --- the base --------------------------------------------------------------------------------------------------------


def test_a_base_of_other_shapes_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", {name: tuple(2 * size for size in shape) for name, shape in llama().items()})
    adapter = make_adapter(tmp_path / "adapter", base)
    assert f"model.layers.0.self_attn.q_proj.weight of {base} is 16 x 16" in refusal(adapter)


def test_a_base_of_fewer_layers_is_refused(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", make_base(tmp_path / "base", llama(1)))
    assert "does not have: model.layers.1.self_attn.q_proj" in refusal(adapter)


def test_a_tensor_that_the_base_has_no_place_for_is_refused(base: Path, tmp_path: Path) -> None:
    shapes = lora(linear(llama()), llama()) | {f"{PREFIX}model.extra.weight": (4,)}
    assert "model.extra" in refusal(make_adapter(tmp_path / "adapter", base, shapes))


def test_two_modules_that_mean_the_same_tensor_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", model_type="qwen2_vl")
    modules = linear(llama())
    named_anew = {name.replace("model.layers", "model.language_model.layers"): shape for name, shape in
                  lora(modules, llama()).items()}  # fmt: skip
    assert len(names_of(make_adapter(tmp_path / "one", base, named_anew))) == len(modules)
    both = make_adapter(tmp_path / "both", base, named_anew | lora(modules, llama()))
    assert "two modules of the adapter change model.layers.0.self_attn.q_proj.weight" in refusal(both)


def test_another_base_of_the_same_shape_is_a_warning(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", "org/its-own-base")
    plan = plan_merge(str(adapter), base=str(base))
    assert "trained on org/its-own-base" in plan.notes[0]


def test_another_base_than_the_run_recorded_is_an_error(base: Path, tmp_path: Path) -> None:
    from ptcli.merge.identity import identify

    adapter = make_adapter(tmp_path / "run", base)
    (adapter / "stack.json").write_text(json.dumps({"models": {"model": identify(str(base), None)}}))
    moved = make_base(tmp_path / "moved")
    assert plan_merge(str(adapter), base=str(moved)).notes == ()
    shard(moved)
    assert plan_merge(str(adapter), base=str(moved)).notes == ()
    other = make_base(tmp_path / "other")
    write_tensors(other / "model.safetensors", llama(), fill=b"\1")
    assert "has other weights than the run recorded" in refusal(adapter, base=str(other))
    write_tensors(base / "model.safetensors", llama(), fill=b"\1")
    assert "has other weights than the run recorded" in refusal(adapter)


@pytest.mark.parametrize(
    ("quantised", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bit"),
    ],
)
def test_a_quantised_base_is_refused(quantised: dict[str, Any], said: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", quantization_config=quantised)
    message = refusal(make_adapter(tmp_path / "adapter", base))
    assert said in message
    assert "--base ORIGINAL" in message


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_of_few_bits_leads_to_what_it_was_made_from(bits: int, tmp_path: Path) -> None:
    original = make_base(tmp_path / "model")
    quantised = {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True}
    base = make_base(tmp_path / f"model-bnb-{bits}bit", quantization_config=quantised)
    plan = plan_merge(str(make_adapter(tmp_path / "adapter", base)))
    assert plan.base == original
    assert "merged into the model it was made from" in plan.notes[0]


def test_shards_without_an_index_get_one(base: Path, tmp_path: Path) -> None:
    shard(base, 3, index=False)
    write_tensors(base / "consolidated.safetensors", {"layers.0.wq.weight": (2, 2)})
    plan = plan_merge(str(make_adapter(tmp_path / "adapter", base)))
    assert len(plan.shards) == 3
    assert "have no index" in plan.notes[0]
    (base / "model-00002-of-00003.safetensors").unlink()
    assert "lacks weights: model-00002-of-00003.safetensors" in refusal(tmp_path / "adapter")


def test_weights_that_are_missing_are_named(base: Path, tmp_path: Path) -> None:
    shard(base)
    adapter = make_adapter(tmp_path / "adapter", base)
    index = base / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(told))
    assert "model.layers.9.mlp.up_proj.weight" in refusal(adapter)
    (base / "model-00002-of-00002.safetensors").unlink()
    assert "lacks weights: model-00002-of-00002.safetensors" in refusal(adapter)


def test_a_pickled_base_is_handed_over(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    plan = plan_merge(str(make_adapter(tmp_path / "adapter", base)))
    assert (plan.mode, plan.reason) == ("handover", "its weights are pickled (.bin)")


def in_cache(cache: Path, repository: str, folder: Path) -> None:
    """Put a folder into a hub cache, as `huggingface_hub` lays it out: links to blobs."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c0ffee")
    (place / "blobs").mkdir()
    (place / "snapshots" / "c0ffee").mkdir(parents=True)
    for path in folder.iterdir():
        (place / "blobs" / path.name).write_bytes(path.read_bytes())
        (place / "snapshots" / "c0ffee" / path.name).symlink_to(place / "blobs" / path.name)


def test_hub_ids_of_base_and_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    in_cache(tmp_path / "hub", "org/model", base)
    in_cache(tmp_path / "hub", "org/adapter", make_adapter(tmp_path / "adapter", "org/model"))
    plan = plan_merge("org/adapter")
    assert (plan.base_name, plan.base) == ("org/model", tmp_path / "hub/models--org--model/snapshots/c0ffee")
    assert plan.notes == ()
    (plan.base / "model.safetensors").unlink()  # only the config was fetched
    assert "the base org/model is not on this machine; download it first, or leave out --dry-run" in refusal(
        Path("org/adapter")
    )


def test_a_hub_that_cannot_be_reached(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    adapter = make_adapter(tmp_path / "adapter", "org/model")
    assert "the base org/model is not on this machine and cannot be downloaded: no network" in refusal(
        adapter, download=True
    )
    assert "the adapter org/adapter is not on this machine" in refusal(Path("org/adapter"), download=True)


def test_other_bases_that_are_none(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    assert "is an adapter itself" in refusal(adapter, base=str(adapter))
    assert "there is no model folder" in refusal(adapter, base=str(tmp_path / "nowhere"))
    assert "is not on this machine" in refusal(adapter, base="org/no-such-model")
    (base / "model.safetensors").rename(base / "model.gguf")
    assert "GGUF" in refusal(adapter)
    (base / "model.gguf").unlink()
    assert "has no weights" in refusal(adapter)


def test_a_cut_off_base_is_refused(base: Path, tmp_path: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.safetensors is cut off: 1 bytes are missing" in refusal(make_adapter(tmp_path / "adapter", base))


# --- embeddings ------------------------------------------------------------------------------------------------------

EMBED, HEAD = "model.embed_tokens", "lm_head"
TABLE = {f"{PREFIX}{EMBED}.lora_embedding_A": (RANK, VOCAB), f"{PREFIX}{EMBED}.lora_embedding_B": (WIDTH, RANK)}
ON_HEAD = {f"{PREFIX}{HEAD}.lora_A.weight": (RANK, WIDTH), f"{PREFIX}{HEAD}.lora_B.weight": (VOCAB, RANK)}


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return make_base(tmp_path / "tied", llama(tied=True), tie_word_embeddings=True)


def kinds(adapter: Path) -> dict[str, list[str]]:
    return {name: [type(step).__name__ for step in steps] for name, steps in names_of(adapter).items()}


def test_lora_on_one_of_two_tied_embeddings_unties_them(tied: Path, tmp_path: Path) -> None:
    on_embeddings = make_adapter(tmp_path / "embed", tied, TABLE, target_modules=["embed_tokens"])
    plan = plan_merge(str(on_embeddings))
    assert plan.config_changes == {"tie_word_embeddings": False}
    assert "were one tensor and are two now" in plan.notes[0]
    outputs = {each.name: each for each in plan.outputs}
    assert outputs["lm_head.weight"].source == outputs[f"{EMBED}.weight"].source
    assert outputs["lm_head.weight"].operations == ()
    assert isinstance(outputs[f"{EMBED}.weight"].operations[0], AddLora)
    pattern = make_adapter(tmp_path / "pattern", tied, TABLE, target_modules=r".*(embed_tokens|x_proj)")
    assert plan_merge(str(pattern)).config_changes == {"tie_word_embeddings": False}
    plan = plan_merge(str(make_adapter(tmp_path / "head", tied, ON_HEAD, target_modules=["lm_head"])))
    outputs = {each.name: each for each in plan.outputs}
    assert outputs[f"{EMBED}.weight"].operations == ()
    assert isinstance(outputs["lm_head.weight"].operations[0], AddLora)


def test_a_tied_pair_that_was_trained_as_one_stays_one(tied: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tmp_path / "a", tied, TABLE | ON_HEAD, target_modules=["embed_tokens"], ensure_weight_tying=True
    )
    assert kinds(adapter) == {f"{EMBED}.weight": ["AddLora"]}
    assert plan_merge(str(adapter)).config_changes == {}
    config = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True, "use_dora": True}
    dora = make_adapter(tmp_path / "dora", tied, TABLE | ON_HEAD, **config)
    assert "PEFT would add their change twice" in refusal(dora)


def test_a_larger_vocabulary_is_taken_over(base: Path, tied: Path, tmp_path: Path) -> None:
    wide = {f"{PREFIX}{EMBED}.weight": (VOCAB + 3, WIDTH), f"{PREFIX}{HEAD}.weight": (VOCAB + 3, WIDTH)}
    lora_too = wide | lora(linear(llama()), llama())
    plan = plan_merge(str(make_adapter(tmp_path / "untied", base, lora_too)))
    assert plan.config_changes == {"vocab_size": VOCAB + 3}
    shapes = {each.name: each.shape for each in plan.outputs}
    assert shapes["lm_head.weight"] == shapes[f"{EMBED}.weight"] == (VOCAB + 3, WIDTH)
    assert [shard.like for shard in plan.shards] == [None]
    plan = plan_merge(str(make_adapter(tmp_path / "still-tied", tied, lora_too)))
    assert plan.config_changes == {"vocab_size": VOCAB + 3}
    assert "lm_head.weight" not in {each.name for each in plan.outputs}
    del lora_too[f"{PREFIX}{HEAD}.weight"]
    assert "rows" in refusal(make_adapter(tmp_path / "one", base, lora_too))


def test_trained_tokens(base: Path, tied: Path, tmp_path: Path) -> None:
    rows = {f"{PREFIX}{EMBED}.token_adapter.trainable_tokens_delta": (2, WIDTH)} | lora(linear(llama()), llama())
    for name, place in (("of-two", base), ("of-one", tied)):
        adapter = make_adapter(tmp_path / name, place, rows, trainable_token_indices=[3, 1])
        step = names_of(adapter)[f"{EMBED}.weight"][0]
        assert isinstance(step, ReplaceRows)
        assert step.rows == (3, 1)
        assert plan_merge(str(adapter)).config_changes == {}
    assert "16 x 8" in refusal(make_adapter(tmp_path / "beyond", base, rows, trainable_token_indices=[3, VOCAB]))


def test_biases(tmp_path: Path) -> None:
    q = "model.layers.0.self_attn.q_proj"
    base = make_base(tmp_path / "base", llama() | {f"{q}.bias": (WIDTH,)})
    pair = lora([q], llama())
    one = make_adapter(tmp_path / "replaced", base, pair | {f"{PREFIX}{q}.base_layer.bias": (WIDTH,)},
                       target_modules=r".*0.*q_proj")  # fmt: skip
    assert isinstance(names_of(one)[f"{q}.bias"][0], Replace)
    two = make_adapter(tmp_path / "added", base, pair | {f"{PREFIX}{q}.lora_B.bias": (WIDTH,)}, lora_bias=True,
                       target_modules=r".*0.*q_proj")  # fmt: skip
    assert kinds(two) == {f"{q}.weight": ["AddLora"], f"{q}.bias": ["AddBias"]}
    three = make_adapter(tmp_path / "nowhere", base, lora([UP], llama()) | {f"{PREFIX}{UP}.lora_B.bias": (INNER,)},
                         lora_bias=True, target_modules=r".*0.*up_proj")  # fmt: skip
    assert "(`lora_bias`), and the base's layer has none" in refusal(three)


# --- options ---------------------------------------------------------------------------------------------------------


def test_dtype_and_size_of_files(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    plan = plan_merge(str(adapter), dtype="fp32", max_shard_size="1KB")
    assert {each.dtype for each in plan.outputs} == {"F32"}
    assert plan.dtype == "float32"
    assert plan.nbytes == 2 * plan_merge(str(adapter)).nbytes
    assert all(shard.nbytes <= 1000 or len(shard.tensors) == 1 for shard in plan.shards)
    assert plan.shards[0].name == f"model-00001-of-{len(plan.shards):05}.safetensors"
    assert len(plan_merge(str(adapter), max_shard_size="5 GiB").shards) == 1


def test_all_that_is_wrong_is_said_at_once(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, layer_replication=[[0, 1]], use_fora=1)
    without_weights(adapter)
    message = refusal(adapter, dtype="int8")
    for said in ("--dtype int8", "use_fora", "layer_replication", "has no adapter weights"):
        assert said in message
    assert "--max-shard-size huge" in refusal(adapter, max_shard_size="huge")
