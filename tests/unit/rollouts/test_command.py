"""The command of the rollout server. What vLLM's own parser makes of it: tests/integration/test_rollouts_command.py."""

import json

import pytest

from ptcli.rollouts.command import is_loopback, no_proxy, render_flag, server_command, trainer_environment
from tests.rollouts_server import ON_GPUS as SERVER


def command(server=SERVER, **changes):
    arguments = {
        "model": "org/model",
        "revision": None,
        "server": server,
        "host": "127.0.0.1",
        "port": 8123,
        "gpus": ("4", "5", "6", "7"),
        "device": "cuda",
        "gpu_memory_utilization": None,
        "seed": 7,
        "trust_remote_code": False,
        "engine": {},
        "ports": (29551,),
    }
    return server_command(**(arguments | changes))


def value(argv, flag):
    """The word after the last occurrence of `flag`, which is the one that counts."""
    return argv[len(argv) - 1 - argv[::-1].index(flag) + 1]


def replaced(**changes):
    from dataclasses import replace

    return replace(SERVER, **changes)


def test_gpu_command():
    argv, env = command()
    assert argv[:3] == ("vllm", "serve", "org/model")
    assert value(argv, "--host") == "127.0.0.1"
    assert value(argv, "--port") == "8123"
    assert value(argv, "--served-model-name") == "org/model"
    assert value(argv, "--dtype") == "bfloat16"
    assert value(argv, "--max-model-len") == "4096"
    assert value(argv, "--tensor-parallel-size") == "2"
    assert value(argv, "--data-parallel-size") == "2"
    assert value(argv, "--data-parallel-rpc-port") == "29551"
    assert value(argv, "--gpu-memory-utilization") == "0.9"
    assert value(argv, "--seed") == "7"
    assert json.loads(value(argv, "--weight-transfer-config")) == {"backend": "nccl"}
    assert value(argv, "--logprobs-mode") == "processed_logprobs"
    assert value(argv, "--max-logprobs") == "-1"
    assert value(argv, "--generation-config") == "vllm"
    assert "--enforce-eager" not in argv
    assert "--trust-remote-code" not in argv
    assert "--revision" not in argv
    assert env["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert env["VLLM_SERVER_DEV_MODE"] == "1"
    assert env["VLLM_HOST_IP"] == "127.0.0.1"
    assert not {"TORCH_COMPILE_DISABLE", "VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS"} & env.keys()


def test_cpu_command():
    server = replaced(weight_transfer="gloo", tensor_parallel_size=1, data_parallel_size=1, dtype="float32")
    argv, env = command(server, device="cpu", gpus=())
    assert json.loads(value(argv, "--weight-transfer-config")) == {"backend": "gloo"}
    assert "--enforce-eager" in argv
    assert "--gpu-memory-utilization" not in argv
    assert "--data-parallel-rpc-port" not in argv
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert env["TORCH_COMPILE_DISABLE"] == "1"


@pytest.mark.parametrize(("chosen", "loaded"), [("theirs", "theirs,ptcli_gloo"), ("", "ptcli_gloo")])
def test_the_callers_choice_of_plugins_does_not_leave_out_ours(monkeypatch, chosen, loaded):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert "VLLM_PLUGINS" not in command(device="cpu")[1]
    monkeypatch.setenv("VLLM_PLUGINS", chosen)
    assert command(device="cpu")[1]["VLLM_PLUGINS"] == loaded


def test_revision_and_remote_code_only_when_asked_for():
    argv, _ = command(revision="abc123", trust_remote_code=True)
    assert value(argv, "--revision") == "abc123"
    assert value(argv, "--tokenizer-revision") == "abc123"
    assert "--trust-remote-code" in argv


def test_model_length_is_left_to_vllm_when_unknown():
    argv, _ = command(replaced(max_model_len=None))
    assert "--max-model-len" not in argv


def test_uuids_are_handed_on_unchanged():
    _, env = command(gpus=("GPU-1a", "GPU-2b"))
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1a,GPU-2b"


def test_engine_flags_come_last_so_that_they_win():
    argv, _ = command(engine={"generation_config": "auto"})
    assert value(argv, "--generation-config") == "auto"


def test_engine_may_ask_for_compilation_on_a_cpu():
    argv, env = command(device="cpu", gpus=(), engine={"enforce_eager": False, "kv_cache_memory_bytes": 10**8})
    assert "--enforce-eager" not in argv
    assert "--no-enforce-eager" in argv
    assert not {"TORCH_COMPILE_DISABLE", "VLLM_CPU_KVCACHE_SPACE"} & env.keys()


def test_local_models_are_served_offline(tmp_path):
    assert command(model=str(tmp_path))[1]["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in command(model=str(tmp_path), engine={"tokenizer": "org/other"})[1]
    assert "HF_HUB_OFFLINE" not in command()[1]


def test_a_server_for_other_machines_is_not_bound_to_loopback():
    argv, env = command(host="10.0.0.5")
    assert value(argv, "--host") == "10.0.0.5"
    assert "VLLM_HOST_IP" not in env
    assert "10.0.0.5" in env["NO_PROXY"].split(",")


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("enable_prefix_caching", True, ["--enable-prefix-caching"]),
        ("enable_prefix_caching", False, ["--no-enable-prefix-caching"]),
        ("enable-prefix-caching", True, ["--enable-prefix-caching"]),
        ("disable_log_stats", False, []),
        ("disable_log_stats", True, ["--disable-log-stats"]),
        ("max_num_seqs", 64, ["--max-num-seqs", "64"]),
        ("swap_space", 0.5, ["--swap-space", "0.5"]),
        ("quantization", None, []),
        ("compilation_config", {"mode": 0}, ["--compilation-config", '{"mode": 0}']),
        ("cudagraph_capture_sizes", [1, 2, 4], ["--cudagraph-capture-sizes", "1", "2", "4"]),
        ("allowed_origins", ["http://a", "http://b"], ["--allowed-origins", '["http://a", "http://b"]']),
        ("middleware", ["a.b", "c.d"], ["--middleware", "a.b", "--middleware", "c.d"]),
        ("lora_modules", [{"name": "x", "path": "/y"}], ["--lora-modules", '{"name": "x", "path": "/y"}']),
    ],
)
def test_render_flag(name, setting, words):
    assert render_flag(name, setting) == words


def test_the_users_own_no_proxy_is_kept(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "internal.example, 127.0.0.1")
    env = no_proxy("10.0.0.5")
    assert env["NO_PROXY"] == env["no_proxy"] == "internal.example,127.0.0.1,10.0.0.5,localhost"


def test_trainer_meets_a_local_server_on_loopback():
    env = trainer_environment(SERVER, "cuda")
    assert env["VLLM_HOST_IP"] == "127.0.0.1"
    assert "127.0.0.1" in env["no_proxy"].split(",")
    assert "CUDA_VISIBLE_DEVICES" not in env


def test_trainer_meets_a_remote_server_on_the_network():
    env = trainer_environment(replaced(url="http://10.0.0.5:8000"), "cuda")
    assert "VLLM_HOST_IP" not in env
    assert "10.0.0.5" in env["NO_PROXY"].split(",")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("node1", False),
    ],
)
def test_is_loopback(host, expected):
    assert is_loopback(host) is expected
