"""Verification: what it computes module by module is what PEFT and transformers compute, and a wrong merge is found."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ptcli.errors import Interrupted, WorkError
from ptcli.merge import verify
from ptcli.merge.layered import Float32, Unfilled, Workers, maps, parameter_of
from ptcli.merge.model import MergePlan, Verification
from ptcli.merge.plan import plan_merge
from ptcli.merge.run import run_merge
from ptcli.merge.structure import INDEX
from ptcli.merge.verify import prompts_for, verify_merge
from ptcli.run.signals import signals_raised
from tests.integration.merge.families import FAMILIES, load_base, make_adapter, make_base, rewrite

ALL = {"target_modules": "all-linear"}
TEXT = {"target_modules": r".*language_model.*(q_proj|v_proj|up_proj|down_proj)"}
EXPERTS = ("mixtral", "qwen3_moe")


def make_merge(tmp_path: Path, kind: str, **options: Any) -> tuple[MergePlan, Path]:
    """A tiny model, an adapter, and what `ptcli merge --no-verify` makes of them."""
    base = make_base(kind, tmp_path / "base", shards="20KB")
    plan = plan_merge(str(make_adapter(base, tmp_path / "adapter", **options)))
    run_merge(plan, tmp_path / "out", verify=False)
    return plan, tmp_path / "out"


def check(plan: MergePlan, folder: Path) -> Verification:
    return verify_merge(plan, folder, progress=lambda *_: None)


@pytest.mark.parametrize("kind", FAMILIES)
def test_logits_are_those_of_whole_models(kind: str, tmp_path: Path) -> None:
    plan, out = make_merge(tmp_path, kind, **(TEXT if kind == "qwen2_vl" else ALL))
    ours = verify._both_layered(plan, out, lambda *_: None)
    base, merged = (load_base(folder).float().eval() for folder in (plan.base, out))
    ids = prompts_for(plan, base.get_input_embeddings())
    with torch.no_grad():
        before = base(input_ids=ids).logits
        reference = PeftModel.from_pretrained(base, str(plan.adapter)).eval()(input_ids=ids).logits
        theirs = reference, merged(input_ids=ids).logits
    for one, other in zip(ours, theirs, strict=True):
        apart = (one - other).abs().amax(-1).flatten()
        # PEFT rounds the change of an expert to the weight's type in its forward, and a token may then take another.
        assert apart.median() < 5e-3 if kind in EXPERTS else apart.max() < 1e-4
    assert float((before - reference).abs().max()) > 0.02, "an adapter that changes nothing would be easy to merge"
    found = check(plan, out)
    assert found.way == "layer by layer"
    assert 0 < found.relative < verify.limit_of(plan) / 2
    assert found.top1 > 0.8


@pytest.mark.parametrize("options", [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "trainable_token_indices": [3, 60]},
], ids=str)  # fmt: skip
def test_tied_embeddings(options: dict[str, Any], tmp_path: Path) -> None:
    plan, out = make_merge(tmp_path, "llama-tied", **options)
    assert check(plan, out).complete


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_pefts_own_merge_into_tied_embeddings_is_found(module: str, tmp_path: Path) -> None:
    plan, _ = make_merge(tmp_path, "llama-tied", target_modules=["q_proj", module])
    theirs = tmp_path / "theirs"
    PeftModel.from_pretrained(load_base(plan.base), str(plan.adapter)).merge_and_unload().save_pretrained(theirs)
    with pytest.raises(WorkError, match="does not compute what base and adapter do"):
        verify._judge(plan, verify.compare_logits(plan, theirs, lambda *_: None))


def test_a_wrong_scale_is_found(tmp_path: Path) -> None:
    plan, out = make_merge(tmp_path, "llama", **ALL)
    rewrite(
        plan.adapter, lambda tensors: {name: each * (1.2 if "lora_B" in name else 1) for name, each in tensors.items()}
    )
    with pytest.raises(WorkError, match="does not compute what base and adapter do"):
        check(plan, out)


@pytest.mark.parametrize(
    ("task", "options"),
    [("SEQ_CLS", ALL), ("TOKEN_CLS", ALL | {"exclude_modules": ["score"]}), ("SEQ_CLS", ALL | {"use_dora": True})],
)
def test_classifiers_and_reward_models(task: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    head = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}[task]
    model = getattr(transformers, head).from_pretrained(base, num_labels=1 if task == "SEQ_CLS" else 2)
    adapted = get_peft_model(model, LoraConfig(r=4, task_type=task, **options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    plan = plan_merge(str(tmp_path / "adapter"))
    run_merge(plan, tmp_path / "out", verify=False)
    assert check(plan, tmp_path / "out").max_abs_diff is not None
    loaded, info = getattr(transformers, head).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.config.num_labels == model.config.num_labels


def test_a_vocabulary_that_grew(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    model = load_base(base)
    model.resize_token_embeddings(72)
    grown = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.nn.init.normal_(grown.get_input_embeddings().weight, std=0.1)
    grown.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    rewrite(tmp_path / "adapter", lambda tensors: {n: t + 0.05 if "lora_B" in n else t for n, t in tensors.items()})
    plan = plan_merge(str(tmp_path / "adapter"))
    run_merge(plan, tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 72
    assert check(plan, tmp_path / "out").complete


def test_an_adapter_that_reads_its_base_is_compared_as_a_whole(tmp_path: Path) -> None:
    plan, out = make_merge(tmp_path, "llama", target_modules=["q_proj"], init_lora_weights="pissa")
    assert check(plan, out).way == "as a whole"


def test_what_fits_nowhere_is_verified_in_structure_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = make_merge(tmp_path, "llama", target_modules=["q_proj"], init_lora_weights="pissa")
    monkeypatch.setattr(verify, "_whole_bytes", lambda plan: 1 << 60)
    found = check(plan, out)
    assert found.max_abs_diff is None
    assert "structure only" in found.line()
    assert "1073741824.0 GiB" in found.line()


# --- structure -------------------------------------------------------------------------------------------------------


def change(folder: Path, work: Any) -> None:
    """Change the tensors of the first of a folder's files."""
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    work(tensors)
    save_file(tensors, path, {"format": "pt"})


def drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(iter(tensors)))


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].flatten()[:-1].clone()


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    next(each for name, each in tensors.items() if "proj" in name).view(-1)[5] = torch.nan


@pytest.mark.parametrize(("work", "message"), [
    (drop, "is missing"), (reshape, "has the shape"), (spoil, "not finite"),
])  # fmt: skip
def test_a_spoilt_file(work: Any, message: str, tmp_path: Path) -> None:
    plan, out = make_merge(tmp_path, "llama", **ALL)
    change(out, work)
    with pytest.raises(WorkError, match=message):
        check(plan, out)


def test_an_index_that_lies(tmp_path: Path) -> None:
    plan, out = make_merge(tmp_path, "llama", **ALL)
    index = json.loads((out / INDEX).read_text())
    index["metadata"]["total_size"] = len(index["weight_map"])
    (out / INDEX).write_text(json.dumps(index))
    with pytest.raises(WorkError, match="bytes, and there are"):
        check(plan, out)


def test_an_adapter_that_was_not_trained(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **ALL)
    rewrite(adapter, lambda tensors: {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in tensors.items()})
    with pytest.raises(WorkError, match="the adapter changes nothing"):
        run_merge(plan_merge(str(adapter)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_are_let_go(tmp_path: Path) -> None:
    plan, out = make_merge(tmp_path, "mistral", **ALL)
    model = verify._layered(plan, out, True, lambda *_: None)
    verify._run(model, plan, verify.Float32())
    assert all(
        parameter.isnan().all() and parameter.untyped_storage().nbytes() == 4 for parameter in model.parameters()
    )


def test_limit_follows_the_coarsest_type(tmp_path: Path) -> None:
    plan, _ = make_merge(tmp_path, "llama", target_modules=["q_proj"])
    fine = tuple(replace(shard, tensors=tuple(replace(t, dtype="F32") for t in shard.tensors)) for shard in plan.shards)
    assert verify.limit_of(plan) == pytest.approx(12 * 2**-9 * 2**0.5)
    assert verify.limit_of(replace(plan, shards=fine)) < 1e-4


def test_config_is_read_by_transformers(tmp_path: Path) -> None:
    _, out = make_merge(tmp_path, "llama-tied", target_modules=["q_proj", "lm_head"])
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.tie_word_embeddings is False
    assert config.dtype == torch.bfloat16


def test_a_signal_ends_both_computations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = make_merge(tmp_path, "llama", **ALL)
    all_there = Barrier(3)

    def run(model: Any, plan: MergePlan, mode: Any) -> torch.Tensor:
        all_there.wait(30)
        with mode:
            while True:
                torch.ones(1) + 1

    def interrupt() -> None:
        all_there.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(verify, "_run", run)
    Thread(target=interrupt).start()
    with pytest.raises(Interrupted), signals_raised():
        verify._both_layered(plan, out, lambda *_: None)


def test_tied_embeddings_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = make_merge(tmp_path, "llama-tied", target_modules=["q_proj", "lm_head"])

    def fails(*_: Any) -> Any:
        raise RuntimeError("an architecture of its own kind")

    monkeypatch.setattr(verify, "_both_layered", fails)
    found = check(plan, out)
    assert (found.way, found.max_abs_diff is None) == ("as a whole", False)


def test_a_matrix_that_was_multiplied_is_no_longer_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.randn(4096, 2048, generator=torch.Generator().manual_seed(1)).bfloat16()}, path)
    assert maps(path)
    with safe_open(path, framework="pt") as file:
        weight = file.get_tensor("weight")
    expected = torch.nn.functional.linear(torch.ones(2, 2048), weight.float())
    assert resident(path) >= weight.nbytes
    with Float32():
        found = torch.nn.functional.linear(torch.ones(2, 2048), parameter_of(weight, mapped=True))
    assert resident(path) < weight.nbytes / 4
    assert torch.allclose(found, expected, atol=1e-3)
    assert weight.float().sum().isfinite(), "it can be read again"
    assert resident(path) >= weight.nbytes


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process' memory."""
    counts, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            inside = line.endswith(str(path.resolve()))
        elif inside and line.startswith("Rss:"):
            counts.append(int(line.split()[1]) << 10)
    return sum(counts)


LEAN = """
import sys
from ptcli.merge.verify_child import import_libraries
import_libraries()
loaded = {"torch._dynamo.utils", "torch.distributed.tensor", "torch._decomp", "sympy"} & sys.modules.keys()
assert not loaded, loaded
import torch
from transformers import masking_utils
assert type(masking_utils.TransformGetItemToIndex()).__name__ == "TransformGetItemToIndex"
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
assert torch._dynamo.__file__ and torch._meta_registrations.__file__
"""


def test_the_process_that_verifies_does_without_the_compiler_until_it_is_asked_for() -> None:
    subprocess.run([sys.executable, "-c", LEAN], check=True)


STRUCTURE = """
import importlib.metadata, json
import_libraries()
import transformers
from transformers.utils.import_utils import PACKAGE_DISTRIBUTION_MAPPING as distributions
assert distributions["PIL"] == ["pillow"] and distributions.get("no_such_package") is None
assert importlib.metadata.packages_distributions()["PIL"] == ["pillow"]
print(json.dumps([transformers._class_to_module, transformers.models._class_to_module], sort_keys=True))
"""


def test_transformers_finds_all_of_its_classes_when_it_looks_quickly() -> None:
    ways = "from ptcli.merge.verify_child import import_libraries", "def import_libraries() -> None: pass"
    quick, plain = (
        subprocess.run([sys.executable, "-c", way + STRUCTURE], check=True, capture_output=True).stdout for way in ways
    )
    assert quick == plain
    assert b"LlamaForCausalLM" in quick


MANY = """
import pickle, sys
from ptcli.merge.verify_child import import_libraries
import_libraries()
from ptcli.merge.verify import verify_merge
for plan, folder in pickle.load(sys.stdin.buffer):
    print(verify_merge(plan, folder, progress=lambda *_: None))
"""


def test_the_process_that_verifies_finds_what_this_one_does(tmp_path: Path) -> None:
    merges = [make_merge(tmp_path / kind, kind, **(TEXT if kind == "qwen2_vl" else ALL)) for kind in FAMILIES]
    there = subprocess.run(
        [sys.executable, "-c", MANY], check=True, input=pickle.dumps(merges), capture_output=True
    ).stdout.decode()
    assert there.splitlines() == [str(check(plan, folder)) for plan, folder in merges]


def test_threads_share_a_matrix() -> None:
    weight = torch.randn(1000, 8192, generator=torch.Generator().manual_seed(1)).bfloat16()
    with ThreadPoolExecutor(3) as pool, Float32(workers=Workers(pool, 3)):
        found = torch.nn.functional.linear(torch.eye(8192)[:5], weight, torch.ones(1000))
    assert torch.equal(found, weight[:, :5].t().float() + 1)


def test_a_thread_that_fails_ends_the_computation() -> None:
    def fails(first: int, end: int) -> None:
        raise ValueError(f"{first} to {end}")

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="0 to 4"):
        Workers(pool, 2).share(fails, rows=7, least=1)


def test_only_tensors_without_memory_are_left_unfilled() -> None:
    with Unfilled():
        layer = torch.nn.Linear(50, 50)
        torch.nn.init.normal_(torch.empty(1 << 30, device="meta"))
        torch.nn.init.kaiming_uniform_(tensor=torch.empty(1 << 15, 1 << 15, device="meta"))
    assert 0.01 < layer.weight.std() < 1
    assert len(layer.weight.unique()) > 1000
