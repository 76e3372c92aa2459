"""TRL's vLLM client after `install`: every call ends. Against sockets that answer wrongly, or not at all."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import requests
import torch
from trl.generation.vllm_client import VLLMClient

from ptcli.rollouts import client, gloo


@pytest.fixture(autouse=True)
def _taught(monkeypatch):
    client.install("cuda")
    monkeypatch.setattr(client, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(client, "POST_TIMEOUT", 0.3)
    monkeypatch.setattr(client, "GET_TIMEOUT", 0.3)


@pytest.fixture
def other_service():
    """The address of a program that knows none of vLLM's paths."""

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def silent():
    """The address of a socket that accepts and never answers, and the number of connections it has got."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connections.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections


def unconnected(url):
    """A client whose constructor has not looked at a server."""
    made = object.__new__(VLLMClient)
    made.session = requests.Session()
    made.base_url = url
    return made


def test_another_service_on_the_port_is_an_error_and_not_an_endless_wait(other_service):
    with pytest.raises(ConnectionError, match="/health answered 404"):
        VLLMClient(base_url=other_service, connection_timeout=0.5)


def test_no_server():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=r"did not become healthy within 0\.5 s"):
        VLLMClient(base_url=url, connection_timeout=0.5)


@pytest.mark.parametrize("path", ["v1/completions", "update_weights"])
def test_a_stuck_server_is_asked_once(silent, path):
    url, connections = silent
    made = unconnected(url)
    client._limit_retries(made)
    began = time.monotonic()
    with pytest.raises(requests.RequestException):
        made._post(f"{url}/{path}", json={})
    assert time.monotonic() - began < 5
    assert len(connections) == 1


def test_nccl_stays_in_place_with_cuda():
    """In a fresh process: here another module may have taught the client for a CPU already."""
    code = (
        "from trl.generation.vllm_client import VLLMClient as C; from ptcli.rollouts import client; "
        "client.install('cuda'); print(C.init_communicator.__module__, C.update_named_params.__module__, "
        "C.close_communicator.__module__, C.check_server.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    trl = "trl.generation.vllm_client"
    assert done.stdout.split()[-4:] == [trl, trl, trl, "ptcli.rollouts.client"]


def test_sync_now_is_for_trainers_with_a_server():
    calls = []
    generation = SimpleNamespace(sync_weights=lambda: calls.append("sync"))
    client.sync_now(SimpleNamespace())
    client.sync_now(SimpleNamespace(use_vllm=False, vllm_mode="server"))
    client.sync_now(SimpleNamespace(use_vllm=True, vllm_mode="colocate", vllm_generation=generation))
    assert calls == []
    client.sync_now(SimpleNamespace(use_vllm=True, vllm_mode="server", vllm_generation=generation))
    client.sync_now(
        SimpleNamespace(use_vllm=True, vllm_mode="server", _move_model_to_vllm=lambda: calls.append("move"))
    )
    assert calls == ["sync", "move"]


def test_the_plug_in_may_be_loaded_again():
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    gloo.register()
    engine = WeightTransferEngineFactory._registry["gloo"]()
    assert engine.__name__ == "GlooWeightTransferEngine"
    assert "nccl" in WeightTransferEngineFactory._registry


def test_the_store_listens_on_its_address_only():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = gloo.open_store("127.0.0.1", port, listen=True)
    with pytest.raises(OSError, match="in use"):
        gloo.open_store("127.0.0.1", port, listen=True)
    socket.create_server(("127.0.0.2", port)).close()  # would be taken if the store listened everywhere
    del store


def test_tensors_reach_every_worker_in_order():
    """Three ranks in threads of this process: one trainer, two workers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sent = [torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.bfloat16), torch.zeros(0)]
    received = {1: [], 2: []}

    def work(rank):
        store = gloo.open_store("127.0.0.1", port, listen=False)
        store.set(gloo.presence(rank), "")
        group = gloo.join_group(store, "127.0.0.1", rank, 3)
        for tensor in sent:
            received[rank].append(torch.empty_like(tensor))
            gloo.broadcast(group, received[rank][-1], 10).wait()

    store = gloo.open_store("127.0.0.1", port, listen=True)
    workers = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in received]
    for worker in workers:
        worker.start()
    group = gloo.join_group(store, "127.0.0.1", 0, 3)
    for tensor in sent:
        gloo.broadcast(group, tensor, 10).wait()
    for worker in workers:
        worker.join(10)
    assert all(torch.equal(mine, theirs) for got in received.values() for mine, theirs in zip(sent, got, strict=True))
