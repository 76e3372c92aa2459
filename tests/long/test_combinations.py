"""Methods, adapters and strategies together, through the command line on two processes.

What accelerate_configs/README.md marks as tested, besides what test_strategies.py compares with one process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptcli.methods import METHODS
from ptcli.plan.model import Server
from tests.rollouts_server import rollout_server
from tests.server_runs import assert_serves_what_was_trained
from tests.strategies import STRATEGIES, WITNESS, Strategy, train

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LORA = {"peft": {"r": 4}}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
ONE_TYPE = {"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "bfloat16"}
SPLIT_NF4 = {"model": {"path": "builtin:tiny", "dtype": "bfloat16", "quantization": NF4 | ONE_TYPE}} | LORA
BITS = {
    bits: {"model": {"path": "builtin:tiny", "quantization": {f"load_in_{bits}bit": True}}} | LORA for bits in (4, 8)
}
NEEDED: dict[str, Any] = {
    "rewards": [{"use": "ptcli.builtin.rewards:length_reward", "args": {"target": 20}}],
    "reward_model": {"path": "builtin:tiny"},
    "teacher": {"path": "builtin:tiny"},
}
GENERATING = ("grpo", "rloo", "online_dpo", "xpo", "nash_md", "gkd", "minillm", "distillation")
LENGTHS = {
    "max_completion_length": 8, "max_new_tokens": 8, "response_length": 8, "max_length": 128,
    "num_generations": 2, "total_episodes": 16, "num_mini_batches": 1, "whiten_rewards": False,
    "num_sample_generations": 0,
}  # fmt: skip
"""Short ones, of which each method is given those that it has."""


def described(method: str, strategy: Strategy, **sections: Any) -> dict[str, Any]:
    """Two steps of a method on the shipped model."""
    from ptcli.recipe.catalogue import fields

    row = METHODS[method]
    lengths = {name: value for name, value in LENGTHS.items() if name in fields(row.config)}
    steps = {} if "total_episodes" in lengths else {"max_steps": 2}
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1, **steps}
    shim = [{"use": "tests.cpu_fsdp.shim:FsdpOnCpu"}] if strategy.sharded_by_fsdp else []
    return {
        "method": method,
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": row.smoke_data}]},
        "training": training | lengths | {"learning_rate": 1e-3},
        "launch": {"device": "cpu", "processes": strategy.processes, "accelerate": strategy.accelerate},
        "callbacks": [WITNESS, *shim],
        **{name: NEEDED[name] for name in row.needs},
        **sections,
    }


def assert_trains(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [value for row in rows for name, value in row.items() if name == "loss" or name.startswith("loss/")]
    assert losses
    assert all(map(math.isfinite, losses))
    assert list(run.glob("*model.safetensors"))


SPLIT = [
    (method, name)
    for method in GENERATING
    for name, splitter in (("zero3", "zero3"), ("fsdp2", "fsdp"))
    if splitter not in METHODS[method].fails_under
]


@pytest.mark.parametrize(("method", "name"), SPLIT)
def test_the_trainer_generates(method: str, name: str, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = STRATEGIES[name]
    assert_trains(train(described(method, strategy), strategy, tmp_path, ptcli_process))


@pytest.mark.parametrize("name", ["zero3", "fsdp2"])
def test_the_trainer_generates_with_an_adapter(name: str, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = STRATEGIES[name]
    assert_trains(train(described("grpo", strategy, **LORA), strategy, tmp_path, ptcli_process))


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_ppo(name: str, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = replace(STRATEGIES[name], optimizer="AdamW")  # its callbacks are told of the one that is then wrapped
    assert_trains(train(described("ppo", strategy), strategy, tmp_path, ptcli_process))


def test_a_reference_that_trl_would_copy(tmp_path: Path, ptcli_process: Callable) -> None:
    """`create_reference_model` refuses weights that ZeRO-3 has split. (xpo, nash_md, online_dpo and ppo: above.)"""
    strategy = STRATEGIES["zero3"]
    assert_trains(train(described("bco", strategy), strategy, tmp_path, ptcli_process))


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_offload(method: str, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = replace(STRATEGIES["zero3"], accelerate="zero3_offload")
    assert_trains(train(described(method, strategy), strategy, tmp_path, ptcli_process))


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_four_bits_split_by_fsdp(method: str, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = replace(STRATEGIES["fsdp2"], accelerate="fsdp2_qlora")
    assert_trains(train(described(method, strategy, **SPLIT_NF4), strategy, tmp_path, ptcli_process))


@pytest.mark.parametrize(("name", "bits"), [("ddp", 8), ("zero2", 4)])
def test_quantised_and_whole(name: str, bits: int, tmp_path: Path, ptcli_process: Callable) -> None:
    strategy = STRATEGIES[name]
    assert_trains(train(described("sft", strategy, **BITS[bits]), strategy, tmp_path, ptcli_process))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A vLLM server, for one trainer after another."""
    with rollout_server(tmp_path_factory.mktemp("server") / "rollouts.log") as running:
        yield running


MERGED = [(name, "adapter") for name in ("ddp", "zero3", "fsdp2")] + [(name, "4 bits") for name in ("ddp", "zero3")]


@pytest.mark.parametrize(("name", "form"), MERGED)
def test_vllm_has_the_adapter_merged(
    name: str, form: str, server: Server, tmp_path: Path, ptcli_process: Callable
) -> None:
    """The server's probabilities are the trainer's at every step."""
    strategy = STRATEGIES[name]
    rollouts = {"rollouts": {"url": server.url, "max_model_len": server.max_model_len}}
    recipe = described("grpo", strategy, **(LORA if form == "adapter" else BITS[4]), **rollouts)
    recipe["training"] |= {"learning_rate": 1e-2, "max_steps": 3}
    run = train(recipe, strategy, tmp_path, ptcli_process)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    differences = [row["sampling/sampling_logp_difference/max"] for row in rows if "loss" in row]
    assert len(differences) == 3
    assert max(differences) < 1e-3, differences
    if form == "adapter":
        assert_serves_what_was_trained(server, run)
