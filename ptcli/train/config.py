"""From a recipe to the keyword arguments of its method's TRL config. Pure, and light: nothing heavy is imported.

What the recipe writes under `training` wins over what is derived here; the keys that other sections own (`output_dir`,
`use_vllm`, ...) are refused under `training` when the recipe is read.
"""

from __future__ import annotations

from typing import Any

from ptcli.methods import METHODS, Method
from ptcli.recipe.catalogue import fields
from ptcli.recipe.local_models import find_base
from ptcli.recipe.model import ModelSpec, Recipe, RolloutsSpec

SERVER_TIMEOUT = 60.0
"""Seconds the trainer waits for the rollout server: it is ready before the trainer is started."""

EVERY_INTERFACE = frozenset({"0.0.0.0", "::", "[::]"})
"""Listening addresses that cannot be connected to: the trainer of the same machine uses loopback."""


def training_arguments(recipe: Recipe) -> dict[str, Any]:
    """Every keyword argument of the method's TRL config, secrets still as `${oc.env:NAME}`.

    `model_init_kwargs` is among them where the config has it; whoever passes a loaded model leaves it out.
    """
    row = METHODS[recipe.method]
    derived = _identity(recipe) | _device(recipe) | _logging(row) | _evaluation(recipe) | _rollouts(recipe, row)
    derived |= {"trust_remote_code": recipe.model.trust_remote_code} | _stop(recipe, row)
    if recipe.rewards:
        derived["reward_weights"] = [reward.weight for reward in recipe.rewards]
    known = fields(row.config)
    arguments = {key: value for key, value in derived.items() if key in known} | recipe.training
    if "model_init_kwargs" in known:
        arguments["model_init_kwargs"] = model_arguments(recipe.model) | (arguments.get("model_init_kwargs") or {})
    return arguments


def model_arguments(spec: ModelSpec) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for one model, quantization left out.

    `device_map` is None on purpose: TRL's default of "auto" spreads a model over every visible GPU where accelerate has
    not declared MULTI_GPU or DEEPSPEED, FSDP included (user reports: trl#6836, accelerate#2543).
    """
    given = {
        "dtype": spec.dtype or "float32",
        "revision": spec.revision,
        "attn_implementation": spec.attn_implementation,
        "trust_remote_code": spec.trust_remote_code or None,
    }
    return {"device_map": None} | {key: value for key, value in given.items() if value is not None} | spec.init_kwargs


def rollout_url(rollouts: RolloutsSpec) -> str:
    """Base URL of the rollout server as the trainer reaches it."""
    if rollouts.url:
        return rollouts.url.rstrip("/")
    host = "127.0.0.1" if rollouts.host in EVERY_INTERFACE else rollouts.host
    return f"http://{host}:{rollouts.port or 8000}"


def _identity(recipe: Recipe) -> dict[str, Any]:
    return {"output_dir": recipe.output_dir, "run_name": recipe.name, "seed": recipe.seed}


def _device(recipe: Recipe) -> dict[str, Any]:
    if recipe.launch.device != "cpu":
        return {}
    # TRL turns bf16 on where nothing is said; on a CPU that is slow, and emulated on most of them.
    precision = {} if recipe.training.get("fp16") else {"bf16": False}
    return {"use_cpu": True, "dataloader_pin_memory": False} | precision


def _logging(row: Method) -> dict[str, Any]:
    """An online step takes seconds to minutes, so each is logged; for the rest TRL's default stays.

    A NaN loss is shown as NaN: transformers' filter would log it as 0.0, a run that looks fine.
    """
    steps = {"logging_steps": 1} if row.online else {}
    return {"report_to": "none", "disable_tqdm": True, "logging_nan_inf_filter": False} | steps


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    """Who gives evaluation rows wants them used: every epoch, or every `eval_steps`."""
    if recipe.data.eval is None:
        return {}
    return {"eval_strategy": "steps" if "eval_steps" in recipe.training else "epoch"}


def _stop(recipe: Recipe, row: Method) -> dict[str, Any]:
    names = row.stop_arguments
    return {names[0]: "eos"} if names and not set(names) & set(recipe.training) else {}


def _rollouts(recipe: Recipe, row: Method) -> dict[str, Any]:
    rollouts = recipe.rollouts
    if "vllm" not in row.backends or rollouts.backend != "vllm":
        return {}
    arguments = _server(rollouts) if rollouts.mode == "server" else _colocate(rollouts)
    return {"use_vllm": True, "vllm_mode": rollouts.mode} | arguments


def _server(rollouts: RolloutsSpec) -> dict[str, Any]:
    group = {"vllm_group_port": rollouts.group_port} if rollouts.group_port else {}
    return {"vllm_server_base_url": rollout_url(rollouts), "vllm_server_timeout": SERVER_TIMEOUT} | group


def _colocate(rollouts: RolloutsSpec) -> dict[str, Any]:
    given = {
        "vllm_tensor_parallel_size": rollouts.tensor_parallel_size,
        "vllm_gpu_memory_utilization": rollouts.gpu_memory_utilization,
        "vllm_max_model_length": rollouts.max_model_len,
    }
    return {key: value for key, value in given.items() if value is not None}


def engine_arguments(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the `vllm.LLM` inside the trainer (colocate) that win over those TRL gives it.

    `generation_config: vllm` as in the server: a model's generation_config.json would add stop tokens that the trainer
    does not know of.
    """
    model, revision = find_base(recipe.model.path, recipe.model.revision)
    cpu = recipe.launch.device == "cpu"
    given = {
        "model": model,
        "revision": revision,
        "tokenizer_revision": revision,
        "trust_remote_code": recipe.model.trust_remote_code or None,
        "dtype": recipe.rollouts.dtype,
        "max_model_len": recipe.rollouts.max_model_len,
        "generation_config": "vllm",
        "load_format": "dummy" if recipe.model.from_ == "config" else None,  # TRL sends its weights first
        "enforce_eager": True if cpu else None,  # compiling takes longer than a CPU run lasts
    }
    engine = {name.replace("-", "_"): value for name, value in recipe.rollouts.engine.items()}
    return {name: value for name, value in (given | engine).items() if value is not None}
