"""A real `vllm serve` on this CPU with the shipped tiny model, and a GRPO trainer for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptcli.builtin import data_path, model_path
from ptcli.plan.model import Server
from ptcli.rollouts.command import server_command, trainer_environment
from ptcli.rollouts.ready import wait_until_ready

MODEL = str(model_path("builtin:tiny"))
ON_GPUS = Server(
    url="http://127.0.0.1:8123",
    model="org/model",
    dtype="bfloat16",
    max_model_len=4096,
    tensor_parallel_size=2,
    data_parallel_size=2,
    weight_transfer="nccl",
    startup_timeout=1800,
)
"""A server on four GPUs, for tests of its command: it is never started."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def rollout_server(log: Path, path: str = MODEL, **changes: Any) -> Iterator[Server]:
    """A ready server of the model at `path`, as the plan would start it. `changes` are fields of `Server`; its output
    goes to `log`."""
    port = free_port()
    fields = {
        "url": f"http://127.0.0.1:{port}",
        "model": "builtin:tiny",
        "dtype": "float32",
        "max_model_len": 128,
        "tensor_parallel_size": 1,
        "data_parallel_size": 1,
        "weight_transfer": "gloo",
        "startup_timeout": 300.0,
    }
    server = Server(**(fields | changes))
    argv, env = server_command(
        model=path, revision=None, server=server, host="127.0.0.1", port=port, gpus=(), device="cpu",
        gpu_memory_utilization=None, seed=1, trust_remote_code=False, engine={}, ports=(free_port(),),
    )  # fmt: skip
    program = str(Path(sys.executable).with_name(argv[0]))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *argv[1:]], env=os.environ | env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until_ready(server, lambda: process.poll() is None, deadline=time.monotonic() + server.startup_timeout)
        yield server
    except Exception:
        print(log.read_text(errors="replace")[-20_000:])
        raise
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started, its process group."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(15)


def environment(server: Server) -> dict[str, str]:
    """The environment of a trainer for `server`."""
    return os.environ | trainer_environment(server, "cpu") | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def grpo_trainer(server: Server, output_dir: Path, **arguments: Any) -> Any:
    """TRL's GRPOTrainer on the shipped model and data, with its vLLM client at `server`."""
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    from ptcli.builtin.rewards import exact_match

    defaults = {
        "output_dir": str(output_dir), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "seed": 1,
        "use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "vllm_server_timeout": 10,
        "vllm_group_port": free_port(), "max_steps": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 8, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip
    return GRPOTrainer(
        model=MODEL,
        reward_funcs=exact_match,
        args=GRPOConfig(**(defaults | arguments)),
        train_dataset=load_dataset("json", data_files=str(data_path("builtin:arithmetic")), split="train"),
    )


def served_logprobs(server: Server, tokens: list[int]) -> list[float]:
    """What the server thinks of each token but the first, given those before it."""
    import httpx

    body = {"model": server.model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60, trust_env=False)
    answer.raise_for_status()
    positions = answer.json()["choices"][0]["prompt_logprobs"]
    return [positions[i][str(tokens[i])]["logprob"] for i in range(1, len(tokens))]


def own_logprobs(model: Any, tokens: list[int]) -> list[float]:
    """The same from the trainer's own forward pass."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()


def largest_difference(server: Server, trainer: Any) -> float:
    """Between a server and its trainer, as they are now."""
    return largest_difference_of(server, trainer.model, trainer.processing_class)


def largest_difference_of(server: Server, model: Any, tokenizer: Any) -> float:
    """Over some sums, right and wrong, in the chat template: largest |log p (server) - log p (model)| of a token."""
    texts = [[{"role": "user", "content": f"{a}+{b}="}] for a, b in ((1, 2), (19, 19), (7, 0))]
    differences = [0.0]
    for text in texts:
        tokens = tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=True)["input_ids"]
        tokens = tokens + tokenizer("21")["input_ids"]
        pairs = zip(served_logprobs(server, tokens), own_logprobs(model, tokens), strict=True)
        differences += [abs(served - own) for served, own in pairs]
    return max(differences)
