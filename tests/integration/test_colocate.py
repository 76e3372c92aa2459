"""vLLM inside the trainer, on a CPU: it samples from the weights as they are, and says so when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ptcli.errors import WorkError
from ptcli.recipe.model import Recipe
from ptcli.rollouts.command import engine_environment
from tests.rollouts_server import free_port, own_logprobs

TOKENS = [3, 5, 7, 9, 11, 20, 30]
LARGEST = "sampling/sampling_logp_difference/max"


def recipe_for(output_dir: Path, **training: Any) -> Recipe:
    """GRPO with a learning rate that changes the model from step to step."""
    steps = {
        "max_steps": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 16,
        "num_generations": 8, "max_completion_length": 8, "save_strategy": "no",
    }  # fmt: skip
    return Recipe.model_validate(
        {
            "name": "colocate",
            "method": "grpo",
            "output_dir": str(output_dir),
            "model": {"path": "builtin:tiny"},
            "data": {"train": [{"path": "builtin:arithmetic", "take": 64}]},
            "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
            "launch": {"device": "cpu"},
            "rollouts": {"backend": "vllm", "mode": "colocate", "dtype": "float32", "max_model_len": 128},
            "training": steps | training,
        }
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
    from ptcli.train.build import build_trainer

    trainers: list[Any] = []

    def build(recipe: Recipe) -> Any:
        colocate.install(recipe)
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


@pytest.mark.timeout(300)
def test_the_weights_are_fresh_at_every_step_and_after_the_last_sync(in_process: Callable, tmp_path: Path) -> None:
    from ptcli.rollouts import colocate

    trainer = in_process(recipe_for(tmp_path / "run"))
    trainer.train()
    differences = largest_differences(trainer)
    assert len(differences) == 4
    assert max(differences) < 1e-4
    before = difference_now(trainer)  # TRL's last sync was before the last optimiser step
    colocate.sync_now(trainer)
    assert difference_now(trainer) < 1e-4 < before


@pytest.mark.timeout(300)
def test_the_metric_shows_a_sync_that_does_not_happen(
    in_process: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above compares really grows when vLLM keeps the weights that it started with."""
    from trl.generation.vllm_generation import VLLMGeneration

    from ptcli.rollouts import colocate

    monkeypatch.setattr(colocate, "_check_sync", lambda *_: None)
    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda _: None)
    trainer = in_process(recipe_for(tmp_path / "run"))
    trainer.train()
    first, *later = largest_differences(trainer)
    assert first < 1e-4
    assert all(difference > 1e-3 for difference in later), later


@pytest.mark.timeout(300)
def test_a_weight_that_does_not_arrive_is_named(
    in_process: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.generation.vllm_generation import VLLMGeneration

    real, missing = VLLMGeneration._iter_named_params, "model.layers.1.mlp.down_proj.weight"
    monkeypatch.setattr(
        VLLMGeneration, "_iter_named_params", lambda self: ((n, p) for n, p in real(self) if n != missing)
    )
    trainer = in_process(recipe_for(tmp_path / "run"))
    with pytest.raises(WorkError, match=f"1 of vLLM's parameters, such as {missing}"):
        trainer.train()


@pytest.mark.timeout(300)
def test_the_command(root: Path, tmp_path: Path, ptcli_process: Callable) -> None:
    """`ptcli train` as a user runs it: no server, fresh weights, the model saved, nothing left running."""
    run = tmp_path / "run"
    done = ptcli_process(
        "train", root / "recipes" / "demo.yaml", "rollouts={backend: vllm, mode: colocate, max_model_len: 128}",
        "training.max_steps=4", "training.learning_rate=1e-2", f"output_dir={run}", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    status = json.loads(done.out)
    assert (status["state"], status["step"]) == ("finished", 4)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    differences = [line[LARGEST] for line in metrics if LARGEST in line]
    assert len(differences) == 4
    assert max(differences) < 1e-4
    assert not (run / "logs" / "rollouts.log").exists()
    assert (run / "model.safetensors").exists()
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(run) in (process.info["cmdline"] or [])]
