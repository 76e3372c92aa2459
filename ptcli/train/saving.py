"""Every checkpoint is looked at: whether there is room for it before it is written, and what came of it afterwards.

transformers deletes older checkpoints as soon as the new one is written; here, as soon as it turned out to be good.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from peft import PeftModel, PeftType
from torch import nn

from ptcli.errors import WorkError
from ptcli.run.checkpoints import Expected, Torn, check_weights, open_checkpoint
from ptcli.run.disk import Room, check_final, measure
from ptcli.train.guards.movement import local_part
from ptcli.train.progress import Heartbeat

ADAPTER = "default"
"""What PEFT and TRL call the adapter that is trained."""


def watch_saves(trainer: Any, expected: Expected, heartbeat: Heartbeat | None) -> None:
    """Put the looks before and after each save into a trainer. Rank 0 decides: it has the `heartbeat`.

    A save that fails them raises WorkError there, and the checkpoints before it stay.
    """
    room, save = Room(_least_bytes(trainer)), trainer._save_checkpoint

    @functools.wraps(save)
    def save_and_look(*arguments: Any, **options: Any) -> None:
        checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        if heartbeat:
            room.check(checkpoint)
            heartbeat.beat(phase="saving", step=trainer.state.global_step)
        with _rotation_put_off() as rotate:
            save(*arguments, **options)
        trainer.accelerator.wait_for_everyone()  # the other ranks write their parts
        if heartbeat:
            _look(trainer, checkpoint, expected)
            room.learn(measure(checkpoint))
            heartbeat.beat(phase="training")
        rotate()

    trainer._save_checkpoint = save_and_look


def look_for_room(trainer: Any, folder: Path) -> None:
    """Look whether the weights that a run leaves have room, as they are in memory now. Raises WorkError."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    check_final(folder, sum(size for _, size in _saved_sizes(getattr(model, "policy", model))))


def look_at_final(trainer: Any, folder: Path, expected: Expected) -> None:
    """Look at the weights that a run leaves. Raises WorkError."""
    try:
        check_weights(folder, expected, learned=has_learned(trainer))
    except Torn as torn:
        raise WorkError(f"the weights in {folder} are not whole: {torn}") from torn


def expect(trainer: Any) -> Expected:
    """What the weights of a model that is not wrapped yet must come to in a file."""
    model = getattr(trainer.model, "policy", trainer.model)  # PPO's wrapper, of which the policy is saved
    if not isinstance(model, PeftModel):
        ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        return Expected(sum(count(each) for name, each in model.named_parameters() if name not in ignored))
    if model.peft_config[ADAPTER].peft_type is not PeftType.LORA:
        return Expected()
    return Expected(tensors={_saved_name(name): count(each) for name, each in _adapter_parameters(model)})


def has_learned(trainer: Any) -> bool:
    """Whether an adapter's weights in memory, as far as this process holds them, are other than at its start, where
    half of them are 0. For all other weights: yes."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = getattr(model, "policy", model)
    if not isinstance(model, PeftModel):
        return True
    second = [each for name, each in _adapter_parameters(model) if ".lora_B." in name]
    return any(bool(torch.count_nonzero(local_part(each))) for each in second)


def count(parameter: torch.Tensor) -> int:
    """Values of a parameter, all parts of it: under ZeRO-3 it is empty between its uses."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _least_bytes(trainer: Any) -> int:
    """What a checkpoint takes at least: the weights that are saved, and two moments of those that are trained."""
    sizes = list(_saved_sizes(getattr(trainer.model, "policy", trainer.model)))
    optimizer = str(trainer.args.optim)
    moments = 0 if trainer.args.save_only_model or "adam" not in optimizer or "bit" in optimizer else 2
    return sum(size + moments * size * trained for trained, size in sizes)


def _saved_sizes(model: nn.Module) -> Iterator[tuple[bool, int]]:
    """Of each weight that is saved: whether it is trained, and its bytes. Of an adapter's model only that."""
    adapter = isinstance(model, PeftModel)
    for each in model.parameters():
        if each.requires_grad or not adapter:
            yield each.requires_grad, count(each) * each.element_size()


def _look(trainer: Any, checkpoint: Path, expected: Expected) -> None:
    try:
        open_checkpoint(checkpoint)
        check_weights(checkpoint, expected, learned=has_learned(trainer))
    except Torn as torn:
        message = f"{checkpoint.name} was saved, and is no good: it {torn}; earlier checkpoints are kept"
        raise WorkError(message) from torn


def _adapter_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" in name and f".{ADAPTER}." in name:
            yield name, parameter


def _saved_name(name: str) -> str:
    return name.replace(f".{ADAPTER}.", ".")


@contextmanager
def _rotation_put_off() -> Iterator[Callable[[], None]]:
    """Meanwhile nothing is deleted; the function that comes out of it deletes what would have been."""
    rotate = transformers.trainer.rotate_checkpoints
    calls: list[dict[str, Any]] = []
    transformers.trainer.rotate_checkpoints = lambda **options: calls.append(options)
    try:
        yield lambda: _each(rotate, calls)
    finally:
        transformers.trainer.rotate_checkpoints = rotate


def _each(function: Callable[..., Any], calls: list[dict[str, Any]]) -> None:
    for options in calls:
        function(**options)
