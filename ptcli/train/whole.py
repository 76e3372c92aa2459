"""Models beside the policy, loaded whole on every process."""

from __future__ import annotations

import os

from accelerate.utils import disable_fsdp_ram_efficient_loading

from ptcli.plan.reference import has_reference
from ptcli.recipe.model import Recipe
from ptcli.train.objects import is_object_reference

_BESIDE = ("ref_model", "reward_model", "value_model", "teacher")


def load_whole(recipe: Recipe) -> None:
    """Have every process read the weights of every model, where there is another one than the policy.

    Called before the first of them is loaded. With `fsdp_cpu_ram_efficient_loading` transformers gives all processes
    but the first of each machine zeros for weights, and accelerate sends the real ones for the model that it trains.
    For no other: TRL 1.12 shards a reference as it finds it, and leaves reward models and teachers as they are, so
    that most processes would compare with a model of zeros, unseen. Little is lost: the zeros take as much memory.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1") and has_models_beside(recipe):
        disable_fsdp_ram_efficient_loading()


def has_models_beside(recipe: Recipe) -> bool:
    """True when a run may load another model than its policy."""
    named = any(getattr(recipe, section) is not None for section in _BESIDE)
    return named or has_reference(recipe) or any(not is_object_reference(reward.use) for reward in recipe.rewards)
