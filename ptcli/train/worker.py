"""`python -m ptcli.train.worker RUN/recipe.resolved.yaml`: what `accelerate launch` runs, once for each process.

Reads the resolved recipe, builds the method's trainer, trains, hands the final weights to the rollout server and saves.
Ends with 0, or with 1 and one line on stderr that says why. Only rank 0 writes files of ptcli's own.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptcli.errors import PtcliError, RequestError, WorkError
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import Recipe
from ptcli.train.locks import clear_stale_build_locks
from ptcli.train.progress import Heartbeat, Metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Train the recipe named in `argv`; the exit code."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    options = _parse(argv)
    try:
        recipe = _read_recipe(options.recipe)
        train(recipe, resume_from=options.resume_from)
    except (Exception, SystemExit) as error:  # a reward that calls sys.exit(0) has not finished the training
        _report(error)
        return 1
    return 0


def train(recipe: Recipe, *, resume_from: str | None = None) -> Any:
    """Train and save; the trainer, when done. Raises WorkError when nothing was trained, and whatever TRL raises."""
    heartbeat = Heartbeat(Path(recipe.output_dir)) if _is_main() else None
    if heartbeat:
        heartbeat.beat(phase="loading", step=_step_of(resume_from))
    trainer = _build(recipe, heartbeat)
    expected = _watch_saves(trainer, recipe, heartbeat)
    try:
        done = _run(trainer, resume_from)
    finally:
        if heartbeat:
            with suppress(OSError):  # on a full disk, what training itself has to say of it counts
                heartbeat.beat(step=trainer.state.global_step)  # the very last step, also of a run that fails
    if heartbeat:
        heartbeat.beat(phase="saving")
    if done:
        _finish(trainer, recipe, expected)
    _leave(trainer, recipe)
    if heartbeat:
        heartbeat.beat(phase="finished" if done else "stopped")
    return trainer


def _build(recipe: Recipe, heartbeat: Heartbeat | None) -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # a kernel that nobody asked for
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and os.environ.get("LOCAL_RANK", "0") == "0":
        clear_stale_build_locks()
    # Imported only now: the heavy libraries take many seconds, and the first heartbeat is to come before.
    from ptcli.train.build import build_trainer
    from ptcli.train.callback import ProgressCallback, load_callbacks
    from ptcli.train.completions import record
    from ptcli.train.guards.callback import attach

    _teach_vllm(recipe)
    callbacks = load_callbacks(recipe.callbacks)
    metrics = Metrics(Path(recipe.output_dir)) if heartbeat else None
    if heartbeat and metrics:
        callbacks.insert(0, ProgressCallback(heartbeat, metrics))
    trainer = build_trainer(recipe, callbacks)
    attach(trainer, recipe, heartbeat, metrics, record(trainer, Path(recipe.output_dir)))
    return trainer


def _teach_vllm(recipe: Recipe) -> None:
    """Give TRL's ways to vLLM what they lack, before a trainer is built on them."""
    if _uses_server(recipe):
        from ptcli.rollouts.client import install

        install(recipe.launch.device)
    elif _has_vllm_inside(recipe):
        from ptcli.rollouts import colocate

        colocate.install(recipe)
    if recipe.rollouts.backend == "vllm" and recipe.model.quantization:
        from ptcli.rollouts import quantized

        quantized.install(recipe)


def _watch_saves(trainer: Any, recipe: Recipe, heartbeat: Heartbeat | None) -> Any:
    from ptcli.train.saving import expect, watch_saves
    from ptcli.train.stopping import StopAtRequest

    expected = expect(trainer)
    watch_saves(trainer, expected, heartbeat)
    trainer.add_callback(StopAtRequest(trainer, Path(recipe.output_dir)))
    return expected


def _step_of(resume_from: str | None) -> int:
    """Steps that are finished before this run begins."""
    from ptcli.run.checkpoints import open_checkpoint

    return open_checkpoint(Path(resume_from)).step if resume_from else 0


def _run(trainer: Any, resume_from: str | None) -> bool:
    """Train to the end; False when a checkpoint was asked for instead."""
    from ptcli.train.stopping import NothingLeft, Stopped, go_on

    if hasattr(trainer.train_dataset, "__len__") and not len(trainer.train_dataset):
        raise WorkError(
            "nothing to train: the trainer dropped every row while it prepared the data, because none has a token to "
            "train on; a prompt alone may fill training.max_length, or the chat template marks no assistant tokens"
        )
    try:
        go_on(trainer, resume_from) if resume_from else trainer.train()
    except Stopped:
        return False
    except NothingLeft:
        pass
    if trainer.state.global_step == 0:
        raise WorkError(_explain_zero_steps(trainer))
    return True


def _explain_zero_steps(trainer: Any) -> str:
    arguments = trainer.args
    batch = getattr(arguments, "generation_batch_size", None)
    group = getattr(arguments, "num_generations", None)
    needed = f"one step takes {arguments.per_device_train_batch_size} rows on each of {arguments.world_size} processes"
    if batch and group:
        needed = f"one generation batch takes {batch // group} prompts ({batch} completions, {group} for each prompt)"
    return (
        f"nothing was trained: 0 steps. The training data have {len(trainer.train_dataset)} rows; {needed}. "
        "Give more rows or a smaller batch"
    )


def _finish(trainer: Any, recipe: Recipe, expected: Any) -> None:
    from ptcli.train.save import save_final

    if _uses_server(recipe):
        from ptcli.rollouts.client import sync_now

        sync_now(trainer)  # TRL's last sync was before the last optimiser step
    save_final(trainer, recipe.output_dir, expected)


def _leave(trainer: Any, recipe: Recipe) -> None:
    from ptcli.train.save import leave_together

    if _has_vllm_inside(recipe):
        from ptcli.rollouts import colocate

        colocate.close(trainer)
    else:
        leave_together(trainer)


def _uses_server(recipe: Recipe) -> bool:
    return recipe.rollouts.backend == "vllm" and recipe.rollouts.mode == "server"


def _has_vllm_inside(recipe: Recipe) -> bool:
    return recipe.rollouts.backend == "vllm" and recipe.rollouts.mode == "colocate"


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ptcli.train.worker", description="Train a resolved recipe.")
    parser.add_argument("recipe", type=Path, help="recipe.resolved.yaml of a run directory")
    parser.add_argument("--resume-from", help="checkpoint folder to go on from")
    return parser.parse_args(argv)


def _read_recipe(path: Path) -> Recipe:
    loaded = load_recipe(path)
    if loaded.recipe is None or loaded.problems:
        raise RequestError(loaded.problems or f"{path} is not a recipe")
    return loaded.recipe


def _report(error: BaseException) -> None:
    """What is wrong, in one line; before it a traceback, unless ptcli itself found and names the mistake."""
    if isinstance(error, PtcliError):
        message = str(error)
    else:
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {error}"
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _end(code: int) -> None:
    """End the process. A failed one ends at once: TRL's client may have left a thread in a request without a timeout,
    for which a regular exit would wait."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)


if __name__ == "__main__":
    _end(main())
