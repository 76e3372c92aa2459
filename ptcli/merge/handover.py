"""The merge by PEFT itself, with the whole model in memory: for adapters whose arithmetic is not streamed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from ptcli.errors import WorkError
from ptcli.merge.headers import read_tensors
from ptcli.merge.model import MergePlan, Progress, Tensor
from ptcli.merge.quiet import quiet_libraries
from ptcli.merge.stream import BLOCK, Files
from ptcli.recipe.local_models import weight_files

_HEADS = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}
_SHARD = "5GB"


def hand_over(plan: MergePlan, folder: Path, progress: Progress) -> None:
    """Load, merge and save with PEFT. Raises WorkError for whatever PEFT or transformers raise."""
    try:
        with quiet_libraries():
            progress("loading the base", 0, 0)
            model = _load_base(plan)
            progress("merging with PEFT", 0, 0)
            merged = _merge(model, plan)
            progress("saving", 0, 0)
            merged.save_pretrained(folder, max_shard_size=plan.max_shard_bytes or _SHARD)
    except (WorkError, MemoryError):
        raise
    except Exception as error:
        raise WorkError(f"PEFT could not merge it: {' '.join(str(error).split())[:400]}") from error
    for path in weight_files(folder):
        path.chmod(0o644)  # safetensors makes them private


def count_changed(plan: MergePlan, folder: Path) -> tuple[int, int]:
    """How many tensors of a merged folder differ from the base's, or are not in it; and how many do not."""
    before = {each.name: each.source for each in plan.outputs if each.source}
    changed = total = 0
    with Files() as files:
        for path in weight_files(folder):
            for name, tensor in read_tensors(path).items():
                source = before.get(name)
                total += 1
                changed += source is None or not _same_bytes(files, tensor, source)
    return changed, total - changed


def _same_bytes(files: Files, one: Tensor, other: Tensor) -> bool:
    if one.nbytes != other.nbytes or one.dtype != other.dtype:
        return False
    for start in range(0, one.nbytes, BLOCK):
        blocks = [bytearray(min(BLOCK, one.nbytes - start)) for _ in range(2)]
        for block, tensor in zip(blocks, (one, other), strict=True):
            files.fill(memoryview(block), tensor.file, tensor.start + start)
        if blocks[0] != blocks[1]:
            return False
    return True


def _load_base(plan: MergePlan) -> Any:
    model = _auto_class(plan).from_pretrained(plan.base, dtype="auto", **_labels(plan))
    rows = plan.config_changes.get("vocab_size")
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def _auto_class(plan: MergePlan) -> Any:
    """The class that the adapter was trained on: its task's, or the one that the base's config names."""
    head = _HEADS.get(str(plan.adapter_config.get("task_type")))
    named = next((name for name in plan.base_config.get("architectures") or () if hasattr(transformers, name)), None)
    return getattr(transformers, head or named or "AutoModelForCausalLM")


def _labels(plan: MergePlan) -> dict[str, int]:
    """`num_labels` of a classifier or reward model: rows of the head that the adapter brings."""
    if str(plan.adapter_config.get("task_type")) not in _HEADS:
        return {}
    heads = [each for name, each in peft.load_peft_weights(str(plan.adapter), device="cpu").items()
             if name.endswith(("score.weight", "classifier.weight"))]  # fmt: skip
    return {"num_labels": heads[0].shape[0]} if heads else {}


def _merge(model: Any, plan: MergePlan) -> Any:
    """`model` with the adapter in it, rounded as PEFT's default merge does.

    Embeddings that are one tensor are two while an adapter is merged into one of them, or both would get its change,
    and stay two if they then differ.
    """
    untied = untie_embeddings(model) if not plan.adapter_config.get("ensure_weight_tying") else False
    adapted = peft.PeftModel.from_pretrained(model, str(plan.adapter))
    _check_keys(adapted, plan)
    merged = adapted.merge_and_unload()
    if untied:
        _tie_again(merged)
    return merged.to(getattr(torch, plan.dtype)) if plan.dtype else merged


def untie_embeddings(model: Any) -> bool:
    """Make input and output embeddings that are one tensor two; returns whether they were one."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or outputs.weight is not inputs.weight:
        return False
    outputs.weight = torch.nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
    _set_tied(model, False)
    return True


def _tie_again(model: Any) -> None:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs.weight.equal(inputs.weight):
        outputs.weight = inputs.weight
        _set_tied(model, True)


def _set_tied(model: Any, tied: bool) -> None:
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = tied


def _check_keys(adapted: Any, plan: MergePlan) -> None:
    """PEFT drops tensors that the model has no place for, and takes a B of zeros for those that the adapter lacks."""
    kind = adapted.peft_config["default"].peft_type
    prefix = peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, "")
    loaded = peft.set_peft_model_state_dict(adapted, peft.load_peft_weights(str(plan.adapter), device="cpu"))
    lacking = [key for key in loaded.missing_keys if prefix in key and ".default" in key]
    if loaded.unexpected_keys:
        message = f"the base {plan.base_name} has no place for the adapter's {loaded.unexpected_keys[0]}"
        raise WorkError(f"{message}; give the base that it was trained on: --base PATH")
    if lacking and not plan.allow_missing:
        raise WorkError(f"the adapter is not whole: it lacks {lacking[0]}; merge what there is with --allow-missing")
