"""What a trainer asks of its model after the model has been wrapped for several processes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch

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
    if trainer.is_deepspeed_enabled:
        trainer.save_model = lambda output_dir=None, _internal_call=False: _save_policy(trainer, output_dir)


def _save_policy(trainer: Any, output_dir: str | None) -> None:
    """What PPOTrainer's `save_model` means to do under DeepSpeed. TRL 1.12 gives the policy out for the engine, whose
    `config` transformers 5.17 then asks for the stage of ZeRO: an AttributeError. On every process."""
    whole, policy = trainer.model, trainer.model.policy
    with _gathered(policy.parameters()):
        weights = {name: each.detach().cpu().clone() for name, each in policy.state_dict().items()}
    if not trainer.args.should_save:
        return
    trainer.model = policy
    try:
        trainer._save(output_dir or trainer.args.output_dir, state_dict=weights)
    finally:
        trainer.model = whole


def _gathered(parameters: Iterable[torch.nn.Parameter]) -> Any:
    """The parameters that ZeRO-3 has split, whole while this is open; nothing to do under other stages."""
    split = [each for each in parameters if hasattr(each, "ds_id")]
    if not split:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(split)
