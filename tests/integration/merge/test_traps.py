"""Where PEFT or transformers are silently wrong, refuse late or say nothing: what `ptcli merge` does there.

PEFT's own behaviour is asserted, too, so that these tests tell when it is mended.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from ptcli.errors import RequestError, WorkError
from ptcli.merge.libtorch import LibTorch, find_library
from ptcli.merge.plan import plan_merge
from ptcli.merge.run import run_merge
from tests.integration.merge.families import (
    VOCAB,
    differing,
    load_base,
    make_adapter,
    make_base,
    merged_by_peft,
    merged_by_us,
    read,
    reconfigure,
    rewrite,
)

ALL = {"target_modules": "all-linear"}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = torch.arange(12).view(1, -1) % VOCAB


def merge(adapter: Path, out: Path, **options: Any) -> Path:
    run_merge(plan_merge(str(adapter), **options), out, verify=False)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.float().eval()(input_ids=IDS).logits


def unmerged(base: Path, adapter: Path, *, untie: bool = False) -> torch.Tensor:
    """What base and adapter compute while PEFT keeps them apart."""
    model = load_base(base).float()
    if untie:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return logits(PeftModel.from_pretrained(model, str(adapter)))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 0.02 * one.abs().max())


# --- tied embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_lora_on_one_of_two_tied_embeddings(module: str, tmp_path: Path) -> None:
    """PEFT's merge puts the change into both; what base and adapter compute unmerged is that of two tensors."""
    base = make_base("llama-tied", tmp_path / "base", dtype=torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=[module], lora_alpha=128)
    right = unmerged(base, adapter, untie=True)
    assert not close(right, logits(PeftModel.from_pretrained(load_base(base), str(adapter)).merge_and_unload()))
    out = merge(adapter, tmp_path / "out")
    assert close(right, logits(load_base(out)))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    other = HEAD if module == "embed_tokens" else EMBED
    assert read(out)[other].equal(read(base)[EMBED])


def test_a_tied_pair_that_was_trained_as_one(tmp_path: Path) -> None:
    """PEFT adds the change twice."""
    base = make_base("llama-tied", tmp_path / "base", dtype=torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    before, theirs = read(base)[EMBED], merged_by_peft(base, adapter, tmp_path / "theirs")[EMBED]
    out = merge(adapter, tmp_path / "out")
    ours = read(out)
    assert HEAD not in ours
    assert torch.allclose(theirs - before, 2 * (ours[EMBED] - before), atol=1e-6)
    assert close(unmerged(base, adapter), logits(load_base(out)))


@pytest.mark.parametrize("rows", [{"lm_head": [5]}, {"embed_tokens": [5, 7], "lm_head": [7, 9]}])
def test_rows_of_a_tied_head_that_are_not_those_of_the_embeddings(rows: dict[str, list[int]], tmp_path: Path) -> None:
    """PEFT puts them into both."""
    base = make_base("llama-tied", tmp_path / "base", dtype=torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], trainable_token_indices=rows)
    right = unmerged(base, adapter, untie=True)
    assert not close(right, logits(PeftModel.from_pretrained(load_base(base), str(adapter)).merge_and_unload()))
    assert close(right, logits(load_base(merge(adapter, tmp_path / "out"))))


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_tied_one_that_was_trained_whole(module: str, tmp_path: Path) -> None:
    base = make_base("llama-tied", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL, modules_to_save=[module])
    out = merge(adapter, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert close(unmerged(base, adapter, untie=True), logits(load_base(out)))


def test_dora_on_a_tied_head_is_handed_over_and_untied(tmp_path: Path) -> None:
    base = make_base("llama-tied", tmp_path / "base", dtype=torch.float32)
    adapter = make_adapter(
        base, tmp_path / "adapter", target_modules=["lm_head", "q_proj"], use_dora=True, lora_alpha=128
    )
    plan = plan_merge(str(adapter))
    assert plan.mode == "handover"
    out = merge(adapter, tmp_path / "out")
    assert close(unmerged(base, adapter, untie=True), logits(load_base(out)))


# --- the wrong base --------------------------------------------------------------------------------------------------


def test_a_base_of_fewer_layers_is_silent_in_peft(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    short = cut_to_one_layer(base, tmp_path / "short")
    merged_by_peft(short, adapter, tmp_path / "theirs")
    with pytest.raises(RequestError, match=r"does not have: model\.layers\.1"):
        plan_merge(str(adapter), base=str(short))


def cut_to_one_layer(base: Path, folder: Path) -> Path:
    model = load_base(base)
    model.config.num_hidden_layers = 1
    model.config.layer_types = None
    model.model.layers = model.model.layers[:1]
    model.save_pretrained(folder)
    return folder


def test_a_handed_over_adapter_on_a_wrong_base_is_an_error_too(tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    base = make_base("llama", tmp_path / "base")
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_base(base), config).save_pretrained(tmp_path / "adapter")
    short = cut_to_one_layer(base, tmp_path / "short")
    with pytest.raises(WorkError, match="has no place for the adapter's"):
        merge(tmp_path / "adapter", tmp_path / "out", base=str(short))
    assert not (tmp_path / "out").exists()


TARGETS = {"target_modules": ["q_proj", "v_proj"]}
OTHER_TYPES: dict[str, dict[str, Any]] = {
    "IA3Config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LoHaConfig": TARGETS, "LoKrConfig": TARGETS, "OFTConfig": TARGETS | {"oft_block_size": 8, "r": 0},
    "VeraConfig": {"target_modules": ["q_proj", "o_proj"]}, "AdaLoraConfig": TARGETS | {"total_step": 10},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_types_are_merged_by_peft(kind: str, tmp_path: Path) -> None:
    import peft

    base = make_base("llama", tmp_path / "base", dtype=torch.float32)
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **OTHER_TYPES[kind])
    model = peft.get_peft_model(load_base(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "adapter")
    theirs = merged_by_peft(base, tmp_path / "adapter", tmp_path / "theirs")
    merged = run_merge(plan_merge(str(tmp_path / "adapter")), tmp_path / "out", verify=False)
    assert differing(read(tmp_path / "out"), theirs) == []
    assert merged.tensors_merged == len(differing(theirs, read(base)))
    assert merged.tensors_merged + merged.tensors_copied == len(theirs)


# --- experts ---------------------------------------------------------------------------------------------------------

LEAVES = {"mixtral": ["w1", "w2", "w3"], "qwen3_moe": ["gate_proj", "up_proj", "down_proj"]}


def older_adapter(kind: str, base: Path, folder: Path, **options: Any) -> Path:
    """An adapter as transformers 4 had them: a pair of A and B for each expert."""
    make_adapter(base, folder, target_modules=["q_proj", "v_proj"], **options)
    torch.manual_seed(3)

    def with_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, weight in read(base).items():
            if ".experts." in name:
                module = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(8, weight.shape[1]) * 0.1
                tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 8) * 0.1
        return tensors

    rewrite(folder, with_experts)
    reconfigure(folder, target_modules=["q_proj", "v_proj", *LEAVES[kind]])
    return folder


@pytest.mark.parametrize("kind", LEAVES)
def test_an_adapter_with_a_pair_for_each_expert(kind: str, tmp_path: Path) -> None:
    base = make_base(kind, tmp_path / "base")
    adapter = older_adapter(kind, base, tmp_path / "adapter")
    ours, theirs = merged_by_us(adapter, tmp_path / "ours"), merged_by_peft(base, adapter, tmp_path / "theirs")
    assert differing(ours, theirs) == []
    experts = {name for name in ours if ".experts." in name}
    assert experts <= set(differing(ours, read(base)))


def test_rslora_of_experts_is_scaled_as_it_was_trained(tmp_path: Path) -> None:
    """PEFT doubles rank and alpha of gate and up when it fuses them: alpha / sqrt(r) becomes too large by sqrt(2)."""
    base = make_base("qwen3_moe", tmp_path / "base", dtype=torch.float32)
    adapter = older_adapter("qwen3_moe", base, tmp_path / "adapter", use_rslora=True)
    before, ours = read(base), merged_by_us(adapter, tmp_path / "ours")
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    up, down = (f"model.layers.0.mlp.experts.0.{leaf}.weight" for leaf in ("up_proj", "down_proj"))
    assert torch.allclose(theirs[down], ours[down])
    assert torch.allclose(theirs[up] - before[up], 2**0.5 * (ours[up] - before[up]), atol=1e-5)


def test_one_of_two_expert_parameters(tmp_path: Path) -> None:
    for leaf in ("gate_up_proj", "down_proj"):
        base = make_base("qwen3_moe", tmp_path / leaf / "base")
        adapter = make_adapter(base, tmp_path / leaf / "adapter", target_modules=["q_proj"],
                               target_parameters=[f"mlp.experts.{leaf}"])  # fmt: skip
        ours = merged_by_us(adapter, tmp_path / leaf / "ours")
        assert differing(ours, merged_by_peft(base, adapter, tmp_path / leaf / "theirs")) == []
        assert any(".experts.1." in name for name in differing(ours, read(base)))


# --- names, vocabularies, starts -------------------------------------------------------------------------------------


def test_a_checkpoint_without_the_prefix_of_its_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_base("gpt2", tmp_path / "base", shards="10MB")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    path = base / "model.safetensors"
    save_file(
        {name.removeprefix("transformer."): each for name, each in load_file(path).items()}, path, {"format": "pt"}
    )
    ours = {f"transformer.{name}": each for name, each in merged_by_us(adapter, tmp_path / "ours").items()}
    assert differing(ours, theirs) == []


def test_a_larger_vocabulary(tmp_path: Path) -> None:
    """PEFT's plain way fails with a size mismatch, after the base was loaded."""
    from peft import LoraConfig, get_peft_model

    base = make_base("llama", tmp_path / "base")
    model = load_base(base)
    model.resize_token_embeddings(VOCAB + 8)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "adapter", save_embedding_layers=True
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(load_base(base), str(tmp_path / "adapter"))
    out = merge(tmp_path / "adapter", tmp_path / "out")
    merged = load_base(out)
    assert merged.config.vocab_size == VOCAB + 8
    assert merged.lm_head.weight.equal(model.lm_head.weight)
    assert merged.get_input_embeddings().weight.equal(model.get_input_embeddings().weight)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base_is_repeated(start: str, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", dtype=torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    out = merge(adapter, tmp_path / "out")
    assert close(unmerged(base, adapter), logits(load_base(out)))


def test_a_key_that_peft_ignores(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    reconfigure(adapter, scale_of_tomorrow=2)
    with pytest.warns(UserWarning, match="scale_of_tomorrow"):
        PeftModel.from_pretrained(load_base(base), str(adapter))
    with pytest.raises(RequestError, match="scale_of_tomorrow"):
        plan_merge(str(adapter))


def test_an_adapter_that_lacks_tensors(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    rewrite(adapter, lambda tensors: {name: each for name, each in tensors.items() if ".1.mlp.up_proj" not in name})
    with pytest.raises(RequestError, match="for which it has no tensors"):
        plan_merge(str(adapter))
    ours = merged_by_us(adapter, tmp_path / "ours", allow_missing=True)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    assert differing(ours, theirs) == []


# --- files -----------------------------------------------------------------------------------------------------------


def test_shards_without_an_index(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", shards="20KB")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_base(base)
    out = merge(adapter, tmp_path / "out")
    assert differing(read(out), theirs) == []
    load_base(out)


@pytest.mark.parametrize("shards", ["10MB", "20KB"])
def test_a_pickled_base(shards: str, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", shards=shards)
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    pickle_weights(base)
    assert plan_merge(str(adapter)).mode == "handover"
    assert differing(read(merge(adapter, tmp_path / "out")), theirs) == []


def pickle_weights(base: Path) -> None:
    from safetensors.torch import load_file

    for path in base.glob("*.safetensors"):
        torch.save(
            load_file(path), base / path.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        )
        path.unlink()
    index = base / "model.safetensors.index.json"
    if index.exists():
        told = json.loads(index.read_text())
        names = {name: file.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
                 for name, file in told["weight_map"].items()}  # fmt: skip
        (base / "pytorch_model.bin.index.json").write_text(json.dumps(told | {"weight_map": names}))
        index.unlink()


def test_files_keep_their_layout_or_are_cut_anew(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", shards="20KB")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    out = merge(adapter, tmp_path / "out")
    names = {path.name: path.stat().st_size for path in base.glob("*.safetensors")}
    assert {path.name: path.stat().st_size for path in out.glob("*.safetensors")} == names
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in read(out).values())
    one = merge(adapter, tmp_path / "one", max_shard_size="1GB")
    assert [path.name for path in one.glob("*.safetensors")] == ["model.safetensors"]
    assert differing(read(one), read(out)) == []


def test_another_dtype_is_one_rounding_of_the_merged_weights(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", dtype=torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    out = merge(adapter, tmp_path / "out", dtype="bfloat16")
    theirs = {name: each.bfloat16() for name, each in merged_by_peft(base, adapter, tmp_path / "theirs").items()}
    assert differing(read(out), theirs) == []
    assert load_base(out).dtype == torch.bfloat16


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_a_nan(value: float, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    broken = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[broken][3, 2] = value
        return tensors

    rewrite(adapter, spoil)
    with pytest.raises(WorkError, match=f"{broken} holds NaN or infinity"):
        merge(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_sum_that_is_too_large_for_float16(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", dtype=torch.float16)
    adapter = make_adapter(base, tmp_path / "adapter", **ALL, lora_alpha=16_000_000)
    with pytest.raises(WorkError, match="too large for float16"):
        merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", [1, 3, 64, 200])
def test_ranks(rank: int, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL, r=rank, lora_alpha=rank)
    theirs = merged_by_peft(base, adapter, tmp_path / "theirs")
    assert differing(merged_by_us(adapter, tmp_path / "ours"), theirs) == []
    assert differing(merged_by_us(adapter, tmp_path / "lean", numbers=LibTorch(find_library())), theirs) == []


def test_blocks_are_the_same_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptcli.merge import stream

    base = make_base("qwen2", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules="all-linear", lora_bias=True, bias="none",
                           exclude_modules=["o_proj", "gate_proj", "up_proj", "down_proj"],
                           trainable_token_indices=[0, 5, 63])  # fmt: skip
    whole = merged_by_us(adapter, tmp_path / "whole")
    monkeypatch.setattr(stream, "BLOCK", 200)
    assert differing(merged_by_us(adapter, tmp_path / "blocks"), whole) == []
    shutil.rmtree(tmp_path / "blocks")
    monkeypatch.setattr(stream.os, "copy_file_range", _not_here)
    assert differing(merged_by_us(adapter, tmp_path / "blocks"), whole) == []


def _not_here(*_: Any) -> int:
    raise OSError(18, "Invalid cross-device link")
