"""Trainers with vLLM inside, in this process and on its CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import Recipe
from ptcli.rollouts.command import engine_environment
from tests.rollouts_server import free_port, own_logprobs

TOKENS = [3, 5, 7, 9, 11, 20, 30]
LARGEST = "sampling/sampling_logp_difference/max"


def recipe_for(output_dir: Path, method: str = "grpo", **sections: Any) -> Recipe:
    """A recipe with a learning rate that changes the model from step to step."""
    row, known = METHODS[method], fields(METHODS[method].config)
    needed = {
        "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
        "teacher": {"path": "builtin:tiny", "from": "config"},
    }
    steps = {
        "max_steps": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 16,
        "num_generations": 8, "max_completion_length": 8, "max_new_tokens": 8, "max_length": 64, "save_strategy": "no",
    }  # fmt: skip
    return Recipe.model_validate(
        {
            "name": "colocate",
            "method": method,
            "output_dir": str(output_dir),
            "model": {"path": "builtin:tiny"},
            "data": {"train": [{"path": row.smoke_data, "take": 64}]},
            "launch": {"device": "cpu"},
            "rollouts": {"backend": "vllm", "mode": "colocate", "dtype": "float32", "max_model_len": 128},
            "training": {name: value for name, value in steps.items() if name in known},
        }
        | {name: needed[name] for name in row.needs}
        | sections
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Builds a trainer with vLLM inside this process, and takes both down afterwards."""
    env = engine_environment("cpu", {}) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in (env | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)  # the last three are set by TRL, and must not outlive the test
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    from ptcli.rollouts import colocate
    from ptcli.train import worker
    from ptcli.train.build import build_trainer

    trainers: list[Any] = []

    def build(recipe: Recipe) -> Any:
        worker._teach_vllm(recipe)
        trainers.append(build_trainer(recipe))
        return trainers[0]

    yield build
    for trainer in trainers:
        colocate.close(trainer)


def largest_differences(trainer: Any) -> list[float]:
    """Of each step: between the log-probabilities that vLLM sampled with and those of the trainer's own forward."""
    return [entry[LARGEST] for entry in trainer.state.log_history if LARGEST in entry]


def difference_now(trainer: Any) -> float:
    from ptcli.rollouts import colocate

    served = colocate.prompt_logprobs(colocate.engine_of(trainer), TOKENS)
    own = own_logprobs(trainer.model, TOKENS)
    return max(abs(one - other) for one, other in zip(served, own, strict=True))
