"""What a plan says about its training: nothing that is wrong, but what its author may not expect.

Sources: user-pain.md R7, R12 and R13.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptcli.builtin import PREFIX
from ptcli.methods import METHODS
from ptcli.plan.arguments import argument, computes_in
from ptcli.plan.training_rules import KEEPS_MASTERS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import Recipe
from ptcli.recipe.scorers import gets_new_head, scorer_paths
from ptcli.recipe.tokenizers import tokenizer_folder

_LENGTHS = ("max_completion_length", "max_new_tokens", "response_length")
_OF_COMPLETIONS = ("reward_variance", "clipped_completions", "entropy", "kl", "stale_weights")
"""Guards that look at what the model generates."""
_SMALL_STEP = 1e-5
"""Learning rate below which most updates of a bfloat16 weight are lost in its rounding."""


def training_notes(recipe: Recipe, kind: str, facts: Mapping[str, Any] | None) -> list[str]:
    """A line for each. `kind` is accelerate's distributed_type, `facts` the model's config.json where it is known."""
    return [
        *_random(recipe),
        *_rounding(recipe, kind),
        *_half_precision(recipe, facts),
        *_length(recipe),
        *_sampling(recipe),
        *_padding(recipe),
        *_heads(recipe),
        *_unknown_vocabularies(recipe),
        *_idle_guards(recipe),
    ]


def _random(recipe: Recipe) -> Iterator[str]:
    if recipe.model.from_ == "config":
        yield f"model: random weights of the architecture of {recipe.model.path}, from seed {recipe.seed}"


def _rounding(recipe: Recipe, kind: str) -> Iterator[str]:
    """R13: bfloat16 weights with AdamW at 1e-6 moved 1.8 % of their values in 20 steps, float32 ones 87.9 %."""
    rate = argument(recipe, "learning_rate")
    dtype = recipe.model.dtype
    if recipe.trains_adapter or dtype in (None, "float32") or kind in KEEPS_MASTERS or not isinstance(rate, float):
        return
    if 0 < rate <= _SMALL_STEP:
        yield (
            f"model.dtype {dtype} with learning rate {rate:g}: most updates are smaller than the rounding of such "
            "weights; dtype: float32 with training.bf16: true keeps them"
        )


def _half_precision(recipe: Recipe, facts: Mapping[str, Any] | None) -> Iterator[str]:
    stored = (facts or {}).get("dtype") or (facts or {}).get("torch_dtype")
    halves = computes_in(recipe) == "fp16" or recipe.model.dtype == "float16"
    if stored == "bfloat16" and halves:
        yield (
            f"{recipe.model.path} was trained in bfloat16, whose largest values do not fit into float16: "
            "watch for a loss that is not a number, or use bf16"
        )


def _length(recipe: Recipe) -> Iterator[str]:
    """R12: what a completion may need depends on the task, and a default cuts most of them for some."""
    row = METHODS[recipe.method]
    name = next((each for each in _LENGTHS if each in fields(row.config)), None) if row.online else None
    if name is not None and not any(each in recipe.training for each in _LENGTHS):
        yield f"training.{name} is not set: completions are cut at TRL's default of {argument(recipe, name)} tokens"


def _sampling(recipe: Recipe) -> Iterator[str]:
    """R7: vLLM's log-probabilities are those after the cut, the trainer's are not; their ratio corrects for neither."""
    corrects = recipe.rollouts.backend == "vllm" and argument(recipe, "vllm_importance_sampling_correction", False)
    limits = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    said = {name: argument(recipe, name, off) for name, off in limits.items()}
    cut = [f"{name} {value:g}" for name, value in said.items() if (value < 1 if name == "top_p" else value > 0)]
    if corrects and cut:
        yield (
            f"training.{' and '.join(cut)}: vLLM samples from fewer tokens than the trainer reckons with, "
            "so that vllm_importance_sampling_correction shrinks every update; leave it out, or turn the correction off"
        )


def _padding(recipe: Recipe) -> Iterator[str]:
    known = fields(METHODS[recipe.method].config)
    if argument(recipe, "padding_free", False) and "packing" not in known:
        yield "training.padding_free: this trainer pads all the same in the pinned TRL"


def _heads(recipe: Recipe) -> Iterator[str]:
    for place, path in scorer_paths(recipe):
        if not path.startswith(PREFIX) and gets_new_head(path):
            yield f"{place}: {path} is a language model without a score; it gets one of random weights"


def _unknown_vocabularies(recipe: Recipe) -> Iterator[str]:
    for section in METHODS[recipe.method].same_vocabulary:
        spec = getattr(recipe, section)
        both = () if spec is None or spec.path == recipe.model.path else (recipe.model, spec)
        missing = [each.path for each in both if tokenizer_folder(each) is None]
        if missing:
            verb = "are" if len(missing) > 1 else "is"
            yield f"{section}: {' and '.join(missing)} {verb} not on this machine; the tokens are compared at the start"


def _idle_guards(recipe: Recipe) -> Iterator[str]:
    """No error: a base that several methods share may set them all."""
    said = [name for name in _OF_COMPLETIONS if name in recipe.guards.model_fields_set]
    idle = [f"guards.{name}" for name in said if recipe.guards.guard(name).action != "off"]
    if idle and not METHODS[recipe.method].online:
        yield f"{', '.join(idle)}: {recipe.method} generates no completions, so there is nothing to watch"
