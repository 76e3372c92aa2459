"""The adapter, put on a model without weights: what PEFT itself says of it before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptcli.errors import KeyPath, Problem, PtcliError
from ptcli.recipe.model import Recipe
from ptcli.recipe.suggest import nearest
from ptcli.train.checks import Finding

_BLAMED = ("target_modules", "target_parameters", "modules_to_save", "trainable_token_indices", "layers_to_transform",
           "rank_pattern", "alpha_pattern", "init_lora_weights", "layers_pattern", "exclude_modules")  # fmt: skip
"""Fields whose name in PEFT's message says which key is at fault."""


def check_adapter(recipe: Recipe) -> Iterator[Finding]:
    """What is wrong with the recipe's `peft` section; nothing when the model's config cannot be had here."""
    if recipe.peft is None:
        return
    try:
        model = _empty_model(recipe)
        if model is None:
            return
        unmatched = list(_unmatched(model, recipe.peft))
        trained = 1 if unmatched else _put_on(model, recipe)
    except PtcliError as error:
        yield Finding(Problem(str(error).removeprefix("peft: "), "", ("peft",)))
        return
    except Exception as error:  # whatever PEFT raises of a section is a finding about the section
        message = " ".join(str(error).split())[:400]
        yield Finding(Problem(f"PEFT refuses the adapter: {message}", "", _blame(message, recipe.peft)))
        return
    yield from unmatched
    if trained == 0:
        yield Finding(Problem("the adapter has nothing to train on this model", "look at its targets", ("peft",)))


def _empty_model(recipe: Recipe) -> Any:
    """The model on the meta device, which has shapes and no weights; None when its config is not to be had."""
    import torch
    import transformers

    from ptcli.methods import METHODS
    from ptcli.recipe.local_models import find_base
    from ptcli.train.models import auto_class

    path, revision = find_base(recipe.model.path, recipe.model.revision)
    code = recipe.model.trust_remote_code
    try:
        config = transformers.AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=code)
        with torch.device("meta"):
            return auto_class(METHODS[recipe.method].head).from_config(config, trust_remote_code=code)
    except Exception:  # offline, or an architecture that this check does not know: the worker will tell
        return None


def _unmatched(model: Any, section: Mapping[str, Any]) -> Iterator[Finding]:
    """Names that match nothing in the model: PEFT is content when another one does."""
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    for field, known in (("target_modules", modules), ("modules_to_save", modules), ("target_parameters", parameters)):
        given = section.get(field)
        for index, name in enumerate(given if isinstance(given, list) else []):
            if not any(each == name or each.endswith(f".{name}") for each in known):
                yield _nothing_called(str(name), known, ("peft", field, index))
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in section.get(field) or {}:
            if not any(re.fullmatch(rf"(.*\.)?({pattern})", each) for each in modules + parameters):
                yield _nothing_called(str(pattern), modules, ("peft", field, pattern))


def _nothing_called(name: str, known: Sequence[str], key: KeyPath) -> Finding:
    last = sorted({each.rpartition(".")[2] for each in known if each and not each.endswith(("weight", "bias"))})
    near = nearest(name, [*known, *last])
    fix = f"did you mean `{near}`?" if near else f"names look like {known[-1]}"
    return Finding(Problem(f"the model has nothing called `{name}`", fix, key))


def _put_on(model: Any, recipe: Recipe) -> int:
    """Number of values that the adapter trains. Starts that need weights (PiSSA and others) are left out."""
    import peft

    from ptcli.methods import METHODS
    from ptcli.train.models import peft_config

    config = peft_config(recipe.peft, METHODS[recipe.method].head)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True
    adapted = peft.get_peft_model(model, config, low_cpu_mem_usage=True)
    return sum(each.numel() for each in adapted.parameters() if each.requires_grad)


def _blame(message: str, section: dict[str, Any]) -> KeyPath:
    """The key that a message of PEFT's is about: the first of the section that it names."""
    said = message.lower().replace(" ", "_")
    key = next((name for name in _BLAMED if name in section and name in said), None)
    return ("peft", key) if key else ("peft",)
