"""Callbacks that tests put into a recipe: ptcli makes them in every trainer process before it makes the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Witness(TrainerCallback):
    """Writes how the model and its optimizer really lie over the processes: `witness-RANK.json` in the run."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        facts = {
            "world": args.world_size,
            "parameters": sorted({_placement(each) for each in given["model"].parameters()}),
            "optimizer": _split_of(given["optimizer"]),
        }
        Path(args.output_dir, f"witness-{args.process_index}.json").write_text(json.dumps(facts))


def _placement(parameter: Any) -> str:
    if hasattr(parameter, "placements"):
        return f"{', '.join(map(str, parameter.placements))} on {tuple(parameter.device_mesh.shape)}"
    return "ZeRO-3" if hasattr(parameter, "ds_id") else "whole"


def _split_of(optimizer: Any) -> str:
    """DeepSpeed's name of an optimizer says its stage, but for the first two; accelerate wraps either."""
    inner = getattr(optimizer, "optimizer", optimizer)
    gradients = getattr(inner, "partition_gradients", None)
    return type(inner).__name__ + ("" if gradients is None else f", gradients {'split' if gradients else 'whole'}")


class Record(TrainerCallback):
    """Keeps what the vLLM server answered: each call's prompts and completions, a line in a file."""

    def __init__(self, path: str):
        from trl.generation.vllm_client import VLLMClient

        generate, place = VLLMClient.generate, Path(path)

        def recorded(client: Any, prompts: Any, **given: Any) -> Any:
            answer = generate(client, prompts, **given)
            with place.open("a") as file:
                file.write(json.dumps({"prompts": prompts, "answer": answer}) + "\n")
            return answer

        VLLMClient.generate = recorded


class Replay(TrainerCallback):
    """Answers for the vLLM server with what `Record` kept, and raises when asked for other prompts."""

    def __init__(self, path: str):
        from trl.generation.vllm_client import VLLMClient

        calls = map(json.loads, Path(path).read_text().splitlines())

        def replayed(client: Any, prompts: Any, **given: Any) -> Any:
            call = next(calls)
            if call["prompts"] != prompts:
                raise AssertionError(f"prompts {prompts}, and these were recorded: {call['prompts']}")
            return call["answer"]

        VLLMClient.generate = replayed
