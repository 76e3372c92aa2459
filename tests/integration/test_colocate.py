"""vLLM inside the trainer, on a CPU: it samples from the weights as they are, and says so when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ptcli.errors import WorkError
from tests.colocate_runs import LARGEST, difference_now, in_process, largest_differences, recipe_for

__all__ = ["in_process"]


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
