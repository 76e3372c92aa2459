"""Trainer arguments that do not go together, with each other or with the machine: what TRL and transformers would say
after the model is loaded, or not at all. A rule holds where the method's config has the fields that it is about.

Sources: TRL 1.12's trainers, user-pain.md R18 and R19.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS
from ptcli.plan.arguments import argument, argument_key, computes_in
from ptcli.plan.first_row import first_row, is_conversational
from ptcli.plan.resolve import MODELS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.scorers import is_reward_model
from ptcli.recipe.templates import ChatTemplate, read_named_template, read_own_template, shipped_templates
from ptcli.recipe.tokenizers import tokenizer_folder

FLASH = (
    "flash_attention_2",
    "flash_attention_3",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
    "kernels-community/vllm-flash-attn3",
)
"""Attention that keeps packed rows apart (trl's `FLASH_ATTENTION_VARIANTS`)."""

_PACKS_ROWS = ("bfd", "bfd_split", "bfd-requeue")
"""Packing strategies whose rows must not see each other; `wrapped` cuts one long text into blocks."""
KEEPS_MASTERS = frozenset({"DEEPSPEED", "FSDP"})
"""Kinds of launch that hold a float32 copy of half-precision weights for the optimizer."""
_LIGER_FIX = "leave it out, or set use_liger_kernel: false"


def training_problems(recipe: Recipe, device: str, kind: str = "NO", *, assumed: bool = False) -> list[Problem]:
    """Everything that is wrong. `device` is where the trainer computes ("cpu" or "cuda"), `kind` accelerate's
    distributed_type; on an `assumed` machine nothing is said about what is installed."""
    return [
        *_scaled_halves(recipe, kind),
        *_attention(recipe, device),
        *_packing(recipe, device),
        *_liger(recipe, device, assumed=assumed),
        *_answers_only(recipe),
        *_moving_reference(recipe),
        *_reward_templates(recipe),
        *_mismatched_pairs(recipe),
    ]


def _scaled_halves(recipe: Recipe, kind: str) -> Iterator[Problem]:
    """Training in fp16 scales the loss, and torch's GradScaler takes gradients in float32 only. An adapter's are."""
    if computes_in(recipe) != "fp16" or kind in KEEPS_MASTERS:
        return
    for section in ("value_model",) if recipe.trains_adapter else ("model", "value_model"):
        spec = getattr(recipe, section)
        if spec is not None and spec.dtype == "float16":
            message = f"training.fp16 scales the gradients, and those of {section}.dtype float16 cannot be scaled back"
            yield Problem(message, f"set {section}.dtype: float32", (section, "dtype"))


# --- attention and packing -------------------------------------------------------------------------------------------


def _attention(recipe: Recipe, device: str) -> Iterator[Problem]:
    """Flash attention has no CPU kernels, and none for float32."""
    for section in MODELS:
        spec = getattr(recipe, section)
        attention = spec.attn_implementation if spec is not None else None
        if attention is None or "flash" not in attention:
            continue
        key = (section, "attn_implementation")
        if device == "cpu":
            yield Problem(f"{section}.attn_implementation: {attention} needs a GPU", "use sdpa on a CPU", key)
        elif computes_in(recipe) == "no" and (spec.dtype or "float32") == "float32":
            message = f"{section}.attn_implementation: {attention} computes in half precision only, and this is float32"
            yield Problem(message, "set training.bf16: true, or the model's dtype", key)


def _packing(recipe: Recipe, device: str) -> Iterator[Problem]:
    known = fields(METHODS[recipe.method].config)
    if not {"packing", "padding_free", "packing_strategy"} <= known.keys():
        return
    packs, free, length = (argument(recipe, name) for name in ("packing", "padding_free", "max_length"))
    if packs and length is None:
        message = "training.packing fills sequences up to training.max_length, which is null"
        yield Problem(message, "give max_length a number", argument_key(recipe, ("max_length", "packing")))
    if free and not packs and length is not None:
        message = f"training.padding_free without packing does not cut rows to max_length ({length})"
        yield Problem(message, "set max_length: null, or packing: true", ("training", "padding_free"))
    strategy = argument(recipe, "packing_strategy")
    flattens = free or (packs and strategy in _PACKS_ROWS)
    if flattens and device == "cuda" and recipe.model.attn_implementation not in FLASH:
        yield _sees_its_neighbours(recipe, "packing" if packs else "padding_free", strategy)


def _sees_its_neighbours(recipe: Recipe, name: str, strategy: str) -> Problem:
    attention = recipe.model.attn_implementation or "sdpa"
    how = f" ({strategy})" if name == "packing" else ""
    message = (
        f"training.{name}{how} puts rows into one sequence, and with attention {attention} they may see each other"
    )
    other = ", or packing_strategy: wrapped" if name == "packing" else ""
    return Problem(message, f"set model.attn_implementation to {' or '.join(FLASH[:3])}{other}", ("training", name))


# --- Liger -----------------------------------------------------------------------------------------------------------

_LIGER_REFUSES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("loss_type", lambda value: value == "chunked_nll", "has no place: both save the same memory"),
    ("loss_type", lambda value: value == "apo_zero_unpaired", "is not among its losses"),
    ("loss_type", lambda value: isinstance(value, list) and len(value) > 1, "is one loss at a time"),
    ("f_divergence_type", lambda value: value not in (None, "reverse_kl"), "would be ignored"),
    ("precompute_ref_log_probs", bool, "is not built there"),
    ("off_policy_mask_threshold", lambda value: value is not None, "is not built there"),
    ("top_entropy_quantile", lambda value: value is not None and value < 1, "is not built there"),
    ("entropy_coef", lambda value: bool(value), "is not built there"),
    ("use_adaptive_entropy", bool, "is not built there"),
)
"""Trainer argument, what of it TRL refuses with the Liger kernel, and why."""


def _liger(recipe: Recipe, device: str, *, assumed: bool) -> Iterator[Problem]:
    if not argument(recipe, "use_liger_kernel", False):
        return
    key = ("training", "use_liger_kernel")
    if device == "cpu":
        yield Problem("training.use_liger_kernel: its kernels need a GPU", "leave it out on a CPU", key)
    elif not assumed and importlib.util.find_spec("liger_kernel") is None:
        yield Problem("training.use_liger_kernel: liger-kernel is not installed", "pip install 'ptcli[liger]'", key)
    for name, refused, why in _LIGER_REFUSES:
        value = argument(recipe, name)
        if refused(value):
            message = f"training.{name} {value} does not go with use_liger_kernel, where it {why}"
            yield Problem(message, _LIGER_FIX, argument_key(recipe, (name, "use_liger_kernel")))


# --- loss on the assistant's words -----------------------------------------------------------------------------------


def _answers_only(recipe: Recipe) -> Iterator[Problem]:
    """`assistant_only_loss`: which words are the assistant's, the chat template must say (user-pain.md D2)."""
    if not argument(recipe, "assistant_only_loss", False):
        return
    key = ("training", "assistant_only_loss")
    row = next((row for entry in recipe.data.train if (row := first_row(entry))), None)
    if row is not None and not is_conversational(row):
        columns = ", ".join(map(str, row)) or "no column"
        message = (
            f"training.assistant_only_loss needs chats (a column `messages`), and rows of data.train have {columns}"
        )
        fix = "leave it out" + (", or rename: {conversations: messages}" if "conversations" in row else "")
        yield Problem(message, fix, key)
        return
    folder = tokenizer_folder(recipe.model)
    named = recipe.model.chat_template
    template = read_named_template(named) if named else read_own_template(folder) if folder else None
    if template is None and folder and not named:
        message = f"training.assistant_only_loss: {recipe.model.path} has no chat template"
        yield Problem(message, "name one in model.chat_template", key)
    elif template is not None and not template.marks_answers and not _has_training_form(template):
        message = f"training.assistant_only_loss: {template.source} does not mark what the assistant says"
        fix = "put `{% generation %}` and `{% endgeneration %}` around it, or name one of TRL's (*_training)"
        yield Problem(message, fix, key)


def _has_training_form(template: ChatTemplate) -> bool:
    """Whether it is one of those for which TRL has the same with the assistant's words marked."""
    names = shipped_templates()
    forms = (name.removesuffix("_training") for name in names if name.endswith("_training"))
    shipped = (read_named_template(name) for name in forms if name in names)
    return any(each is not None and each.text == template.text for each in shipped)


def _reward_templates(recipe: Recipe) -> Iterator[Problem]:
    """A reward model among `rewards` reads chats through its own tokenizer's template (user-pain.md R10)."""
    if not any((row := first_row(entry)) is not None and is_conversational(row) for entry in recipe.data.train):
        return
    for index, reward in enumerate(recipe.rewards):
        folder = tokenizer_folder(ModelSpec(path=reward.use)) if is_reward_model(reward.use) else None
        if folder is not None and read_own_template(folder) is None:
            message = f"{reward.use} has no chat template, and the prompts are chats"
            fix = "put the one that it was trained with into its folder as chat_template.jinja"
            yield Problem(message, fix, ("rewards", index, "use"))


# --- the reference ---------------------------------------------------------------------------------------------------


def _moving_reference(recipe: Recipe) -> Iterator[Problem]:
    """`sync_ref_model` needs a reference of its own weights (user-pain.md R18)."""
    if not argument(recipe, "sync_ref_model", False):
        return
    key: KeyPath = ("training", "sync_ref_model")
    reasons: Mapping[str, bool] = {
        "there is no reference: beta is 0": argument(recipe, "beta", 0.0) == 0,
        "the reference of an adapter is the model without it, which does not move": recipe.trains_adapter,
        "precompute_ref_log_probs computes the reference once": argument(recipe, "precompute_ref_log_probs", False),
    }
    for why in (why for why, holds in reasons.items() if holds):
        yield Problem(f"training.sync_ref_model: {why}", "leave it out", key)


# --- a KL term from a batch's other rows -----------------------------------------------------------------------------


_NO_KL = "apo_zero_unpaired"
"""The one loss of KTO's trainer without that term."""


def _mismatched_pairs(recipe: Recipe) -> Iterator[Problem]:
    """KTO estimates its KL term from prompts with the completion of the row beside: rows in order, at least two."""
    order = fields(METHODS[recipe.method].config).get("train_sampling_strategy")
    if order is None or order.default != "sequential" or argument(recipe, "loss_type") == _NO_KL:
        return
    said = argument(recipe, "train_sampling_strategy")
    if said != "sequential":
        message = f"training.train_sampling_strategy {said}: the KL term pairs each row with the one beside it"
        yield Problem(message, "leave it out, or use another loss_type", ("training", "train_sampling_strategy"))
    if argument(recipe, "per_device_train_batch_size") == 1:
        key = argument_key(recipe, ("per_device_train_batch_size",))
        message = "training.per_device_train_batch_size 1: the KL term needs a second row in each batch"
        yield Problem(message, "use at least 2, or another loss_type", key)
