from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.plan.build import Planned

Plans = Callable[..., Planned]
CONFIG = {"distributed_type": "DEEPSPEED", "num_processes": 8, "deepspeed_config": {"deepspeed_config_file": "ds.json"}}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """An accelerate config beside a DeepSpeed file with these values."""

    def write(values: Any, **fields: Any) -> str:
        if values is not None:
            text = values if isinstance(values, str) else json.dumps(values)
            (tmp_path / "ds.json").write_text(text, encoding="utf-8")
        section = {"deepspeed_config_file": "ds.json", **fields}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(CONFIG | {"deepspeed_config": section}), encoding="utf-8")
        return str(path)

    return write


def test_the_file_goes_to_the_run_directory(plan_of: Plans, config: Callable[..., str]) -> None:
    """Wherever the run is started from later: accelerate would look in the working directory."""
    values = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, "train_batch_size": 32}
    plan = plan_of("sft", launch={"accelerate": config(values), "gpus": 4}).plan
    assert plan is not None
    assert json.loads(plan.files["deepspeed.json"]) == values
    section = yaml.safe_load(plan.files["accelerate.yaml"])["deepspeed_config"]
    assert section["deepspeed_config_file"] == str(plan.output_dir / "deepspeed.json")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"gradient_accumulation_steps": 16}, "gradient_accumulation_steps 16, and the recipe makes it 1"),
        ({"train_micro_batch_size_per_gpu": 1}, "and the recipe makes it 8"),
        ({"train_batch_size": 8}, "train_batch_size 8, and the recipe makes it 32"),
        ({"gradient_clipping": 0.5}, "gradient_clipping 0.5"),
        ({"fp16": {"enabled": True}}, "fp16.enabled true, and the recipe makes it false"),
        ({"bf16": {"enabled": False}}, "bf16.enabled false, and the recipe makes it true"),
        ({"gradient_accumulation_steps": "1"}, 'gradient_accumulation_steps "1", and the recipe makes it 1'),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps true, and the recipe makes it 1"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled 1, and the recipe makes it true"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "optimizer.params.lr 0.0001, and the recipe makes"),
        ({"optimizer": {"params": {"betas": [0.9, 0.95]}}}, "betas [0.9, 0.95], and the recipe makes it [0.9, 0.999]"),
        ({"optimizer": {"params": {"weight_decay": "0.0"}}}, 'weight_decay "0.0", and the recipe makes it 0.0'),
        ({"scheduler": {"params": {"warmup_max_lr": 1.0}}}, "warmup_max_lr 1.0"),
        ({"scheduler": {"params": {"warmup_num_steps": 10}}}, "warmup_num_steps 10, and the recipe makes it 0"),
        ({"scheduler": {"params": {"total_num_steps": 10}}}, "total_num_steps 10, and the recipe leaves it open"),
    ],
)
def test_numbers_that_are_not_the_recipes(
    plan_of: Plans, config: Callable[..., str], values: dict[str, Any], text: str
) -> None:
    (problem,) = plan_of("sft", launch={"accelerate": config(values), "gpus": 4}).problems
    assert text in str(problem)


@pytest.mark.parametrize(
    ("values", "training"),
    [
        ({"gradient_clipping": 1, "train_batch_size": "auto", "bf16": {"enabled": "auto"}}, {}),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}}}, {}),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999]}}}, {"learning_rate": 1e-4}),
        ({"optimizer": {"type": "Adam"}}, {"optim": "adamw_torch"}),
        ({"optimizer": {"type": "OneBitAdam"}}, {}),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 5}}}, {"warmup_steps": 5}),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}}, {"max_steps": 9}),
        ({"scheduler": {"type": "WarmupLR"}}, {"lr_scheduler_type": "constant_with_warmup"}),
    ],
)
def test_auto_or_the_same(
    plan_of: Plans, config: Callable[..., str], values: dict[str, Any], training: dict[str, Any]
) -> None:
    assert plan_of("sft", launch={"accelerate": config(values), "gpus": 4}, training=training).problems == ()


@pytest.mark.parametrize(
    ("values", "training", "text"),
    [
        ({"optimizer": {"type": "Lamb"}}, {"optim": "adamw_torch"}, 'has optimizer "Lamb", which would take the place'),
        ({"scheduler": {"type": "WarmupLR"}}, {"lr_scheduler_type": "cosine"}, 'has scheduler "WarmupLR"'),
        ({"scheduler": {"params": {"warmup_num_steps": 3}}}, {"warmup_steps": 0.1}, "the recipe leaves it open"),
    ],
)
def test_what_would_take_the_recipes_place(
    plan_of: Plans, config: Callable[..., str], values: dict[str, Any], training: dict[str, Any], text: str
) -> None:
    (problem,) = plan_of("sft", launch={"accelerate": config(values), "gpus": 4}, training=training).problems
    assert text in str(problem)


def test_on_a_cpu_sizes_and_precision_are_the_recipes(plan_of: Plans, config: Callable[..., str]) -> None:
    """What --smoke needs: it makes batches small, and there is no bf16."""
    zero3 = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    schedule = {"type": "WarmupDecayLR", "params": {"total_num_steps": 9000, "warmup_min_lr": 0}}
    values = {"zero_optimization": zero3, "bf16": {"enabled": True}, "train_batch_size": 512, "scheduler": schedule}
    plan = plan_of("sft", launch={"accelerate": config(values), "device": "cpu", "processes": 2}).plan
    assert plan is not None
    written = json.loads(plan.files["deepspeed.json"])
    shorter = schedule | {"params": {"total_num_steps": "auto", "warmup_min_lr": 0}}
    assert written == {"zero_optimization": zero3, "train_batch_size": "auto", "scheduler": shorter}
    assert any("DeepSpeed file" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("values", "fields", "text"),
    [
        (None, {}, "ds.json is not there"),
        ("{", {}, "cannot be read as JSON"),
        ("[]", {}, "not a JSON object"),
        ({}, {"zero_stage": 2}, "zero_stage beside deepspeed_config_file"),
    ],
)
def test_files_that_cannot_be_used(
    plan_of: Plans, config: Callable[..., str], values: Any, fields: dict[str, Any], text: str
) -> None:
    (problem,) = plan_of("sft", launch={"accelerate": config(values, **fields), "gpus": 4}).problems
    assert text in str(problem)
    assert problem.key == ("launch", "accelerate")
