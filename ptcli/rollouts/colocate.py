"""vLLM inside the trainer (`rollouts.mode: colocate`): what TRL does not pass to its engine, and a checked weight sync.

Two things are replaced, on the classes themselves. TRL builds `vllm.LLM` without a type, so that an fp32 model would be
served in bf16, and without a revision. And it copies weights tensor by tensor into vLLM's layers: what does not arrive
keeps its old value unnoticed, and on a CPU, where vLLM repacks its weights after loading, nothing can be copied at all.
There each update goes through vLLM's own layer-wise reload, as it does in the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from trl.generation.vllm_generation import VLLMGeneration
from vllm import LLM
from vllm.config import set_current_vllm_config

from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.recipe.model import Recipe
from ptcli.train.config import engine_arguments
from ptcli.train.objects import import_class

_init = LLM.__init__
_replaced: dict[tuple[type, str], Callable[..., None]] = {}
"""Class and method -> TRL's own, for whoever installs twice."""


def install(recipe: Recipe) -> None:
    """Teach TRL for this run, before the trainer is built."""
    arguments = engine_arguments(recipe)
    if recipe.model.quantization:
        arguments["quantization"] = None  # TRL asks for bitsandbytes, whose scales no sync brings; see `quantized`

    @wraps(_init)
    def init(self: LLM, *args: Any, **given: Any) -> None:
        _init(self, *args, **(given | arguments))

    LLM.__init__ = init
    on_cpu = recipe.launch.device == "cpu"
    _check_sync(VLLMGeneration, "sync_weights", on_cpu)
    trainer = import_class(METHODS[recipe.method].trainer)
    if hasattr(trainer, "_move_model_to_vllm"):  # OnlineDPO has an engine of its own
        _check_sync(trainer, "_move_model_to_vllm", on_cpu)


def sync_now(trainer: Any) -> None:
    """Give vLLM the weights as they are now; every rank calls it. A no-op for trainers without a vLLM of their own."""
    if hasattr(trainer, "vllm_generation"):
        trainer.vllm_generation.sync_weights()
    elif hasattr(trainer, "llm"):
        trainer._move_model_to_vllm()


def engine_of(trainer: Any) -> LLM | None:
    """The vLLM inside a trainer."""
    return getattr(getattr(trainer, "vllm_generation", trainer), "llm", None)


def close(trainer: Any) -> None:
    """End the engine and leave its process groups and the one below them, together with the other ranks."""
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

    engine = engine_of(trainer)
    trainer.accelerator.wait_for_everyone()
    if engine is not None:
        engine.llm_engine.engine_core.shutdown()
    destroy_model_parallel()
    destroy_distributed_environment()


def _check_sync(owner: type, name: str, on_cpu: bool) -> None:
    original = _replaced.setdefault((owner, name), getattr(owner, name))

    @wraps(original)
    def sync(self: Any) -> None:
        engine = getattr(self, "llm", None)
        with _update(engine, on_cpu) if engine is not None else nullcontext():  # none: another trainer's, with a server
            original(self)

    setattr(owner, name, sync)


@contextmanager
def _update(llm: LLM, on_cpu: bool) -> Iterator[None]:
    """One update of all weights. Raises WorkError when it did not bring every parameter of vLLM's model."""
    runner = llm.llm_engine.model_executor.driver_worker.model_runner
    model = runner.model
    awaited = {name for name, _ in model.named_parameters()}
    load = model.load_weights

    def load_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        # A layer's tensors are kept until it is whole; by then ZeRO-3 may have taken the trainer's own away again.
        loaded = load([(name, weight.clone()) for name, weight in weights] if on_cpu else weights)
        awaited.difference_update(awaited if loaded is None else loaded)
        return loaded

    with ExitStack() as stack:
        stack.enter_context(set_current_vllm_config(runner.vllm_config))
        if on_cpu:
            stack.enter_context(_layerwise_reload(runner))
        model.load_weights = load_weights
        stack.callback(delattr, model, "load_weights")
        yield
    if awaited and runner.model_config.quantization is None:
        raise WorkError(
            f"the weight sync did not bring {len(awaited)} of vLLM's parameters, such as {min(awaited)}: trainer and "
            "vLLM do not have the same model"
        )


@contextmanager
def _layerwise_reload(runner: Any) -> Iterator[None]:
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    initialize_layerwise_reload(runner.model)
    yield
    finalize_layerwise_reload(runner.model, runner.model_config)


def prompt_logprobs(llm: LLM, tokens: list[int]) -> list[float]:
    """What vLLM thinks of each token but the first, given those before it."""
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate({"prompt_token_ids": tokens}, sampling_params=parameters, use_tqdm=False)
    assert output.prompt_logprobs is not None
    positions: list[Mapping[int, Any] | None] = output.prompt_logprobs
    return [positions[i][tokens[i]].logprob for i in range(1, len(tokens))]  # type: ignore[index]
