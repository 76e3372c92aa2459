from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import RequestError
from ptcli.plan.machine import assume_machine, free_ports, parse_visible_devices, read_machine, visible_gpus
from ptcli.plan.model import GPU

PRESENT = [GPU(token=str(index), name="H100", memory=80, uuid=f"GPU-{name}") for index, name in enumerate("abcd")]
MIXED = [GPU("0", "H100", 80, "GPU-a"), GPU("1", "T4", 16, "GPU-b")]


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("3,1", ("3", "1")),
        (" 3 , 1 ", ("3", "1")),
        ("0,0", ()),
        ("1,2,1", ()),
        ("1,-1,2", ("1",)),
        ("-1", ()),
        ("", ()),
        ("none", ()),
        ("NoDevFiles", ()),
        ("0,GPU-a", ("0",)),
        ("GPU-a,1", ("GPU-a",)),
        ("GPU-a,GPU-b", ("GPU-a", "GPU-b")),
        ("GPU-a,GPU-a", ()),
        ("GPU-a,MIG-x", ("GPU-a",)),
        ("MIG-x,MIG-y", ("MIG-x", "MIG-y")),
        ("1gpu2,2ampere", ("1gpu2", "2ampere")),
        ("0,,2", ("0",)),
        ("+1,0", ("+1", "0")),
    ],
)
def test_visible_devices_are_read_as_torch_reads_them(value: str, tokens: tuple[str, ...]) -> None:
    assert parse_visible_devices(value) == tokens


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        (None, ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]),
        ("2,0", ["GPU-c", "GPU-a"]),
        ("1,9,2", ["GPU-b"]),
        ("GPU-c,GPU-a", ["GPU-c", "GPU-a"]),
        ("GPU-z,GPU-a", []),
        ("MIG-x", ["MIG-x"]),
    ],
)
def test_visible_gpus_are_the_ones_behind_the_tokens(value: str | None, uuids: list[str]) -> None:
    assert [gpu.uuid for gpu in visible_gpus(value, PRESENT)] == uuids


def test_tokens_are_kept_as_they_were_set() -> None:
    assert [gpu.token for gpu in visible_gpus("GPU-b,GPU-a", PRESENT)] == ["GPU-b", "GPU-a"]


def read(environ: dict[str, str], present: list[GPU], recipe: Any = None) -> Any:
    return read_machine(recipe, environ=environ, devices=lambda: present)


def test_no_driver_means_no_gpu_whatever_the_environment_says() -> None:
    assert read({"CUDA_VISIBLE_DEVICES": "0,1"}, []).gpus == ()


def test_on_a_mixed_machine_nvml_indices_are_not_those_of_fastest_first() -> None:
    ours = read({}, MIXED)
    assert [gpu.name for gpu in ours.gpus] == ["H100", "T4"]
    assert ours.device_order == "PCI_BUS_ID"
    theirs = read({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, MIXED)
    assert [gpu.memory for gpu in theirs.gpus] == [None, None]
    assert theirs.device_order == "FASTEST_FIRST"


def test_the_order_is_known_where_all_gpus_are_alike() -> None:
    assert read({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, PRESENT).gpus[0].memory == 80


def test_facts_of_this_machine() -> None:
    machine = read_machine(None)
    assert machine.cpus >= 1
    assert machine.memory is not None
    assert machine.memory > 2**28
    assert not machine.assumed
    assert len(set(machine.free_ports)) == len(machine.free_ports) >= 4


def test_a_port_in_use_is_reported(recipe_of: Callable[..., Any]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        recipe = recipe_of("grpo", rollouts={"port": port})
        assert read({}, [], recipe).busy_ports == {port}
        attached = recipe_of("grpo", rollouts={"port": port, "url": f"http://127.0.0.1:{port}"})
        assert read({}, [], attached).busy_ports == set()


def test_free_ports_are_distinct_and_not_the_requested_ones() -> None:
    ports = free_ports(count=30)
    assert len(set(ports)) == 30
    assert not set(free_ports(avoid=ports, count=30)) & set(ports)
    assert all(1024 < port < 32768 for port in ports)


def test_a_port_that_is_taken_is_not_called_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr("ptcli.plan.machine._BELOW_EPHEMERAL", range(port, port + 1))
        assert free_ports() == ()


@pytest.mark.parametrize(
    ("spec", "nodes", "gpus", "memory"),
    [
        ("8", 1, 8, None),
        ("8x80GiB", 1, 8, 80 * 2**30),
        ("8x80gib", 1, 8, 80 * 2**30),
        ("8x80GB", 1, 8, 80 * 10**9),
        ("2x8x80GiB", 2, 8, 80 * 2**30),
        ("2x8", 2, 8, None),
        ("1x24.5GiB", 1, 1, int(24.5 * 2**30)),
    ],
)
def test_assumed_machines(spec: str, nodes: int, gpus: int, memory: int | None) -> None:
    machine = assume_machine(spec)
    assert (machine.nodes, len(machine.gpus)) == (nodes, gpus)
    assert [gpu.token for gpu in machine.gpus] == [str(index) for index in range(gpus)]
    assert {gpu.memory for gpu in machine.gpus} == {memory}
    assert machine.assumed
    assert machine.free_ports[:4] == (8000, 51216, 29500, 29550)


@pytest.mark.parametrize(
    "spec", ["", "0", "eight", "8x", "x8", "8x80XB", "-8", "0x8", "8 80GiB", "1x2x3x4", "8x80GiBs", "2x0"]
)
def test_a_bad_assumption_names_the_forms(spec: str) -> None:
    with pytest.raises(RequestError, match="8x80GiB or 2x8x80GiB") as caught:
        assume_machine(spec)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HOME": "{}/hub"}, "hub"),
        ({"XDG_CACHE_HOME": "{}/cache"}, "cache/huggingface"),
        ({"HF_HOME": "{}/hub", "XDG_CACHE_HOME": "{}/cache"}, "hub"),
    ],
)
def test_the_default_config_of_accelerates_is_found(tmp_path: Path, environ: dict[str, str], folder: str) -> None:
    """Where accelerate keeps it, as `accelerate config` writes it."""
    there = {name: value.format(tmp_path) for name, value in environ.items()}
    assert read_machine(None, environ=there, devices=list).accelerate_config is None
    file = tmp_path / folder / "accelerate/default_config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("distributed_type: FSDP\n")
    assert read_machine(None, environ=there, devices=list).accelerate_config == str(file)
