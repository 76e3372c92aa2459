"""The command of the rollout server, read by vLLM's own parser."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ptcli.rollouts.command import server_command
from tests.rollouts_server import ON_GPUS as SERVER

ON_A_CPU = replace(
    SERVER, dtype="float32", tensor_parallel_size=1, data_parallel_size=1, weight_transfer="gloo", max_model_len=None
)

# One flag of each kind that vLLM's parser knows: switch, its opposite, a switch without one, number, several words,
# JSON text, a JSON list, a repeated flag.
ENGINE = {
    "enable_prefix_caching": True,
    "enable_chunked_prefill": False,
    "disable_log_stats": True,
    "aggregate_engine_logging": False,
    "max_num_seqs": 64,
    "cudagraph_capture_sizes": [1, 2, 4],
    "compilation_config": {"mode": 0},
    "hf_overrides": {"rope_theta": 1e6},
    "allowed_origins": ["http://localhost"],
    "middleware": ["a.b", "c.d"],
    "kv_cache_dtype": "auto",
    "cpu_offload_gb": 0.5,
    "quantization": None,
    "generation_config": "auto",
}


@pytest.fixture(scope="module")
def parse():
    """vLLM's parser of `vllm ...` command lines, as its console script builds it."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    return lambda argv: parser.parse_args(list(argv[1:]))


def command(server, **changes):
    arguments = {
        "model": "org/model",
        "revision": "abc",
        "server": server,
        "host": "127.0.0.1",
        "port": 8123,
        "gpus": ("0", "1", "2", "3"),
        "device": "cuda",
        "gpu_memory_utilization": 0.8,
        "seed": 7,
        "trust_remote_code": True,
        "engine": {},
        "ports": (29551,),
    }
    return server_command(**(arguments | changes))[0]


def test_gpu_command_is_accepted(parse):
    args = parse(command(SERVER))
    assert args.model_tag == "org/model"
    assert (args.host, args.port, args.seed, args.revision) == ("127.0.0.1", 8123, 7, "abc")
    assert args.served_model_name == ["org/model"]
    assert (args.dtype, args.max_model_len) == ("bfloat16", 4096)
    assert (args.tensor_parallel_size, args.data_parallel_size, args.data_parallel_rpc_port) == (2, 2, 29551)
    assert args.gpu_memory_utilization == 0.8
    assert args.trust_remote_code is True
    assert args.weight_transfer_config.backend == "nccl"
    assert (args.logprobs_mode, args.max_logprobs, args.generation_config) == ("processed_logprobs", -1, "vllm")


def test_cpu_command_is_accepted(parse):
    args = parse(command(ON_A_CPU, device="cpu", gpus=(), revision=None, trust_remote_code=False, ports=()))
    assert args.enforce_eager is True
    assert args.weight_transfer_config.backend == "gloo"
    assert args.trust_remote_code is False
    assert args.api_server_count == 1


@pytest.mark.parametrize(("server", "device"), [(SERVER, "cuda"), (ON_A_CPU, "cpu")])
def test_engine_flags_are_accepted(parse, server, device):
    args = parse(command(server, device=device, engine=ENGINE))
    assert args.enable_prefix_caching is True
    assert args.enable_chunked_prefill is False
    assert args.disable_log_stats is True
    assert args.aggregate_engine_logging is False
    assert args.max_num_seqs == 64
    assert args.cudagraph_capture_sizes == [1, 2, 4]
    assert args.hf_overrides == {"rope_theta": 1e6}
    assert args.allowed_origins == ["http://localhost"]
    assert args.middleware == ["a.b", "c.d"]
    assert args.cpu_offload_gb == 0.5
    assert args.generation_config == "auto"


def test_every_switch_of_vllm_can_be_turned_off(parse):
    """Which switches have no `--no-` form is a list of ours: it must name them all."""
    import argparse

    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from ptcli.rollouts.command import render_flag

    actions = make_arg_parser(FlexibleArgumentParser())._actions
    switches = [action for action in actions if action.nargs == 0 and not isinstance(action, argparse._HelpAction)]
    assert len(switches) > 50
    known = {option for action in actions for option in action.option_strings}
    for action in switches:
        assert set(render_flag(action.dest, False)) <= known
        assert set(render_flag(action.dest, True)) <= known
