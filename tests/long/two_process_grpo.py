"""One of two trainer processes: `two_process_grpo.py SERVER_URL GROUP_PORT OUTPUT_DIR`. Rank 0 writes result.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from ptcli.plan.model import Server
from ptcli.rollouts import client
from tests.rollouts_server import grpo_trainer, largest_difference


def main(url: str, group_port: str, output_dir: str) -> None:
    client.install("cpu")
    server = Server(url, "builtin:tiny", "float32", 128, 1, 1, "gloo", 60)
    trainer = grpo_trainer(server, Path(output_dir) / "run", vllm_group_port=int(group_port), max_steps=3)
    trainer.train()
    result = {"world_size": trainer.accelerator.num_processes, "steps": trainer.state.global_step}
    if trainer.accelerator.is_main_process:
        logged = [row for row in trainer.state.log_history if "loss" in row]
        result["logp_difference"] = max(row["sampling/sampling_logp_difference/max"] for row in logged)
        result["before_last_sync"] = largest_difference(server, trainer)
    trainer.accelerator.wait_for_everyone()
    client.sync_now(trainer)
    if trainer.accelerator.is_main_process:
        result["after_last_sync"] = largest_difference(server, trainer)
        (Path(output_dir) / "result.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
