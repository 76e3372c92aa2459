"""Readiness, against real little HTTP servers that misbehave one way each."""

import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ptcli.errors import WorkError
from ptcli.plan.model import Server
from ptcli.rollouts import ready

PLANNED = Server(
    url="http://127.0.0.1:1",
    model="org/model",
    dtype="float32",
    max_model_len=256,
    tensor_parallel_size=1,
    data_parallel_size=2,
    weight_transfer="gloo",
    startup_timeout=10,
)


def configuration():
    """What a right server says of itself."""
    return {
        "weight_transfer_config": {"backend": "gloo"},
        "model_config": {"dtype": "torch.float32", "max_model_len": 256, "logprobs_mode": "processed_logprobs"},
        "parallel_config": {"tensor_parallel_size": 1, "data_parallel_size": 2},
    }


def answers():
    """Path -> (status, body) of a right server."""
    return {
        "/health": (200, ""),
        "/v1/models": (200, {"data": [{"id": "org/model"}]}),
        "/server_info": (200, {"vllm_config": configuration()}),
        "/get_world_size": (200, {"world_size": 2}),
        "/v1/completions": (200, {"choices": [{"text": "x"}]}),
    }


class Answering(BaseHTTPRequestHandler):
    """Answers from the table `routes` of its server; a callable is called first; everything else is a 404."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.routes.get(self.path.partition("?")[0], (404, {"detail": "Not Found"}))
        status, body = answer() if callable(answer) else answer
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_):
        pass


class Quiet(ThreadingHTTPServer):
    """Callers that have hung up are part of these tests."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def serve():
    """serve(routes) -> the planned Server at a real server's address."""
    running = []

    def start(routes):
        server = Quiet(("127.0.0.1", 0), Answering)
        server.routes = routes
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(server)
        return replace(PLANNED, url=f"http://127.0.0.1:{server.server_address[1]}")

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(ready, "CALL_TIMEOUT", 0.3)
    monkeypatch.setattr(ready, "INFO_TIMEOUT", 0.3)
    monkeypatch.setattr(ready, "PROBE_TIMEOUT", 0.3)
    monkeypatch.setattr(ready, "INTERVAL", 0.02)


def wait(server, *, alive=lambda: True, seconds=1.0, **options):
    ready.wait_until_ready(server, alive, deadline=time.monotonic() + seconds, **options)


def reason(server, **options):
    with pytest.raises(WorkError) as raised:
        wait(server, **options)
    return str(raised.value)


def changed(path, value):
    """The right server's answers with one entry of its configuration changed."""
    routes = answers()
    section = routes["/server_info"][1]["vllm_config"]
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return routes


def test_a_right_server_is_ready(serve):
    wait(serve(answers()))


def test_it_waits_for_health(serve):
    states = iter([503, 503, 503])
    seen = []
    routes = answers() | {"/health": lambda: (next(states, 200), "")}
    wait(serve(routes), on_wait=seen.append)
    assert len(seen) == 3
    assert seen == sorted(seen)


def test_nothing_listens():
    message = reason(replace(PLANNED, url=f"http://127.0.0.1:{_closed_port()}"), seconds=0.2)
    assert "was not ready within" in message
    assert "Connection refused" in message
    assert "rollouts.startup_timeout" in message


def test_another_service_answers_404(serve):
    began = time.monotonic()
    message = reason(serve({}), seconds=30)
    assert "another program answers" in message
    assert "rollouts.port" in message
    assert time.monotonic() - began < 5


def test_another_service_that_is_healthy_too(serve):
    message = reason(serve({"/health": (200, "fine")}))
    assert "not a vLLM server" in message


def test_wrong_model(serve):
    message = reason(serve(answers() | {"/v1/models": (200, {"data": [{"id": "org/other"}]})}))
    assert "serves org/other, not org/model" in message


def test_no_development_mode(serve):
    routes = answers()
    del routes["/server_info"]
    assert "VLLM_SERVER_DEV_MODE=1" in reason(serve(routes))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("model_config", "dtype"), "torch.bfloat16", "dtype is bfloat16, not float32; start it with --dtype float32"),
        (("model_config", "max_model_len"), 128, "max_model_len is 128, not 256"),
        (("model_config", "logprobs_mode"), "raw_logprobs", "logprobs_mode is raw_logprobs, not processed_logprobs"),
        (
            ("weight_transfer_config",),
            None,
            "weight transfer backend is None, not gloo; start it with --weight-transfer",
        ),
        (("weight_transfer_config", "backend"), "nccl", "weight transfer backend is nccl, not gloo"),
        (("parallel_config", "data_parallel_size"), 1, "data_parallel_size is 1, not 2"),
        (("parallel_config", "tensor_parallel_size"), 4, "tensor_parallel_size is 4, not 1"),
    ],
)
def test_another_configuration(serve, path, value, expected):
    assert expected in reason(serve(changed(path, value)))


def test_everything_that_differs_is_named_at_once(serve):
    routes = changed(("model_config", "dtype"), "torch.bfloat16") | {"/get_world_size": (200, {"world_size": 1})}
    routes["/v1/models"] = (200, {"data": [{"id": "org/other"}]})
    message = reason(serve(routes))
    assert "org/other" in message
    assert "bfloat16" in message
    assert "/get_world_size" in message


def test_any_length_will_do_when_none_is_planned(serve):
    wait(replace(serve(changed(("model_config", "max_model_len"), 32768)), max_model_len=None))


def test_healthy_but_unable_to_generate(serve):
    message = reason(serve(answers() | {"/v1/completions": (500, {"error": {"message": "EngineDeadError"}})}))
    assert "cannot generate" in message
    assert "EngineDeadError" in message


def test_healthy_but_stuck(serve):
    message = reason(serve(answers() | {"/v1/completions": lambda: time.sleep(2) or (200, "")}))
    assert "did not generate a token within 0.3 s" in message


def test_a_socket_that_accepts_and_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        message = reason(replace(PLANNED, url=f"http://127.0.0.1:{silent.getsockname()[1]}"), seconds=0.5)
    assert "/health had no answer within 0.3 s" in message
    assert time.monotonic() - began < 3


def test_an_answer_that_is_not_http():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_speak_gibberish, args=(listener,), daemon=True).start()
        message = reason(replace(PLANNED, url=f"http://127.0.0.1:{listener.getsockname()[1]}"), seconds=0.5)
    assert "was not ready within" in message


def test_dies_while_waiting(serve):
    states = iter([True, True])
    began = time.monotonic()
    message = reason(serve(answers() | {"/health": (503, "")}), alive=lambda: next(states, False), seconds=30)
    assert "ended before it was ready" in message
    assert time.monotonic() - began < 5


def test_dead_while_another_one_answers(serve):
    assert "ended before it was ready" in reason(serve(answers()), alive=lambda: False)


def test_dies_during_the_probe(serve):
    living = [True]

    def die():
        living.clear()
        return 500, "going down"

    assert "ended before" in reason(serve(answers() | {"/v1/completions": die}), alive=lambda: bool(living))


def test_proxies_of_the_environment_are_not_asked(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{_closed_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    wait(serve(answers()))


def test_check_identity_of_a_server_that_is_not_there():
    with pytest.raises(WorkError, match=r"does not answer: .*Connection refused.*ptcli serve-rollouts"):
        ready.check_identity(replace(PLANNED, url=f"http://127.0.0.1:{_closed_port()}"))


def test_check_identity_includes_a_token(serve):
    with pytest.raises(WorkError, match="cannot generate"):
        ready.check_identity(serve(answers() | {"/v1/completions": (500, "")}))


def test_probe_asks_for_one_token_of_the_planned_model(serve):
    ready.probe(serve(answers()), 1.0)
    with pytest.raises(WorkError, match="cannot generate"):
        ready.probe(serve({}), 1.0)


def _closed_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _speak_gibberish(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.sendall(b"SSH-2.0-whatever\r\n")
        connection.close()
