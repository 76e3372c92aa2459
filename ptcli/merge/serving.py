"""What a server needs beside the weights: configs that tell the truth, the tokenizer that was trained with, a card.

Of the adapter's folder (or the run directory that it lies in) where that has a tokenizer, else of the base. PEFT's
merge and save writes none of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ptcli import __version__
from ptcli.merge.headers import read_tensors
from ptcli.merge.model import MergePlan, Output
from ptcli.plan.launch import RECIPE_FILE
from ptcli.recipe.local_models import is_local, read_json, weight_files
from ptcli.recipe.templates import read_own_template
from ptcli.recipe.tokenizers import read_vocabulary

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "*.tiktoken", "chat_template.jinja", "chat_template.json", "additional_chat_templates",
)  # fmt: skip
PROCESSOR = (
    "preprocessor_config.json", "processor_config.json", "image_processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
"""Of models that see; a trained tokenizer may have been saved without them."""
TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
"""What goes with every copy of the base."""

_TYPES: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_HEADS: Mapping[str, str] = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_NESTED = "text_config"
_HOW = {"stream": "merged tensor by tensor", "handover": "merged by PEFT", "consolidate": "put together"}


def write_serving_files(plan: MergePlan, folder: Path) -> None:
    """Write config, tokenizer, generation config and model card to a folder that has the merged weights.

    A config that is there already (PEFT's, of a merge that was handed over) is what the changes are made to.
    """
    source = tokenizer_folder(plan)
    copy_tokenizer(source, plan.base, folder)
    ends = _ends(source, plan.base)
    config = _config(plan, read_json(folder / "config.json") or dict(plan.base_config), ends, _pad(source))
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", _generation(plan.base, source, ends))
    _copy(plan.base, folder, TERMS)
    if "auto_map" in config:
        _copy(plan.base, folder, ("*.py",))
    (folder / "README.md").write_text(_card(plan, config), encoding="utf-8")


def tokenizer_folder(plan: MergePlan) -> Path:
    """Where the tokenizer that was trained with is: beside the adapter, above it in its run, else with the base."""
    run = [plan.adapter.parent] if plan.adapter.name.startswith("checkpoint-") else []
    return next((each for each in (plan.adapter, *run) if _has_tokenizer(each)), plan.base)


def copy_tokenizer(source: Path, base: Path, folder: Path) -> None:
    """Copy a tokenizer with its template. Where it has no template, and the base has one, that of the base."""
    _copy(source, folder, TOKENIZER)
    _copy(base, folder, PROCESSOR)
    _copy(source, folder, PROCESSOR)
    if read_own_template(source) is None and (template := read_own_template(base)) is not None:
        (folder / "chat_template.jinja").write_text(template.text, encoding="utf-8")


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").exists()


def _copy(source: Path, folder: Path, patterns: Iterable[str]) -> None:
    for path in (path for pattern in patterns for path in sorted(source.glob(pattern))):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)  # of a hub model, what the link in the cache leads to


# --- config ----------------------------------------------------------------------------------------------------------


def _config(plan: MergePlan, config: dict[str, Any], ends: list[int], pad: int | None) -> dict[str, Any]:
    """config.json: the base's, with the merged model's type, vocabulary, tying, head, and what ends a text."""
    changes: dict[str, Any] = dict(plan.config_changes)
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "_name_or_path")}
    dtype = _main_type(plan.outputs)
    if dtype:
        names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
        changes |= dict.fromkeys(names, dtype)
    if ends and config.get("eos_token_id") not in (None, ends[0], ends):
        changes["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if pad is not None:
        changes["pad_token_id"] = pad
    return _with_head(plan, _changed(config, changes))


def _changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes at the top, and in the part on the text model where that says something else."""
    nested = config.get(_NESTED)
    if not isinstance(nested, dict):
        return {**config, **changes}
    inside = {key: value for key, value in changes.items() if key in nested}
    outside = {key: value for key, value in changes.items() if key in config or key not in nested}
    return {**config, **outside} | {_NESTED: nested | inside}


def _main_type(outputs: Iterable[Output]) -> str | None:
    """The type that most bytes of floating-point numbers have."""
    counted: Counter[str] = Counter()
    for each in outputs:
        if each.dtype in _TYPES:
            counted[each.dtype] += each.nbytes
    return _TYPES[counted.most_common(1)[0][0]] if counted else None


def _with_head(plan: MergePlan, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a classifier or reward model, whose head the adapter brings."""
    ending = _HEADS.get(str(plan.adapter_config.get("task_type")))
    head = next((each for each in plan.outputs if each.name in ("score.weight", "classifier.weight")), None)
    if ending is None or head is None:
        return config
    names = [name.partition("For")[0] + ending for name in config.get("architectures") or ()]
    labels = {str(number): f"LABEL_{number}" for number in range(head.shape[0])}
    known = {"id2label": labels, "label2id": {name: int(number) for number, name in labels.items()}}
    return config | {"architectures": names} | ({} if len(config.get("id2label") or ()) == len(labels) else known)


# --- what ends a text ------------------------------------------------------------------------------------------------


def _ends(source: Path, base: Path) -> list[int]:
    """Ids that end a text: that of the tokenizer that was trained with first, then what ended it before."""
    known = (read_json(base / "generation_config.json") or {}).get("eos_token_id")
    if known is None:
        known = (read_json(base / "config.json") or {}).get("eos_token_id")
    before = [each for each in (known if isinstance(known, list) else [known]) if isinstance(each, int)]
    own = _token_id(source, "eos_token")
    return list(dict.fromkeys(([own] if own is not None else []) + before))


def _pad(source: Path) -> int | None:
    return _token_id(source, "pad_token")


def _token_id(folder: Path, name: str) -> int | None:
    """The id of a tokenizer's special token; None where it has none or is in a form that is not read here."""
    token = (read_json(folder / "tokenizer_config.json") or {}).get(name)
    if token is None:
        token = (read_json(folder / "special_tokens_map.json") or {}).get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return (read_vocabulary(folder) or {}).get(token) if isinstance(token, str) else None


def _generation(base: Path, source: Path, ends: list[int]) -> dict[str, Any]:
    """generation_config.json: the base's, and what the trained model ends with."""
    config = read_json(base / "generation_config.json") or {"_from_model_config": True}
    if ends:
        config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for key, name in (("pad_token_id", "pad_token"), ("bos_token_id", "bos_token")):
        number = _token_id(source, name)
        if number is not None and (key not in config or key == "pad_token_id"):
            config[key] = number
    return config


# --- model card ------------------------------------------------------------------------------------------------------


def _card(plan: MergePlan, config: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in (*_origin(plan), *_facts(plan, config)))
    # The hub takes a name for a repository of its own.
    hub = "" if is_local(plan.base_name) else f"base_model: {plan.base_name}\nbase_model_relation: finetune\n"
    name = plan.base_name.rstrip("/").rpartition("/")[2]
    title = f"{name}, trained" if plan.mode == "consolidate" else f"{name}, with an adapter merged in"
    return f"""---
library_name: transformers
{hub}tags:
- ptcli
---

# {title}

A whole model: what was trained is in the weights, and nothing else has to be loaded.

| | |
|---|---|
{rows}

```bash
vllm serve .
```
"""


def _origin(plan: MergePlan) -> Iterator[tuple[str, str]]:
    """What the weights were made of."""
    if plan.mode == "consolidate":
        yield "sharded checkpoint", f"`{plan.adapter}`"
        yield "config of", f"`{plan.base_name}`"
        return
    commit = plan.base.name if plan.base.parent.name == "snapshots" else plan.base_revision
    yield "base", f"`{plan.base_name}`{f' at `{commit}`' if commit else ''}"
    yield "base, sha256 of its tensors' names, types and shapes", f"`{_digest_of_headers(plan.base)}`"
    yield "adapter", f"`{plan.adapter}` ({str(plan.adapter_config.get('peft_type', '')).lower()})"
    for name in ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"):
        if (plan.adapter / name).exists():
            yield f"sha256 of its {name}", f"`{_digest(plan.adapter / name)}`"


def _facts(plan: MergePlan, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    recipe = _recipe(plan.adapter)
    if recipe is not None:
        yield "trained by the recipe", f"`{recipe}`"
        yield "sha256 of the recipe", f"`{_digest(recipe)}`"
    yield "type", str(config.get("dtype") or config.get("torch_dtype"))
    yield "made by", f"ptcli {__version__}, {_HOW[plan.mode]}"
    for note in plan.notes:
        yield "note", note.replace("|", "\\|")


def _recipe(adapter: Path) -> Path | None:
    """The recipe of the run that the adapter lies in."""
    return next((each / RECIPE_FILE for each in (adapter, adapter.parent) if (each / RECIPE_FILE).exists()), None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_headers(base: Path) -> str:
    """Of a model's tensors what tells it from another kind, without reading all of it."""
    digest = hashlib.sha256()
    for path in weight_files(base):
        if path.suffix == ".safetensors":
            for tensor in read_tensors(path).values():
                digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
    return digest.hexdigest()


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
