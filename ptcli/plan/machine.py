"""The facts that planning needs of this machine, read once: visible GPUs, memory, ports."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from ptcli.errors import RequestError
from ptcli.plan.model import GPU, Machine
from ptcli.plan.nccl import read_adapters, read_interfaces, watched
from ptcli.recipe.model import Recipe

PREFERRED_PORTS = (8000, 51216, 29500, 29550, 29600, 29650, 29700, 29750, 29800, 29850, 29900, 29950)
"""Server, weight sync, accelerate's rendezvous, then whatever vLLM's own processes need."""

_BELOW_EPHEMERAL = range(20000, 32768)
_UNITS = {"gib": 2**30, "gb": 10**9, "g": 2**30, "tib": 2**40, "mib": 2**20, "mb": 10**6}
_ASSUMED = re.compile(r"(?:(?P<nodes>\d+)x)?(?P<gpus>\d+)(?:x(?P<memory>\d+(?:\.\d+)?)(?P<unit>[a-z]+))?", re.I)


def read_machine(
    recipe: Recipe | None,
    *,
    environ: Mapping[str, str] | None = None,
    devices: Callable[[], list[GPU]] | None = None,
) -> Machine:
    """What this machine has. `environ` and `devices` (every GPU in NVML's order) are seams for tests."""
    environ = os.environ if environ is None else environ
    present = (devices or nvml_devices)()
    order = environ.get("CUDA_DEVICE_ORDER") or "PCI_BUS_ID"
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    threads = environ.get("OMP_NUM_THREADS", "")
    requested = _requested_ports(recipe)
    return Machine(
        gpus=visible_gpus(visible, present, trusted=_order_is_known(order, present)),
        cpus=_cpus(),
        memory=_main_memory(),
        free_ports=free_ports(avoid=requested),
        busy_ports=frozenset(port for port in requested if not _can_bind(port)),
        visible=visible,
        device_order=order,
        threads=int(threads) if threads.isdigit() else None,
        interfaces=read_interfaces(),
        adapters=read_adapters(),
        nccl=watched(environ),
        accelerate_config=_accelerate_config(environ),
    )


def assume_machine(spec: str) -> Machine:
    """The machine that `--assume-gpus` describes. Its ports are the customary ones, so that a plan can be compared."""
    match = _ASSUMED.fullmatch(spec.strip())
    unit = (match["unit"] or "gib").lower() if match else ""
    if match is None or unit not in _UNITS or int(match["gpus"]) < 1 or match["nodes"] in ("0", "00"):
        raise RequestError(f"--assume-gpus {spec!r} is not [NODESx]GPUS[xMEMORY]; write it as 8, 8x80GiB or 2x8x80GiB")
    memory = int(float(match["memory"]) * _UNITS[unit]) if match["memory"] else None
    gpus = tuple(GPU(token=str(index), memory=memory) for index in range(int(match["gpus"])))
    return Machine(
        gpus=gpus, cpus=os.cpu_count() or 1, nodes=int(match["nodes"] or 1), free_ports=PREFERRED_PORTS, assumed=True
    )


def visible_gpus(value: str | None, present: list[GPU], *, trusted: bool = True) -> tuple[GPU, ...]:
    """The GPUs that CUDA shows a process with this CUDA_VISIBLE_DEVICES, in its order.

    The rules are torch's (`torch.cuda._parse_visible_devices`, `_device_count_nvml`): a repeated entry hides every GPU,
    a negative, foreign or absent one ends the list. `present` is every GPU in NVML's order, with its UUID; `trusted`
    says that NVML's indices are CUDA's.
    """
    if value is None:
        return tuple(present) if trusted else tuple(GPU(token=gpu.token) for gpu in present)
    gpus: list[GPU] = []
    for token in parse_visible_devices(value):
        found = _describe(token, present, trusted=trusted)
        if found is None:
            break
        gpus.append(found)
    return tuple(gpus)


def parse_visible_devices(value: str) -> tuple[str, ...]:
    """The entries of CUDA_VISIBLE_DEVICES that CUDA looks at, as they are written."""
    prefix = next((prefix for prefix in ("GPU-", "MIG-") if value.startswith(prefix)), None)
    entries = value.split(",")
    tokens: list[str] = []
    seen: set[str | int] = set()
    for entry in entries if prefix else map(str.strip, entries):
        identity = entry if prefix else _leading_integer(entry)
        if identity in seen:
            return ()
        if (isinstance(identity, int) and identity < 0) or (prefix and not entry.startswith(prefix)):
            break
        seen.add(identity)
        tokens.append(entry)
    return tuple(tokens)


def nvml_devices() -> list[GPU]:
    """Every NVIDIA GPU of this machine in PCI bus order; none where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no permission: all mean that CUDA will not find a GPU either
        return []
    try:
        return [_nvml_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def free_ports(avoid: Iterable[int] = (), count: int = len(PREFERRED_PORTS)) -> tuple[int, ...]:
    """`count` distinct ports that could be bound just now: all bound at once, then let go.

    They lie below the range from which Linux picks ports for outgoing connections, because some are bound minutes
    later; they are drawn at random, so that two runs that start together do not choose the same.
    """
    ports: list[int] = []
    candidates = list(set(_BELOW_EPHEMERAL).difference(avoid))
    random.shuffle(candidates)
    with ExitStack() as stack:
        while len(ports) < count and candidates:
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            port = candidates.pop()
            with suppress(OSError):
                listener.bind(("", port))
                ports.append(port)
    return tuple(ports)


def _accelerate_config(environ: Mapping[str, str]) -> str | None:
    """What `accelerate config` left, and accelerate takes where it is given nothing else."""
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.path.expanduser(environ.get("HF_HOME") or f"{cache}/huggingface")
    path = f"{home}/accelerate/default_config.yaml"
    return path if os.path.isfile(path) else None


def _leading_integer(entry: str) -> int:
    """CUDA reads an index as strtoul does: `1gpu2` is 1, and what is no number is -1."""
    match = re.match(r"[+-]?\d+", entry, re.ASCII)
    return int(match[0]) if match else -1


def _describe(token: str, present: list[GPU], *, trusted: bool) -> GPU | None:
    if token.startswith("MIG-"):
        return GPU(token=token, name="MIG device", uuid=token)
    if token.startswith("GPU-"):
        matches = [gpu for gpu in present if gpu.uuid and gpu.uuid.startswith(token)]
        return GPU(token, matches[0].name, matches[0].memory, matches[0].uuid) if len(matches) == 1 else None
    index = _leading_integer(token)
    if index >= len(present):
        return None
    gpu = present[index]
    return GPU(token, gpu.name, gpu.memory, gpu.uuid) if trusted else GPU(token)


def _order_is_known(order: str, present: list[GPU]) -> bool:
    """NVML counts along the PCI bus. CUDA may count the fastest first, which on equal GPUs comes to the same."""
    return order == "PCI_BUS_ID" or len({(gpu.name, gpu.memory) for gpu in present}) <= 1


def _nvml_gpu(nvml: Any, index: int) -> GPU:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return GPU(
        token=str(index),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _requested_ports(recipe: Recipe | None) -> tuple[int, ...]:
    """Ports that something of this run will have to bind. With `rollouts.url` the server's is rightly in use."""
    if recipe is None:
        return ()
    rollouts = recipe.rollouts
    ports = (rollouts.group_port,) if rollouts.url else (rollouts.port, rollouts.group_port)
    return tuple(port for port in ports if port is not None)


def _can_bind(port: int) -> bool:
    """SO_REUSEADDR, as every server sets it: a port whose last connections linger in TIME_WAIT is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
