"""Whether a rollout server is up, is the one that was planned, and really generates.

`/health` alone says little: it answers 200 while the engine hangs, and on a wrong port it is another service's. Every
call has a timeout of its own and goes straight to the server, past any proxy.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ptcli.errors import WorkError
from ptcli.plan.model import Server

CALL_TIMEOUT = 5.0
"""Seconds for what the server's front end answers by itself."""
INFO_TIMEOUT = 60.0
"""Seconds for the first `/server_info`: vLLM collects facts about the machine for it, with several commands."""
PROBE_TIMEOUT = 60.0
"""Seconds for the first token: the first request may compile kernels."""
INTERVAL = 0.5
"""Seconds between two looks at a server that is not up yet."""


_WORDS = {"backend": "weight transfer backend"}
"""Settings whose name in vLLM's configuration needs its context."""


class NotYet(WorkError):
    """The server does not answer (yet). Anything else that is wrong will not get better by waiting."""


def wait_until_ready(
    server: Server,
    alive: Callable[[], bool],
    *,
    deadline: float,
    on_wait: Callable[[float], None] | None = None,
) -> None:
    """Return when `server` is up, is what was planned, and has generated a token.

    `alive` tells whether its process still runs; `deadline` is a `time.monotonic()` instant; `on_wait` is called
    between two looks with the seconds waited so far. Raises WorkError with the reason as soon as waiting is pointless.
    """
    started = time.monotonic()
    while (reason := _why_not_up(server)) is not None:
        _give_up_if_dead(server, alive)
        waited = time.monotonic() - started
        if time.monotonic() >= deadline:
            raise WorkError(
                f"the rollout server at {server.url} was not ready within {waited:.0f} s: {reason}; look at "
                "logs/rollouts.log, and set rollouts.startup_timeout if it only needs more time"
            )
        if on_wait is not None:
            on_wait(waited)
        time.sleep(max(0.0, min(INTERVAL, deadline - time.monotonic())))
    _give_up_if_dead(server, alive)  # the one that answered is somebody else then
    try:
        check_identity(server)
    except WorkError:
        _give_up_if_dead(server, alive)
        raise


def check_identity(server: Server) -> None:
    """Raise WorkError, naming everything that differs, unless the server is what the plan says and generates a token.

    For a server that is up: our own, or the one at `rollouts.url`.
    """
    try:
        differences = list(_differences(server))
    except NotYet as error:
        raise WorkError(
            f"the rollout server at {server.url} does not answer: {error}; start it with `ptcli serve-rollouts`, "
            "or correct rollouts.url"
        ) from error
    if differences:
        raise WorkError(f"the rollout server at {server.url} cannot be used: " + "; ".join(differences))
    probe(server, PROBE_TIMEOUT)


def probe(server: Server, timeout: float) -> None:
    """Have the server generate one token within `timeout` seconds. Raises WorkError if it does not."""
    body = {"model": server.model, "prompt": [0], "max_tokens": 1, "temperature": 1.0}
    try:
        status, answer = _call(server, "/v1/completions", timeout, body)
    except NotYet as error:
        raise WorkError(
            f"the rollout server at {server.url} did not generate a token within {timeout:g} s ({error}); "
            "its engine is stuck or dead: logs/rollouts.log has the cause"
        ) from error
    if status != 200 or not isinstance(answer, Mapping) or not answer.get("choices"):
        raise WorkError(
            f"the rollout server at {server.url} cannot generate: a one-token completion was answered with {status}: "
            f"{_excerpt(answer)}; logs/rollouts.log has the cause"
        )


def _why_not_up(server: Server) -> str | None:
    try:
        status, _ = _call(server, "/health", CALL_TIMEOUT)
    except NotYet as error:
        return str(error)
    if 400 <= status < 500:  # vLLM has the route from the start, so this is not vLLM
        raise WorkError(
            f"another program answers at {server.url} (/health: {status}); set rollouts.port to a free port, "
            "or leave it out"
        )
    return None if status == 200 else f"/health answered {status}"


def _give_up_if_dead(server: Server, alive: Callable[[], bool]) -> None:
    if not alive():
        raise WorkError(
            f"the rollout server ended before it was ready at {server.url}; logs/rollouts.log has the cause"
        )


def _differences(server: Server) -> Iterator[str]:
    """What is wrong with the server, each with what to do; stops where further questions make no sense."""
    status, models = _call(server, "/v1/models", CALL_TIMEOUT)
    ids = _model_ids(models)
    if status != 200 or ids is None:
        yield (
            f"/v1/models was answered with {status}, so it is not a vLLM server; another program uses this port: "
            "set rollouts.port or rollouts.url"
        )
        return
    if ids[:1] != [server.model]:  # TRL takes the first
        served = ", ".join(ids) or "no model"
        yield f"it serves {served}, not {server.model}; start it with --served-model-name {server.model}"
    status, info = _call(server, "/server_info?config_format=json", INFO_TIMEOUT)
    if status != 200 or not isinstance(info, Mapping):
        yield (
            f"/server_info was answered with {status}: its weights cannot be updated without development mode; "
            "start it with VLLM_SERVER_DEV_MODE=1, as `ptcli serve-rollouts` does"
        )
        return
    yield from _configuration_differences(server, info.get("vllm_config") or {})
    status, answer = _call(server, "/get_world_size", CALL_TIMEOUT)
    expected = server.tensor_parallel_size * server.data_parallel_size
    if status != 200 or not isinstance(answer, Mapping) or answer.get("world_size") != expected:
        yield f"/get_world_size was answered with {status} {_excerpt(answer)}, not with {expected} workers"


def _configuration_differences(server: Server, config: Mapping[str, Any]) -> Iterator[str]:
    for path, expected, flag in _expectations(server):
        actual: Any = config
        for name in path:
            actual = actual.get(name) if isinstance(actual, Mapping) else None
        shown = str(actual).removeprefix("torch.")
        if shown != str(expected):
            yield f"its {_WORDS.get(path[-1], path[-1])} is {shown}, not {expected}; start it with {flag}"


def _expectations(server: Server) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Place in vLLM's configuration, value it must have, flag that sets it."""
    backend = server.weight_transfer
    yield ("weight_transfer_config", "backend"), backend, f'--weight-transfer-config \'{{"backend": "{backend}"}}\''
    yield ("model_config", "dtype"), server.dtype, f"--dtype {server.dtype}"
    if server.max_model_len is not None:
        yield ("model_config", "max_model_len"), server.max_model_len, f"--max-model-len {server.max_model_len}"
    yield ("model_config", "logprobs_mode"), "processed_logprobs", "--logprobs-mode processed_logprobs"
    for name in ("tensor_parallel_size", "data_parallel_size"):
        size = getattr(server, name)
        yield ("parallel_config", name), size, f"--{name.replace('_', '-')} {size}"


def _model_ids(answer: Any) -> list[str] | None:
    try:
        return [str(entry["id"]) for entry in answer["data"]]
    except (TypeError, KeyError):
        return None


def _call(server: Server, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    """Status and answer (parsed if it is JSON) of one request. Raises NotYet when there is no answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return response.status, _parsed(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read())
    except TimeoutError as error:
        raise NotYet(f"{path} had no answer within {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise NotYet(
            f"{path} could not be asked: {getattr(error, 'reason', None) or error or type(error).__name__}"
        ) from error


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")


def _excerpt(answer: Any) -> str:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return text if len(text) <= 300 else text[:300] + " ..."
