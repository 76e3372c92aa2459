"""The worker: real TRL trainers on the shipped model and data, on a CPU."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import WorkError
from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import Recipe
from ptcli.train import worker

REWARDS = """
import math

def length(completions, answer, target=0, **columns):
    assert len(answer) == len(completions)
    return [-abs(len(text[0]["content"]) - target) / 10 for text in completions]

async def constant(completions, **columns):
    return [1.0] * len(completions)
"""

CALLBACK = """
from pathlib import Path
from transformers import TrainerCallback

class Note(TrainerCallback):
    def __init__(self, path):
        self.path = Path(path)

    def on_step_end(self, args, state, control, **kwargs):
        with self.path.open("a") as file:
            file.write(f"{state.global_step}\\n")
"""

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
num_processes: {processes}
num_machines: 1
machine_rank: 0
main_process_port: 0
rdzv_backend: static
mixed_precision: 'no'
use_cpu: true
"""


@pytest.fixture(autouse=True, scope="module")
def quiet_and_offline(tmp_path_factory):
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


def describe(method: str, output_dir: Path, **sections: Any) -> dict[str, Any]:
    """A recipe as a mapping: three short steps on the shipped model and data."""
    row = METHODS[method]
    small = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "max_length": 64,
        "num_generations": 2,
        "max_completion_length": 8,
        "max_new_tokens": 8,
        "total_episodes": 12,  # three steps, where episodes are counted
        "response_length": 8,
    }
    known = fields(row.config)
    base: dict[str, Any] = {
        "name": method,
        "method": method,
        "output_dir": str(output_dir),
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": row.smoke_data, "take": 32}]},
        "launch": {"device": "cpu"},
        "training": {key: value for key, value in small.items() if key in known} | sections.pop("training", {}),
    }
    return base | sections


def train(method: str, output_dir: Path, *, resume_from: Path | None = None, **sections: Any) -> Any:
    recipe = Recipe.model_validate(describe(method, output_dir, **sections))
    trainer = worker.train(recipe, resume_from=str(resume_from) if resume_from else None)
    assert "events" not in read_heartbeat(output_dir), "no guard fires in a healthy run"
    return trainer


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def read_heartbeat(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "logs" / "heartbeat.json").read_text())


def generate(output_dir: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    model = AutoModelForCausalLM.from_pretrained(output_dir)
    chat = [{"role": "user", "content": "1+2="}]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**tokens, max_new_tokens=4, do_sample=False)
    return tokenizer.decode(out[0][tokens["input_ids"].shape[1] :])


def differs_from_the_start(output_dir: Path) -> bool:
    from safetensors.torch import load_file

    from ptcli.builtin import MODEL

    before, after = load_file(MODEL / "model.safetensors"), load_file(output_dir / "model.safetensors")
    assert before.keys() == after.keys()
    return any(not before[name].equal(after[name]) for name in before)


def test_sft_trains_evaluates_and_leaves_a_model_that_generates(tmp_path):
    data = {"train": [{"path": "builtin:arithmetic-messages", "take": 20}], "eval": 0.2}
    trainer = train("sft", tmp_path, data=data)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(isinstance(row["loss"], float) for row in rows)
    assert "eval_loss" in rows[-1]
    assert "train_runtime" in rows[-1]
    beat = read_heartbeat(tmp_path)
    assert (beat["phase"], beat["step"], beat["total"]) == ("finished", 3, 3)
    assert beat["tokens"] > 0
    assert beat["loss"] == rows[-1]["loss"]
    assert differs_from_the_start(tmp_path)
    assert (tmp_path / "generation_config.json").exists()
    assert isinstance(generate(tmp_path), str)
    assert not any(parameter.dtype.itemsize != 4 for parameter in trainer.model.parameters())


def test_dpo_trains_against_a_reference_with_named_evaluation_sets(tmp_path):
    entry = {"path": "builtin:arithmetic-preference", "take": 8}
    trainer = train("dpo", tmp_path, data={"train": [entry, entry | {"shuffle": 3}], "eval": {"near": [entry]}})
    assert trainer.ref_model is not None
    rows = read_metrics(tmp_path)
    assert "eval_near_loss" in rows[-1]
    assert rows[0]["rewards/margins"] == 0.0
    assert rows[-1]["rewards/margins"] != 0.0
    assert differs_from_the_start(tmp_path)


def test_dpo_against_a_reference_of_its_own(tmp_path):
    other = tmp_path / "other"
    train("sft", other)
    trainer = train("dpo", tmp_path / "run", ref_model={"path": str(other)})
    assert trainer.ref_model.config._name_or_path == str(other)
    assert read_metrics(tmp_path / "run")[0]["rewards/margins"] != 0.0


def test_grpo_trains_with_rewards_and_a_callback_from_files(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "notes.py").write_text(CALLBACK)
    rewards = [
        {"use": f"{tmp_path}/rewards.py:length", "args": {"target": 2}},
        {"use": f"{tmp_path}/rewards.py:length", "weight": 0.0},
        {"use": f"{tmp_path}/rewards.py:constant", "weight": 2.0},
    ]
    callbacks = [{"use": f"{tmp_path}/notes.py:Note", "args": {"path": str(tmp_path / "steps")}}]
    train("grpo", tmp_path / "run", rewards=rewards, callbacks=callbacks)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["rewards/constant/mean"] == 1.0
        assert row["reward"] == pytest.approx(row["rewards/length/mean"] + 2.0, abs=1e-5)
    assert any(row["rewards/length/mean"] != row["rewards/length_2/mean"] for row in rows)
    assert read_heartbeat(tmp_path / "run")["reward"] == rows[-1]["reward"]
    assert (tmp_path / "steps").read_text().split() == ["1", "2", "3"]
    assert isinstance(generate(tmp_path / "run"), str)


def test_lora_leaves_an_adapter_and_can_be_continued(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ptcli.builtin import MODEL

    train("sft", tmp_path / "first", peft={"r": 4, "target_modules": "all-linear"})
    saved = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["task_type"], saved["r"]) == ("LORA", "CAUSAL_LM", 4)
    assert (tmp_path / "first" / "tokenizer.json").exists()
    adapter = {"path": str(tmp_path / "first"), "adapter": "continue"}
    trainer = train("sft", tmp_path / "second", model=adapter)
    assert {name.split(".")[-3] for name, p in trainer.model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), tmp_path / "second")


def test_a_quantised_base_takes_an_adapter(tmp_path):
    model = {"path": "builtin:tiny", "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    trainer = train("sft", tmp_path, model=model, peft={"type": "lora", "r": 4, "target_modules": "all-linear"})
    assert any(type(module).__name__ == "Linear4bit" for module in trainer.model.modules())
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    train("sft", tmp_path, training={"max_steps": 4, "save_steps": 2})
    first = read_metrics(tmp_path)
    train("sft", tmp_path, training={"max_steps": 4, "save_steps": 2}, resume_from=tmp_path / "checkpoint-2")
    second = read_metrics(tmp_path)
    assert [row["step"] for row in second] == [1, 2, 3, 4]
    assert second[:2] == first[:2]
    assert second[3]["loss"] == pytest.approx(first[3]["loss"], rel=1e-3)


def test_a_run_without_room_for_its_model_ends_before_it_writes_and_goes_on_later(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", shutil.disk_usage)  # what the callback puts there goes with the test
    full = [{"use": "tests.save_faults:NoRoom"}]
    with pytest.raises(
        WorkError, match=r"no room for the final model: it takes .*; the checkpoints are kept: .*--resume"
    ):
        train("sft", tmp_path, callbacks=full)
    assert not list(tmp_path.glob("*model*"))
    monkeypatch.undo()
    train("sft", tmp_path, resume_from=tmp_path / "checkpoint-3")
    assert differs_from_the_start(tmp_path)


def test_a_template_and_tokens_of_the_recipe_are_saved_with_the_model(tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "turns.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    train("sft", tmp_path / "run", model={"path": "builtin:tiny", "chat_template": str(tmp_path / "turns.jinja")})
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert saved.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "user: x\n"


def test_a_template_that_trl_ships_goes_by_its_name(tmp_path):
    from ptcli.recipe.model import ModelSpec
    from ptcli.train.processors import load_processor

    tokenizer = load_processor(ModelSpec(path="builtin:tiny", chat_template="qwen3"), generates=True)
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.padding_side == "left"
    with pytest.raises(WorkError, match="qwen3"):
        load_processor(ModelSpec(path="builtin:tiny", chat_template="qwen33"), generates=True)


def test_a_token_that_the_vocabulary_lacks_is_refused():
    from ptcli.recipe.model import ModelSpec
    from ptcli.train.processors import load_processor

    with pytest.raises(WorkError, match=r"model\.eos_token: `<nope>`"):
        load_processor(ModelSpec(path="builtin:tiny", eos_token="<nope>"), generates=False)


def test_a_run_that_trains_nothing_fails_and_says_what_it_lacked(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    with pytest.raises(WorkError, match=r"0 steps.* 1 rows.* 2 prompts"):
        train(
            "grpo",
            tmp_path / "run",
            data={"train": [{"path": "builtin:arithmetic", "take": 1}]},
            rewards=[{"use": f"{tmp_path}/rewards.py:constant"}],
        )
    assert read_heartbeat(tmp_path / "run")["phase"] != "finished"


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"hub_token": "${oc.env:MY_HUB_TOKEN}"}},
        {"model": {"path": "builtin:tiny", "init_kwargs": {"token": "${oc.env:MY_HUB_TOKEN}"}}},
    ],
    ids=["training.hub_token", "model.init_kwargs.token"],
)
def test_the_hub_token_reaches_no_file(tmp_path, monkeypatch, sections):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("MY_HUB_TOKEN", "hf_0123456789abcdef")
    train("sft", tmp_path, **sections)
    assert os.environ["HF_TOKEN"] == "hf_0123456789abcdef"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "training_args.bin") in written
    assert not [path for path in written if b"hf_0123456789abcdef" in path.read_bytes()]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"sft", "dpo", "grpo"}))
def test_the_other_rows_train_without_code_of_their_own(method, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    values: dict[str, Any] = {"rewards": [{"use": f"{tmp_path}/rewards.py:length"}]}
    names = (*METHODS[method].needs, *METHODS[method].stand_ins)
    sections = {name: values.get(name, {"path": "builtin:tiny"}) for name in names}
    train(method, tmp_path / "run", **sections)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]


def launch(recipe: dict[str, Any], folder: Path, *, processes: int) -> subprocess.CompletedProcess[str]:
    """What the supervisor runs: the worker under `accelerate launch`."""
    kind = "MULTI_GPU" if processes > 1 else '"NO"'
    (folder / "accelerate.yaml").write_text(ACCELERATE.format(kind=kind, processes=processes))
    (folder / "recipe.resolved.yaml").write_text(json.dumps(recipe))
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", folder / "accelerate.yaml"]
    command += ["--module", "ptcli.train.worker", folder / "recipe.resolved.yaml"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


def test_two_processes_train_one_model(tmp_path):
    run = tmp_path / "run"
    done = launch(describe("sft", run), tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]
    # 3 steps x 2 processes x 4 rows of the 32
    assert read_metrics(run)[-1]["epoch"] == 0.75
    assert read_heartbeat(run)["phase"] == "finished"
    assert differs_from_the_start(run)


def test_a_failure_ends_with_1_and_one_clear_line(tmp_path):
    missing = {"train": [{"path": str(tmp_path / "rows.jsonl")}]}
    (tmp_path / "rows.jsonl").write_text("this is not JSON\n")
    done = launch(describe("sft", tmp_path / "run", data=missing), tmp_path, processes=1)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: data.train.0: cannot read")
    assert read_heartbeat(tmp_path / "run")["phase"] == "loading"


def test_a_folder_without_weights_is_told_from_one_with(tmp_path):
    from ptcli.train.save import has_weights

    (tmp_path / "training_args.bin").touch()
    (tmp_path / "config.json").touch()
    assert not has_weights(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert has_weights(tmp_path)


def test_a_long_evaluation_counts_as_progress(tmp_path):
    from transformers import TrainerControl, TrainerState

    from ptcli.train.callback import ProgressCallback
    from ptcli.train.progress import SHORTEST_BEAT, Heartbeat, Metrics

    callback = ProgressCallback(Heartbeat(tmp_path), Metrics(tmp_path))
    state = TrainerState(global_step=7, max_steps=9)
    callback.on_train_begin(None, state, TrainerControl())
    before = read_heartbeat(tmp_path)
    time.sleep(SHORTEST_BEAT)
    callback.on_prediction_step(None, state, TrainerControl())
    after = read_heartbeat(tmp_path)
    assert after["time"] > before["time"]
    assert (after["phase"], after["step"]) == ("training", 7)
