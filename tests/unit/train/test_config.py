"""training_arguments: what a recipe's sections become in the TRL config."""

import subprocess
import sys
from typing import Any

import pytest

from ptcli.methods import METHODS
from ptcli.recipe.catalogue import fields
from ptcli.recipe.model import Recipe
from ptcli.train.config import model_arguments, rollout_url, training_arguments


def recipe(method: str = "sft", **sections: Any) -> Recipe:
    base = {
        "name": "a-run",
        "method": method,
        "output_dir": "/runs/a-run",
        "model": {"path": "org/model"},
        "data": {"train": [{"path": "builtin:arithmetic"}]},
    }
    return Recipe.model_validate(base | sections)


def test_name_directory_and_seed_come_from_the_top_of_the_recipe():
    arguments = training_arguments(recipe(seed=7))
    assert (arguments["run_name"], arguments["output_dir"], arguments["seed"]) == ("a-run", "/runs/a-run", 7)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_method_gets_an_argument_that_its_config_does_not_have(method):
    row = METHODS[method]
    sections: dict[str, Any] = {"launch": {"device": "cpu"}, "rewards": [{"use": "m:f", "weight": 2.0}]}
    if row.backends:
        sections["rollouts"] = {"backend": "vllm", "port": 8123, "group_port": 8124}
    given = recipe(method, data={"train": [{"path": "x"}], "eval": 0.1}, **sections)
    assert set(training_arguments(given)) <= set(fields(row.config))


def test_what_training_says_wins():
    arguments = training_arguments(
        recipe("grpo", launch={"device": "cpu"}, training={"bf16": True, "logging_steps": 5, "report_to": "trackio"})
    )
    assert arguments["bf16"] is True
    assert arguments["logging_steps"] == 5
    assert arguments["report_to"] == "trackio"


def test_a_cpu_run_computes_in_float32_unless_told_otherwise():
    arguments = training_arguments(recipe(launch={"device": "cpu"}))
    assert arguments["use_cpu"] is True
    assert arguments["bf16"] is False
    assert "bf16" not in training_arguments(recipe(launch={"device": "cpu"}, training={"fp16": True}))
    assert "bf16" not in training_arguments(recipe(launch={"device": "cuda"}))


def test_online_methods_log_each_step_and_a_nan_is_never_hidden():
    assert training_arguments(recipe("grpo"))["logging_steps"] == 1
    assert "logging_steps" not in training_arguments(recipe("sft"))
    assert training_arguments(recipe("sft"))["logging_nan_inf_filter"] is False


@pytest.mark.parametrize(
    ("evaluation", "training", "strategy"),
    [
        (0.1, {}, "epoch"),
        (0.1, {"eval_steps": 50}, "steps"),
        (0.1, {"eval_strategy": "no"}, "no"),
        (None, {}, None),
    ],
)
def test_evaluation_rows_are_used(evaluation, training, strategy):
    given = recipe(data={"train": [{"path": "x"}], "eval": evaluation}, training=training)
    assert training_arguments(given).get("eval_strategy") == strategy


def test_the_model_section_becomes_model_init_kwargs():
    model = {
        "path": "org/model",
        "revision": "v1",
        "dtype": "bfloat16",
        "attn_implementation": "sdpa",
        "trust_remote_code": True,
        "init_kwargs": {"use_cache": False},
    }
    given = training_arguments(recipe("dpo", model=model))
    assert given["model_init_kwargs"] == {
        "device_map": None,
        "dtype": "bfloat16",
        "revision": "v1",
        "attn_implementation": "sdpa",
        "trust_remote_code": True,
        "use_cache": False,
    }
    assert given["trust_remote_code"] is True


def test_weights_are_held_in_float32_by_default():
    assert model_arguments(recipe().model) == {"device_map": None, "dtype": "float32"}


def test_reward_weights_are_in_the_order_of_the_rewards():
    rewards = [{"use": "m:f", "weight": 0.5}, {"use": "m:g"}]
    assert training_arguments(recipe("grpo", rewards=rewards))["reward_weights"] == [0.5, 1.0]


def test_a_vllm_server_is_reached_at_its_planned_port():
    rollouts = {"backend": "vllm", "port": 8123, "group_port": 8124}
    arguments = training_arguments(recipe("grpo", rollouts=rollouts))
    assert arguments["use_vllm"] is True
    assert arguments["vllm_mode"] == "server"
    assert arguments["vllm_server_base_url"] == "http://127.0.0.1:8123"
    assert arguments["vllm_group_port"] == 8124


@pytest.mark.parametrize(
    ("rollouts", "url"),
    [
        ({"port": 1}, "http://127.0.0.1:1"),
        ({"port": 1, "host": "10.0.0.3"}, "http://10.0.0.3:1"),
        ({"port": 1, "host": "0.0.0.0"}, "http://127.0.0.1:1"),
        ({"url": "http://node7:9000/"}, "http://node7:9000"),
    ],
)
def test_the_address_of_the_server(rollouts, url):
    assert rollout_url(recipe("grpo", rollouts=rollouts).rollouts) == url


def test_generation_in_the_trainer_needs_no_server():
    arguments = training_arguments(recipe("grpo", rollouts={"backend": "transformers"}))
    assert not any("vllm" in key for key in arguments)


def test_colocated_vllm_takes_its_size_from_the_rollouts_section():
    rollouts = {"backend": "vllm", "mode": "colocate", "tensor_parallel_size": 2, "gpu_memory_utilization": 0.4}
    arguments = training_arguments(recipe("grpo", rollouts=rollouts))
    assert arguments["vllm_mode"] == "colocate"
    assert arguments["vllm_tensor_parallel_size"] == 2
    assert arguments["vllm_gpu_memory_utilization"] == 0.4
    assert "vllm_server_base_url" not in arguments


def test_secrets_are_not_revealed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert training_arguments(recipe(training={"hub_token": "${oc.env:HF_TOKEN}"}))["hub_token"] == "${oc.env:HF_TOKEN}"


def test_the_light_modules_stay_light():
    code = (
        "import sys, ptcli.train.config, ptcli.train.progress, ptcli.train.rewards, ptcli.train.worker\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'peft', 'vllm', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
