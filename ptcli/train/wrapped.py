"""What a trainer asks of its model after the model has been wrapped for several processes."""

from __future__ import annotations

from typing import Any

_ASKED_FOR = ("policy", "config")


def show_policy(trainer: Any) -> None:
    """Make the policy of a policy-and-value model visible on the wrapper that data parallelism puts around it.

    PPOTrainer (TRL 1.12) reads `self.model.policy` and `self.model.config`, which DistributedDataParallel hides. So on
    several processes it ends with an AttributeError at the first checkpoint, or with an adapter at the first step, and
    `save_model`, which looks with `hasattr`, would save policy and value model as one.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "policy"):
        return
    for name in _ASKED_FOR:
        if not hasattr(trainer.model, name):
            # Not through nn.Module, which would take the policy for a second set of weights.
            object.__setattr__(trainer.model, name, getattr(model, name))
