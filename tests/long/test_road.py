"""The whole road on the shipped model: SFT with LoRA, DPO that trains the adapter on, merge, GRPO with a vLLM server
from the merged model, and `vllm serve` of what came of it. Each step names the one before it as its model.

What is taught is seen at every step: the shipped model adds, SFT makes it answer 7 or 8 whatever the sum, DPO and GRPO
want 7. An adapter that is lost anywhere is a model that adds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from ptcli.builtin import MODEL
from ptcli.plan.model import Server
from tests.rollouts_server import rollout_server
from tests.smoke_runs import metrics_of

pytestmark = pytest.mark.long

SUMS = [f"{a}+{b}=" for a in range(1, 13) for b in range(7, 19)]
"""None of them is 7, and but one of them 8."""
REWARD = """
def says_seven(completions, **kwargs):
    return [float(completion[-1]["content"].strip() == "7") for completion in completions]
"""


def test_road(tmp_path: Path, ptcli_process: Callable) -> None:
    sft = train(ptcli_process, tmp_path, "sft", sft_rows(), {"path": "builtin:tiny"}, ADAPTER | SFT)
    dpo = train(ptcli_process, tmp_path, "dpo", dpo_rows(), {"path": str(sft), "adapter": "continue"}, DPO)
    merged = tmp_path / "merged"
    done = ptcli_process("merge", dpo, "--out", merged, "--serve-check", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["verified"] is True

    (tmp_path / "reward.py").write_text(REWARD)
    grpo = train(ptcli_process, tmp_path, "grpo", grpo_rows(), {"path": str(merged)}, GRPO)
    rewards = [row["reward"] for row in metrics_of(grpo) if "reward" in row]
    assert rewards[0] > 0.3, "the server did not start from the merged model, or it was not the trained one"
    assert fmean(rewards[-5:]) > 0.8

    assert set(served(grpo, tmp_path)) == {"7"}
    assert "7" not in served(MODEL, tmp_path)


ADAPTER = {"peft": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}}
SFT = {"training": {"learning_rate": 1e-2, "max_steps": 60, "per_device_train_batch_size": 16}}
DPO = {"training": {"learning_rate": 1e-3, "max_steps": 10, "per_device_train_batch_size": 8}}
GRPO = {
    "training": {"learning_rate": 5e-4, "max_steps": 12, "per_device_train_batch_size": 64, "num_generations": 8,
                 "max_completion_length": 4},
    "rewards": [{"use": "reward.py:says_seven"}],
    "rollouts": {"backend": "vllm", "max_model_len": 128},
}  # fmt: skip


def train(
    ptcli_process: Callable,
    folder: Path,
    method: str,
    rows: Iterable[dict[str, Any]],
    model: dict[str, Any],
    sections: dict[str, Any],
) -> Path:
    """Train through the real command; the run directory."""
    (folder / f"{method}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual = {"logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant"}
    recipe = {
        "method": method,
        "output_dir": str(folder / method),
        "model": model,
        "data": {"train": [{"path": f"{method}.jsonl"}]},
        "launch": {"device": "cpu"},
        "guards": {"reward_variance": "off"},  # solved soon
    } | sections
    recipe["training"] = usual | sections["training"]
    (folder / f"{method}.yaml").write_text(yaml.safe_dump(recipe))
    done = ptcli_process("train", folder / f"{method}.yaml", timeout=600)
    assert done.code == 0, done.err
    assert ("ptcli merge" in done.out) == (method in ("sft", "dpo")), "what trains an adapter says how to merge it"
    return folder / method


def chat(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def sft_rows() -> Iterable[dict[str, Any]]:
    for number, question in enumerate(SUMS * 4):
        yield {"messages": chat(question, "user") + chat("78"[number % 2])}


def dpo_rows() -> Iterable[dict[str, Any]]:
    return ({"prompt": chat(each, "user"), "chosen": chat("7"), "rejected": chat("8")} for each in SUMS)


def grpo_rows() -> Iterable[dict[str, Any]]:
    return ({"prompt": chat(each, "user")} for each in SUMS)


def served(model: Path, folder: Path) -> list[str]:
    """Greedy answers of a real `vllm serve`."""
    with rollout_server(folder / "serve.log", str(model)) as server:
        return [answer(server, question) for question in SUMS[::12]]


def answer(server: Server, question: str) -> str:
    import httpx

    body = {"model": server.model, "messages": chat(question, "user"), "max_tokens": 4, "temperature": 0}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"]).strip()
