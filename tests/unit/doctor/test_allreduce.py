"""Which two processes add up a tensor, how they are watched, and what is said of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ptcli.doctor.checks import allreduce
from ptcli.doctor.checks.allreduce import Reduced, Sum, choose_pair, judge_reduced, read_reduced
from ptcli.doctor.checks.gpus import Device, Gpus
from ptcli.doctor.checks.imports import Imported, Probe
from ptcli.doctor.needs import Needs
from ptcli.doctor.pairs import Member, Pair, pair_of
from ptcli.errors import Interrupted
from ptcli.plan.build import build_plan
from ptcli.plan.model import GPU, Machine
from ptcli.run.panel import choose_view
from tests.unit.plan.conftest import make_recipe

NCCL = Pair("GPU 0 and GPU 1", "nccl", (Member("cuda:0", {}), Member("cuda:1", {})))
GLOO = Pair("trainer and rollout server", "gloo", (Member("cpu", {}), Member("cpu", {})))
RECIPE = Needs("r.yaml", "cuda", pair=NCCL)
TWO = Probe((Imported("torch", facts={"gpus": 2}),))
CPU = Probe((Imported("torch", facts={"gpus": 0}),))


# --- which two -------------------------------------------------------------------------------------------------------


def pair(method: str, gpus: int = 0, **sections: object) -> Pair | None:
    machine = Machine(tuple(GPU(str(index)) for index in range(gpus)), 8)
    planned = build_plan(make_recipe(method, **sections), machine, output_dir=Path("/runs/a"))
    assert planned.plan is not None, planned.problems
    return pair_of(planned.plan)


def test_one_process_has_nobody_to_add_up_with() -> None:
    assert pair("sft", launch={"device": "cpu"}) is None
    assert pair("sft", gpus=1) is None


def test_two_processes_on_a_cpu_have_the_environment_of_the_run() -> None:
    found = pair("sft", launch={"device": "cpu", "processes": 3, "env": {"GLOO_SOCKET_IFNAME": "eth7"}})
    assert found is not None
    assert (found.names, found.backend) == ("two processes of the trainer", "gloo")
    assert [member.device for member in found.members] == ["cpu", "cpu"]
    assert all(member.env["GLOO_SOCKET_IFNAME"] == "eth7" for member in found.members)


def test_a_trainer_and_its_server_send_weights_to_each_other() -> None:
    found = pair("grpo", launch={"device": "cpu"}, rollouts={"backend": "vllm"})
    assert found is not None
    assert (found.names, found.backend) == ("trainer and rollout server", "gloo")
    assert [("VLLM_CPU_KVCACHE_SPACE" in member.env) for member in found.members] == [False, True]


def test_the_first_gpus_of_a_run() -> None:
    found = pair("sft", gpus=4, launch={"nccl": {"debug": "WARN"}})
    assert found is not None
    assert (found.names, found.backend) == ("GPU 0 and GPU 1", "nccl")
    assert [member.device for member in found.members] == ["cuda:0", "cuda:1"]
    assert {member.env["CUDA_VISIBLE_DEVICES"] for member in found.members} == {"0,1,2,3"}
    assert all(member.env["NCCL_DEBUG"] == "WARN" for member in found.members)


def test_the_first_gpu_of_the_trainer_and_that_of_the_server() -> None:
    found = pair("grpo", gpus=4, rollouts={"gpus": 2}, launch={"gpus": 2})
    assert found is not None
    trainer, server = (member.env["CUDA_VISIBLE_DEVICES"] for member in found.members)
    assert {*trainer.split(","), *server.split(",")} == {"0", "1", "2", "3"}
    assert found.names == f"GPU {trainer[0]} (trainer) and GPU {server[0]} (rollouts)"
    assert [member.device for member in found.members] == ["cuda:0", "cuda:0"]


def test_without_a_recipe_two_gpus_are_enough() -> None:
    gpus = Gpus(visible=2, devices=(Device(0, "a", "H100", 1, 0), Device(1, "b", "H100", 1, 0)))
    found = choose_pair(Needs(), TWO, gpus)
    assert found is not None
    assert (found.backend, found.names) == ("nccl", "the first two GPUs")
    assert choose_pair(Needs(), TWO, replace(gpus, visible=1)) is None
    assert choose_pair(Needs(), TWO, replace(gpus, devices=(replace(gpus.devices[0], mig=True),))) is None
    assert choose_pair(Needs(), CPU, gpus) is None
    assert choose_pair(Needs(), CPU, None) is None


def test_a_recipe_says_which() -> None:
    assert choose_pair(RECIPE, TWO, None) is NCCL
    assert choose_pair(RECIPE, CPU, None) is None  # what keeps torch from its GPUs is another line's
    assert choose_pair(Needs("r.yaml", "cpu", pair=GLOO), CPU, Gpus(visible=2)) is GLOO
    assert choose_pair(Needs("r.yaml", "cpu"), TWO, Gpus(visible=2)) is None
    assert choose_pair(RECIPE, Probe((Imported("torch", "ImportError: no"),)), None) is None


# --- how they are watched --------------------------------------------------------------------------------------------

CHILD = """\
import json, os, signal, sys, time
result, meeting, rank, backend, device = sys.argv[1:]
def tell(**line):
    with open(result, "a") as out:
        out.write(json.dumps(line) + "\\n")
tell(at="meeting")
if {trouble}:
    {then}
tell(at="adding up")
tell(done=True)
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NCCL_P2P_DISABLE", "GLOO_SOCKET_IFNAME", "NCCL_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def reduce(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, then: str, two: Pair = NCCL, seconds: float = 2.0
) -> Reduced:
    """What is found of two processes of which one, or both, get into trouble."""
    script = folder / "child.py"
    script.write_text(CHILD.format(trouble=trouble, then=then))
    monkeypatch.setattr(allreduce, "CHILD", (sys.executable, "-S", str(script)))
    found = read_reduced(two, choose_view(quiet=True), seconds=seconds)
    assert found is not None
    return found


def test_two_that_reach_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "h:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read"
    found = reduce(tmp_path, monkeypatch, "rank == '0' and os.environ['NCCL_DEBUG'] == 'INFO'", f"print({line!r})")
    assert found == Reduced(NCCL, Sum(ways="NCCL went over P2P/CUMEM (1 channel)"))
    (finding,) = judge_reduced(found, RECIPE)
    assert finding.state == "pass"
    assert finding.message == "GPU 0 and GPU 1 add up a tensor; NCCL went over P2P/CUMEM (1 channel)"


def test_a_hang_ends_and_is_tried_without_peer_to_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reduce(tmp_path, monkeypatch, "rank == '1' and 'NCCL_P2P_DISABLE' not in os.environ", "time.sleep(60)")
    assert "without news for 2 s while adding up and meeting" in found.sum.problem
    assert (found.setting, found.second) == ("NCCL_P2P_DISABLE=1", Sum())
    (finding,) = judge_reduced(found, RECIPE)
    assert finding.state == "fail"
    assert finding.message.endswith("; with NCCL_P2P_DISABLE=1 they can")
    assert finding.fix == "launch.env.NCCL_P2P_DISABLE=1"
    (finding,) = judge_reduced(found, Needs())
    assert finding.fix == "launch.env.NCCL_P2P_DISABLE=1 in every recipe, or export NCCL_P2P_DISABLE=1"


def test_a_setting_that_is_there_already_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    found = reduce(tmp_path, monkeypatch, "True", "tell(done=False); sys.exit()")
    assert found == Reduced(NCCL, Sum("the sum is wrong"))


def test_an_interface_of_this_machine_is_none_for_several_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = ("True", "tell(error='RuntimeError: no'); sys.exit()")
    monkeypatch.setattr(allreduce, "read_interfaces", lambda: ("lo", "eth0"))
    assert reduce(tmp_path, monkeypatch, *trouble, GLOO).setting == "GLOO_SOCKET_IFNAME=lo"
    assert reduce(tmp_path, monkeypatch, *trouble, replace(GLOO, one_node=False)).setting == ""


def test_one_that_dies_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    trouble = "os.kill(os.getpid(), signal.SIGSEGV) if rank == '0' else time.sleep(60)"
    found = reduce(tmp_path, monkeypatch, "True", trouble, seconds=50)
    assert found.sum.problem == "a process ended with SIGSEGV while meeting"


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(Interrupted):
            reduce(tmp_path, monkeypatch, "True", "time.sleep(60)", seconds=50)
    finally:
        timer.cancel()
    assert not [each for each in psutil.Process().children() if str(tmp_path) in " ".join(each.cmdline())]


# --- what is said of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "state", "fix"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory", "warn", "`gpus`"),
        ("DistBackendError: Error while creating shared memory segment", "fail", "`shm`"),
        ("DistBackendError: Bootstrap : no socket interface found", "fail", "launch.nccl.interface="),
        ("it hangs, without news for 60 s while meeting", "fail", "NCCL_SHM_DISABLE=1"),
    ],
)
def test_what_nothing_mends_names_what_is_left_to_try(problem: str, state: str, fix: str) -> None:
    (finding,) = judge_reduced(Reduced(NCCL, Sum(problem), "NCCL_P2P_DISABLE=1", Sum("no")), RECIPE)
    assert finding.state == state
    assert finding.message == f"GPU 0 and GPU 1 cannot add up a tensor over NCCL: {problem}"
    assert fix in finding.fix


def test_gloo_has_settings_of_its_own() -> None:
    (finding,) = judge_reduced(Reduced(GLOO, Sum("it hangs")), Needs("r.yaml", "cpu", pair=GLOO))
    assert "launch.env.GLOO_SOCKET_IFNAME=" in finding.fix
    assert judge_reduced(None, Needs()) == []
