"""Training against a real vLLM server on this CPU: the weights that the trainer has are the weights that it serves."""

from __future__ import annotations

import time

import httpx
import pytest
import torch

from ptcli.errors import WorkError
from ptcli.rollouts import client, gloo
from ptcli.rollouts.ready import check_identity, probe
from tests.rollouts_server import free_port, grpo_trainer, largest_difference, rollout_server

# Log-probabilities of the same float32 weights from two implementations. Observed: 1e-6.
SAME = 1e-4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with rollout_server(tmp_path_factory.mktemp("server") / "rollouts.log") as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _taught():
    client.install("cpu")


@pytest.fixture
def vllm_client(server):
    """TRL's client, connected to the server's workers."""
    from trl.generation.vllm_client import VLLMClient

    connected = VLLMClient(base_url=server.url, group_port=free_port(), connection_timeout=5)
    connected.init_communicator(device="cpu")
    yield connected
    connected.close_communicator()


def test_server_is_the_planned_one(server):
    check_identity(server)
    probe(server, 5)


def test_grpo_trains_and_the_server_follows(server, tmp_path):
    trainer = grpo_trainer(server, tmp_path)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]

    assert trainer.state.global_step == len(logged) == 4
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    assert max(row["sampling/sampling_logp_difference/max"] for row in logged) < 1e-3
    # TRL's last sync was before the last step, so the server is behind; otherwise the next line could not fail.
    assert largest_difference(server, trainer) > 100 * SAME
    client.sync_now(trainer)
    assert largest_difference(server, trainer) < SAME


def test_a_second_trainer_on_the_same_server_and_port(server, tmp_path):
    port = free_port()
    for attempt in ("first", "second"):
        trainer = grpo_trainer(server, tmp_path / attempt, max_steps=1, vllm_group_port=port)
        trainer.train()
        client.sync_now(trainer)
        assert largest_difference(server, trainer) < SAME
        trainer.vllm_generation.vllm_client.close_communicator()


def test_online_dpo_trains_and_the_server_follows(server, tmp_path):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    from ptcli.builtin import data_path
    from ptcli.builtin.rewards import exact_match
    from tests.rollouts_server import MODEL

    arguments = OnlineDPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=2, report_to=[],
        use_vllm=True, vllm_mode="server", vllm_server_base_url=server.url, vllm_group_port=free_port(),
        learning_rate=1e-2, per_device_train_batch_size=8, max_new_tokens=8, max_length=64, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
        reward_funcs=exact_match,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        train_dataset=load_dataset("json", data_files=str(data_path("builtin:arithmetic")), split="train"),
    )
    assert torch.accelerator.current_accelerator() is None
    trainer.train()
    assert trainer.state.global_step == 2
    client.sync_now(trainer)
    assert largest_difference(server, trainer) < SAME


def test_a_taken_group_port_is_named(server):
    from trl.generation.vllm_client import VLLMClient

    connected = VLLMClient(base_url=server.url, group_port=free_port(), connection_timeout=5)
    blocker = gloo.open_store("127.0.0.1", connected.group_port, listen=True)
    with pytest.raises(WorkError, match=f"port {connected.group_port} .*rollouts.group_port"):
        connected.init_communicator()
    del blocker
    probe(server, 5)


def test_a_refused_update_raises_the_servers_words(server, vllm_client):
    """A collective of which the other half never comes: TRL's own client waits for ever."""
    began = time.monotonic()
    # Without start_weight_update the server refuses. The tensor is too large for the sockets' buffers.
    vllm_client._updating_weights = True
    metadata = [("model.norm.weight", "float32", [50_000_000])]
    with pytest.raises(WorkError, match="start_weight_update must be called before update_weights"):
        vllm_client.update_named_params(metadata, iter([("model.norm.weight", torch.zeros(50_000_000))]))
    assert time.monotonic() - began < 30


def test_a_refused_rendezvous_raises_the_servers_words(server, monkeypatch):
    from trl.generation.vllm_client import VLLMClient

    connected = VLLMClient(base_url=server.url, group_port=free_port(), connection_timeout=5)
    post = connected._post
    monkeypatch.setattr(connected, "_post", lambda url, json: post(url, json={"init_info": {"no": "such key"}}))
    began = time.monotonic()
    with pytest.raises(WorkError, match="init_weight_transfer_engine"):
        connected.init_communicator()
    assert time.monotonic() - began < 30


def test_other_requests_are_refused_with_status_and_text(vllm_client):
    with pytest.raises(RuntimeError, match="answered 404"):
        vllm_client._post(f"{vllm_client.base_url}/nothing/here", json={})
    with pytest.raises(RuntimeError, match=r"answered 400.*max_tokens"):
        vllm_client.generate(["1+1="], max_tokens=100_000)


def test_metrics_stay_available(server):
    assert "vllm:generation_tokens_total" in httpx.get(f"{server.url}/metrics", trust_env=False).text


def test_weights_of_another_model_raise_the_servers_words(server, vllm_client):
    """From here on the server is half-loaded. The tensor is too large for the sockets' buffers."""
    began = time.monotonic()
    metadata = [("model.layers.7.mlp.up_proj.weight", "float32", [50_000_000])]
    with pytest.raises(WorkError, match="rollout server failed at /update_weights"):
        vllm_client.update_named_params(metadata, iter([(metadata[0][0], torch.zeros(50_000_000))]))
    assert time.monotonic() - began < 30


def test_an_incomplete_update_is_refused(server, vllm_client):
    """The last test: vLLM takes up no other update after it.

    A server whose model has a layer more than the trainer's would go on with the old values of that layer.
    """
    metadata = [("model.norm.weight", "float32", [64])]
    with pytest.raises(RuntimeError, match=r"did not bring .* parameters, such as .*do not have the same model"):
        vllm_client.update_named_params(metadata, iter([("model.norm.weight", torch.zeros(64))]))
