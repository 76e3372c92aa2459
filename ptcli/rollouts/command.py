"""The command and environment of the rollout server, and what its trainer needs in its environment. Pure and light."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from ptcli.plan.model import Server

Device = Literal["cpu", "cuda"]

_DEFAULT_GPU_MEMORY = 0.9
_CPU_KV_CACHE_GIB = "1"
"""On a CPU vLLM would otherwise take 90 % of the machine's memory for its KV cache."""

# How vLLM's parser wants lists: most flags take several words, a few take one JSON text, one is repeated.
_JSON_LISTS = frozenset({"allowed_origins", "allowed_methods", "allowed_headers"})
_REPEATED = frozenset({"middleware"})
_WITHOUT_NO_FORM = frozenset(
    {"headless", "grpc", "data_parallel_multi_port_external_lb", "disable_log_stats", "aggregate_engine_logging"}
)
_GLOO_PLUGIN = "ptcli_gloo"
"""Our entry point among `vllm.general_plugins` (pyproject.toml)."""
_OTHER_REPOSITORIES = frozenset({"tokenizer", "hf_config_path", "speculative_config", "lora_modules"})
"""Engine flags that may name a hub model although the served one is local."""


def server_command(
    *,
    model: str,
    revision: str | None,
    server: Server,
    host: str,
    port: int,
    gpus: tuple[str, ...],
    device: Device,
    gpu_memory_utilization: float | None,
    seed: int,
    trust_remote_code: bool,
    engine: Mapping[str, Any],
    ports: Sequence[int] = (),
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The argv and environment of `vllm serve` as TRL's trainers need it.

    `host` and `port` are what the server binds, `gpus` the tokens it may see, `engine` further flags in recipe spelling
    (`enable_prefix_caching: true`); they come last and win. `ports` are free ports for vLLM's own use; one is taken
    when there is more than one copy of the model.
    """
    argv = ["vllm", "serve", model, *_identity_flags(server, host, port, revision, trust_remote_code, seed)]
    argv += _engine_defaults(server, device, gpu_memory_utilization, engine, ports)
    for name, value in engine.items():
        argv += render_flag(name, value)
    return tuple(argv), _server_environment(model, host, gpus, device, engine)


def trainer_environment(server: Server, device: Device) -> dict[str, str]:
    """What the trainer's environment needs to reach `server`: no proxy, and a group store on the right interface.

    TRL announces `VLLM_HOST_IP` to the server as the place of the weight-transfer group, otherwise the address of the
    default route, on which nobody else should meet an unauthenticated store (trl#3736, trl#4538).
    """
    host = urlsplit(server.url).hostname or "127.0.0.1"
    env = no_proxy(host)
    if is_loopback(host):
        env["VLLM_HOST_IP"] = _loopback_address(host)
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def engine_environment(device: Device, engine: Mapping[str, Any], *, compiles: bool = False) -> dict[str, str]:
    """The trainer's environment for a vLLM inside it. `compiles`: the training itself uses torch.compile."""
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the trainer's process, and ends with it
    }
    if device == "cuda":
        return env
    cpu = _cpu_environment(engine)
    kept = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE", *(() if compiles else ("TORCH_COMPILE_DISABLE",)))
    return env | {name: cpu[name] for name in kept if name in cpu}


def no_proxy(host: str) -> dict[str, str]:
    """`NO_PROXY` and `no_proxy` of this environment with `host` and loopback added; both spellings are in use."""
    present = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in present.split(",") if name.strip()]
    names += [name for name in dict.fromkeys((host, "127.0.0.1", "localhost")) if name not in names]
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(names))


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def render_flag(name: str, value: Any) -> list[str]:
    """One engine flag as words of a command line: `{"enable_lora": False}` is `--no-enable-lora`."""
    key = name.replace("-", "_")
    flag = "--" + key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return _switch(flag, value, has_no_form=key not in _WITHOUT_NO_FORM)
    if key in _REPEATED and isinstance(value, list | tuple):
        return [word for item in value for word in (flag, _word(item))]
    if isinstance(value, list | tuple) and key not in _JSON_LISTS:
        return [flag, *map(_word, value)]
    return [flag, _word(value)]


def _switch(flag: str, value: bool, *, has_no_form: bool) -> list[str]:
    if value:
        return [flag]
    return [flag.replace("--", "--no-", 1)] if has_no_form else []


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping | list | tuple | bool) else str(value)


def _identity_flags(
    server: Server, host: str, port: int, revision: str | None, trust_remote_code: bool, seed: int
) -> Iterator[str]:
    yield from ("--host", host, "--port", str(port), "--served-model-name", server.model)
    if revision is not None:
        yield from ("--revision", revision, "--tokenizer-revision", revision)
    if trust_remote_code:
        yield "--trust-remote-code"
    yield from ("--seed", str(seed))


def _engine_defaults(
    server: Server, device: Device, gpu_memory: float | None, engine: Mapping[str, Any], ports: Sequence[int]
) -> Iterator[str]:
    yield from ("--dtype", server.dtype)
    if server.max_model_len is not None:
        yield from ("--max-model-len", str(server.max_model_len))
    yield from ("--tensor-parallel-size", str(server.tensor_parallel_size))
    yield from ("--data-parallel-size", str(server.data_parallel_size))
    if server.data_parallel_size > 1 and ports:
        yield from ("--data-parallel-rpc-port", str(ports[0]))
    if device == "cuda":
        yield from ("--gpu-memory-utilization", str(gpu_memory or _DEFAULT_GPU_MEMORY))
    else:
        yield from _cpu_flags(engine)
    yield from ("--weight-transfer-config", json.dumps({"backend": server.weight_transfer}))
    # TRL compares the sampled tokens' log-probabilities with its own, so they must be those after temperature and
    # top-p, any number of them; a model's generation_config.json would change the sampling behind the recipe's back.
    yield from ("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--generation-config", "vllm")
    yield "--disable-uvicorn-access-log"


def _cpu_flags(engine: Mapping[str, Any]) -> Iterator[str]:
    """Compiling takes longer than a CPU run lasts, and one front-end process is enough for a few cores."""
    if "enforce_eager" not in engine:
        yield "--enforce-eager"
    if "api_server_count" not in engine:
        yield from ("--api-server-count", "1")


def _server_environment(
    model: str, host: str, gpus: tuple[str, ...], device: Device, engine: Mapping[str, Any]
) -> dict[str, str]:
    env = {
        "VLLM_SERVER_DEV_MODE": "1",  # the weight-update endpoints exist in no other mode
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        **no_proxy(host),
        # The tokens as they are, never renumbered; in which order CUDA counts is the plan's to say, for both sides.
        "CUDA_VISIBLE_DEVICES": ",".join(gpus) if device == "cuda" else "",
    }
    if is_loopback(host):
        env["VLLM_HOST_IP"] = _loopback_address(host)
    if os.path.isabs(model) and not _OTHER_REPOSITORIES & engine.keys():
        env["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        env |= _cpu_environment(engine)
    return env


def _cpu_environment(engine: Mapping[str, Any]) -> dict[str, str]:
    env = {
        # Not pinned: trainer and server take turns, and pinned threads would share a core while another idles.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        # With "0" the worker lives in the engine's process (the engine has its own process either way), which saves
        # a third import of torch and vLLM: 7 s and 1 GB.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    if "VLLM_PLUGINS" in os.environ:  # the caller's choice of plugins, which would leave out our weight transfer
        env["VLLM_PLUGINS"] = ",".join(filter(None, (os.environ["VLLM_PLUGINS"], _GLOO_PLUGIN)))
    if engine.get("enforce_eager") is not False:
        # vLLM compiles a few small functions (ranks of log-probabilities) even in eager mode, at the first request:
        # on a CPU through g++, 20 s and longer.
        env["TORCH_COMPILE_DISABLE"] = "1"
    if "kv_cache_memory_bytes" not in engine:
        env["VLLM_CPU_KVCACHE_SPACE"] = _CPU_KV_CACHE_GIB
    return env


def _loopback_address(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host
