"""TRL's vLLM client, taught what it lacks: weight sync without CUDA, and an end to every HTTP call.

TRL's `VLLMClient` pushes weights over NCCL only. On a CPU, `install` replaces the methods that do so by ones that speak
to the `gloo` engine (`ptcli.rollouts.gloo`). Methods are replaced on the class itself, so it does not matter which
trainer module imported it, or when.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import requests
import torch
from requests.adapters import HTTPAdapter
from trl.generation.vllm_client import VLLMClient
from urllib3.util.retry import Retry

from ptcli.errors import WorkError
from ptcli.rollouts import gloo
from ptcli.rollouts.command import is_loopback

CONNECT_TIMEOUT = 10.0
"""Seconds to reach the server."""
GET_TIMEOUT = 120.0
"""Seconds for what the front end answers by itself."""
POST_TIMEOUT = 3600.0
"""Seconds for a generation batch or a weight update. Whether steps are made is watched outside (`run.health`); this
only makes sure that a trainer without a supervisor ends one day."""

ANSWER_TIMEOUT = 10.0
"""Seconds that a failed collective waits for the server's own account of it."""

_SYNC_PATHS = ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")
"""Must not be repeated: the collective that belongs to the request happens once."""

_current_accelerator = torch.accelerator.current_accelerator

Tensors = Iterator[tuple[str, torch.Tensor]]


def install(device: str) -> None:
    """Teach TRL's client. `device` is where the trainer runs: with "cuda", weights go over NCCL as ever."""
    VLLMClient.check_server = check_server
    VLLMClient._get = _get
    VLLMClient._post = _post
    if device == "cpu":
        VLLMClient.check_server = _check_server_on_cpu
        VLLMClient.init_communicator = init_communicator
        VLLMClient.update_named_params = update_named_params
        VLLMClient.close_communicator = close_communicator


def sync_now(trainer: Any) -> None:
    """Give the server the weights as they are now; every rank calls it. A no-op for trainers without a vLLM server.

    A trainer syncs before it generates, so when training ends the server is one optimizer step behind.
    """
    if getattr(trainer, "vllm_mode", None) != "server" or not getattr(trainer, "use_vllm", False):
        return
    if hasattr(trainer, "vllm_generation"):
        trainer.vllm_generation.sync_weights()
    else:  # OnlineDPO has its own client
        trainer._move_model_to_vllm()


def check_server(self: VLLMClient, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
    """Wait up to `total_timeout` seconds for `/health`. TRL's own waits for ever when something else answers there.

    First called by the constructor, so this is also where the session gets its retries.
    """
    _limit_retries(self)
    deadline = time.monotonic() + total_timeout
    while (trouble := _health_trouble(self)) is not None:
        if time.monotonic() >= deadline:
            raise ConnectionError(
                f"the rollout server at {self.base_url} did not become healthy within {total_timeout:g} s: {trouble}"
            )
        time.sleep(retry_interval)


def _check_server_on_cpu(self: VLLMClient, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
    check_server(self, total_timeout, retry_interval)
    # OnlineDPO asks torch for the type of its accelerator before it calls init_communicator, and on a CPU there is
    # none. The answer stands for those few lines only: other code takes None to mean what it says.
    torch.accelerator.current_accelerator = _cpu_as_accelerator


def init_communicator(self: VLLMClient, device: Any = None) -> None:
    """Meet the server's workers in a gloo group. `device` is TRL's argument; there is only one CPU."""
    torch.accelerator.current_accelerator = _current_accelerator
    world_size = self.get_world_size() + 1
    address = _own_address(self)
    try:
        store = gloo.open_store(address, self.group_port, listen=True)
    except OSError as error:
        raise WorkError(
            f"port {self.group_port} for the weight sync cannot be opened ({error.strerror or error}); "
            "set rollouts.group_port to a free port, or leave it out"
        ) from error
    info = {"master_address": address, "master_port": self.group_port, "world_size": world_size}
    workers = [gloo.presence(rank) for rank in range(1, world_size)]
    with _request(self, "init_weight_transfer_engine", {"init_info": info}) as request:
        _wait(lambda: store.check(workers), request, gloo.JOIN_TIMEOUT)
        self.communicator = gloo.join_group(store, address, 0, world_size)
    atexit.register(self.close_communicator)


def update_named_params(self: VLLMClient, metadata: list[tuple[str, str, list[int]]], named_params: Tensors) -> None:
    """Send the tensors that `metadata` (name, type, shape) announces, in that order. Same contract as TRL's method."""
    names, dtype_names, shapes = (list(column) for column in zip(*metadata, strict=True))
    info = {"names": names, "dtype_names": dtype_names, "shapes": shapes}
    if not self._updating_weights:
        self._start_weight_update()
    with _request(self, "update_weights", {"update_info": info}) as request:
        for _name, tensor in named_params:
            _send(self, tensor, request)
    if not self._updating_weights:
        self._finish_weight_update()


def close_communicator(self: VLLMClient) -> None:
    """Leave the group. Its sockets close, so that a worker that still waits for a tensor gives up."""
    self.communicator = None


def _abandon_communicator(client: VLLMClient) -> None:
    """Leave the group in the middle of a transfer. gloo cannot cancel one: the group's destructor waits for it to fail.

    So that happens in a thread which keeps nobody waiting, not even the end of the process. No frame of a traceback may
    hold the group meanwhile.
    """
    held = [client.communicator]
    client.communicator = None
    Thread(target=held.clear, daemon=True).start()


def _send(client: VLLMClient, tensor: torch.Tensor, request: Future[Any]) -> None:
    work = gloo.broadcast(client.communicator, tensor.contiguous(), gloo.SEND_TIMEOUT)
    _wait(work.is_completed, request, gloo.SEND_TIMEOUT)
    work.wait()


@contextmanager
def _request(client: VLLMClient, path: str, body: dict[str, Any]) -> Iterator[Future[Any]]:
    """POST in the background while the body of the `with` does its half of the collective, then look at the answer.

    Whatever goes wrong in the collective, the server's own words come first: they name the cause.
    """
    request: Future[Any] = Future()
    url = f"{client.base_url}/{path}"
    Thread(target=_resolve, args=(request, lambda: client._post(url, json=body)), daemon=True).start()
    try:
        yield request
        request.result()
    except Exception as error:
        _abandon_communicator(client)  # so that the server's half fails too, and its answer comes
        raise _explain(path, request, error) from error


def _resolve(future: Future[Any], call: Callable[[], Any]) -> None:
    """What an executor does, but in a thread that does not keep the process from ending."""
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def _explain(path: str, request: Future[Any], error: Exception) -> Exception:
    """`error`, or what the server answered if it refused."""
    wait([request], timeout=ANSWER_TIMEOUT)
    answer = request.exception() if request.done() else None
    if answer is None:
        return error
    return WorkError(f"the rollout server failed at /{path}: {answer}; its log (logs/rollouts.log) has the cause")


def _wait(done: Callable[[], bool], request: Future[Any], limit: float) -> None:
    """Until `done`, or until the server has refused the request, or `limit` seconds. Polls from 20 us up to 20 ms."""
    deadline, pause = time.monotonic() + limit, 2e-5
    while not done():
        if request.done():
            request.result()
        if time.monotonic() > deadline:
            raise TimeoutError(f"the rollout server did not take part in the weight sync within {limit:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _cpu_as_accelerator(*_args: Any, **_kwargs: Any) -> torch.device:
    return torch.device("cpu")


def _own_address(client: VLLMClient) -> str:
    """Where the server's workers reach this process."""
    host = urlsplit(client.base_url).hostname or "127.0.0.1"
    if is_loopback(host):
        return "127.0.0.1"
    from vllm.utils.network_utils import get_ip

    return get_ip()


def _limit_retries(client: VLLMClient) -> None:
    """TRL repeats every POST, also one that ran into its timeout: a stuck server would be asked six times over."""
    steady = HTTPAdapter(max_retries=Retry(total=5, connect=5, read=0, status=3, status_forcelist=[502, 503],
                                           backoff_factor=2, allowed_methods=["POST", "GET"]))  # fmt: skip
    client.session.mount("http://", steady)
    client.session.mount("https://", steady)
    for path in _SYNC_PATHS:
        client.session.mount(f"{client.base_url}/{path}", HTTPAdapter(max_retries=0))


def _health_trouble(client: VLLMClient) -> str | None:
    try:
        response = requests.get(f"{client.base_url}/health", timeout=CONNECT_TIMEOUT)
    except requests.RequestException as error:
        return _first_line(error)
    return None if response.status_code == 200 else f"/health answered {response.status_code}"


def _get(self: VLLMClient, url: str, **kwargs: Any) -> Any:
    return _answer(self.session.get(url, **{"timeout": (CONNECT_TIMEOUT, GET_TIMEOUT), **kwargs}))


def _post(self: VLLMClient, url: str, **kwargs: Any) -> Any:
    return _answer(self.session.post(url, **{"timeout": (CONNECT_TIMEOUT, POST_TIMEOUT), **kwargs}))


def _answer(response: requests.Response) -> Any:
    if response.status_code != 200:
        raise RuntimeError(f"{response.request.method} {response.url} answered {response.status_code}: {response.text}")
    return response.json() if response.content else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
