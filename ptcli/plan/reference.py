"""What a run's policy is compared with: its reference, where the method has one, and who provides it.

TRL's trainers find one in different ways (trl 1.12, measured): DPO, KTO, GRPO and RLOO switch a new adapter off, and
keep a frozen copy named `ref` of one that is trained on; BCO and PPO switch that one off, too, so that the bare base
would be the reference; XPO and Nash-MD let the reference write its completions with the new adapter on. Where a
trainer's own way is not the model before the run, ptcli loads that model and hands it over. It does so, too, where TRL
would copy the policy in memory, which `create_reference_model` refuses under ZeRO-3.
"""

from __future__ import annotations

from typing import Any

from ptcli.methods import METHODS
from ptcli.plan.arguments import argument
from ptcli.recipe.model import Recipe

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""How values of `init_lora_weights` begin that take a part out of the base: with the adapter off, it is missing."""


def has_reference(recipe: Recipe) -> bool:
    """True when the method compares the policy with a reference."""
    kind = METHODS[recipe.method].reference
    return kind == "always" or (kind == "with beta" and argument(recipe, "beta", 0.0) != 0.0)


def changes_base(config: dict[str, Any] | None) -> bool:
    """True for a LoRA config whose adapter starts with what it takes out of the base's weights."""
    start = (config or {}).get("init_lora_weights")
    return isinstance(start, str) and start.lower().startswith(CHANGES_BASE)


def needs_own_reference(recipe: Recipe, *, zero3: bool = False) -> bool:
    """True when the trainer would take something else for the reference than the model as it was before the run, or
    could not make it of weights that ZeRO-3 has split."""
    row = METHODS[recipe.method]
    if not has_reference(recipe) or recipe.ref_model is not None:
        return False
    if zero3 and row.copies_reference and not recipe.trains_adapter:
        return not argument(recipe, "precompute_ref_log_probs", False)
    if recipe.model.adapter == "continue":
        return not row.keeps_adapter
    return recipe.peft is not None and (not row.switches_adapter_off or changes_base(recipe.peft))


def describe_reference(recipe: Recipe) -> str | None:
    """What the reference is, in a few words; None for a method without one."""
    if METHODS[recipe.method].reference == "none":
        return None
    if not has_reference(recipe):
        return "none: beta is 0"
    if recipe.ref_model is not None:
        return recipe.ref_model.path + (", its adapter merged in" if recipe.ref_model.adapter else "")
    return f"{_start(recipe)}; {_way(recipe)}"


def _start(recipe: Recipe) -> str:
    path = recipe.model.path
    return {
        "continue": f"the adapter {path} as it is before this run",
        "merge": f"{path}, merged into its base before this run",
        "new": f"the base of {path}",
    }.get(recipe.model.adapter or "", f"{path} as it is before this run")


def _way(recipe: Recipe) -> str:
    """How it is kept, which says what it costs in memory."""
    if argument(recipe, "precompute_ref_log_probs", False):
        return "computed once, before training"
    if argument(recipe, "sync_ref_model", False):
        steps = argument(recipe, "ref_model_sync_steps", 512)
        return f"a second model in memory, which moves towards the policy every {steps} steps"
    if needs_own_reference(recipe) or not recipe.trains_adapter:
        return "a second model in memory"
    return "a frozen copy of the adapter" if recipe.model.adapter == "continue" else "the policy with its adapter off"
