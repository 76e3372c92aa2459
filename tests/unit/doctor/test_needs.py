"""What a recipe needs of a machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ptcli.doctor.needs import Needs, Repository, needs_of, recipe_needs
from ptcli.errors import RequestError
from ptcli.request import Request, plan_request

SFT = """\
method: sft
model: {path: "builtin:tiny"}
data: {train: [{path: "builtin:arithmetic-messages"}]}
launch: {device: cpu}
"""
GRPO = """\
method: grpo
model: {path: org/policy, revision: v1, dtype: bfloat16}
data: {train: [{path: org/rows, split: train}]}
rewards: [{use: "ptcli.builtin.rewards:exact_match"}, {use: org/judge}]
training: {num_generations: 8, bf16: true}
rollouts: {gpus: 2, port: 8123, group_port: 51217}
launch: {gpus: 2, accelerate: zero2}
"""


@pytest.fixture
def needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Needs]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))

    def read(text: str, *overrides: str) -> Needs:
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return recipe_needs(path, (f"output_dir={tmp_path}/run", *overrides))

    return read


def test_a_recipe_that_fits_needs_little(needs: Callable[..., Needs], tmp_path: Path) -> None:
    found = needs(SFT)
    assert (found.device, found.trainer, found.vllm, found.problems) == ("cpu", "trl:SFTTrainer", False, ())
    assert (found.packages, found.ports, found.downloads, found.compiles) == (frozenset(), (), (), False)
    assert found.output_dir == tmp_path / "run"
    assert found.writes is not None
    assert 0 < (found.weights or 0) < found.writes.least < found.writes.most < 10**9


def test_what_it_writes_follows_what_it_saves(needs: Callable[..., Needs]) -> None:
    whole, adapter, none = needs(SFT), needs(SFT, "peft={r: 8}"), needs(SFT, "training.save_strategy=no")
    assert whole.writes
    assert adapter.writes
    assert none.writes
    assert none.writes.least < whole.writes.least
    assert adapter.writes.least < whole.writes.least


def test_a_recipe_for_gpus_says_what_this_machine_lacks(needs: Callable[..., Needs]) -> None:
    found = needs(GRPO)
    assert [problem.key for problem in found.problems] == [("launch",)]
    assert "needs a GPU" in found.problems[0].message
    assert (found.device, found.vllm, found.processes) == ("cuda", True, 4)
    assert found.packages == {"vllm", "deepspeed"}
    assert found.ports == (("rollouts.port", 8123), ("rollouts.group_port", 51217))


def test_the_gpus_on_which_vllm_starts_are_those_of_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GRPO)
    plan = plan_request(Request(path, (f"output_dir={tmp_path}/run",), assume_gpus="4x80GiB"))
    found = needs_of(plan.recipe, "r.yaml", plan)
    assert found.engine_gpus == next(step.gpus for step in plan.steps if step.name == "rollouts")
    assert len(found.engine_gpus) == 2
    assert found.utilization == 0.9


def test_what_comes_from_the_hub_is_told_with_its_place(needs: Callable[..., Needs]) -> None:
    twice = GRPO.replace("split: train}]", "split: train}], eval: [{path: org/rows, split: test}]")
    assert needs(twice).downloads == (
        Repository("models", "org/policy", "v1", ("model", "path")),
        Repository("models", "org/judge", None, ("rewards", 1, "use")),
        Repository("datasets", "org/rows", None, ("data", "train", 0, "path")),
    )


def test_a_server_elsewhere_is_asked_and_not_bound(needs: Callable[..., Needs]) -> None:
    found = needs(GRPO, "rollouts.port=null", "rollouts.url=http://10.0.0.9:8000", "rollouts.gpus=null")
    assert (found.url, found.ports) == ("http://10.0.0.9:8000", (("rollouts.group_port", 51217),))


def test_offload_and_ddp_on_a_cpu_compile(needs: Callable[..., Needs]) -> None:
    assert needs(GRPO, "launch.accelerate=zero3_offload").compiles
    assert not needs(GRPO).compiles
    assert needs(SFT, "launch.accelerate=zero2", "launch.processes=2").compiles


def test_quantisation_needs_its_package(needs: Callable[..., Needs]) -> None:
    found = needs(SFT, "model.quantization={load_in_4bit: true}", "peft={r: 8}")
    assert "bitsandbytes" in found.packages


def test_slurm_is_needed_by_who_says_so(needs: Callable[..., Needs]) -> None:
    assert (needs(SFT).slurm, needs(SFT).partition) == (False, None)
    assert needs(SFT, "launch.slurm.partition=a100").partition == "a100"


@pytest.mark.parametrize(
    "override",
    ["training.learning_rat=1", "data.train.0.path=./absent.jsonl", "training.gradient_accumulation_steps=0"],
)
def test_what_is_wrong_on_every_machine_is_raised(needs: Callable[..., Needs], override: str) -> None:
    with pytest.raises(RequestError) as raised:
        needs(SFT, override)
    assert override.split("=")[0].rpartition(".")[2][:4] in str(raised.value)


def test_what_is_wrong_on_every_machine_hides_what_is_wrong_on_this_one(needs: Callable[..., Needs]) -> None:
    """The recipe has to be mended first: what it needs is not known."""
    with pytest.raises(RequestError) as raised:
        needs(GRPO, "training.learning_rat=1")
    assert "learning_rat" in str(raised.value)


def test_a_recipe_that_is_not_there_is_raised(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        recipe_needs(tmp_path / "absent.yaml")


def test_a_taken_port_is_for_the_check_of_ports(needs: Callable[..., Needs]) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        online = GRPO.replace("gpus: 2, port: 8123, group_port: 51217", f"port: {port}")
        found = needs(online.replace("{gpus: 2, accelerate: zero2}", "{device: cpu}").replace(", bf16: true", ""))
    assert (found.problems, found.ports) == ((), (("rollouts.port", port),))


def test_without_a_recipe_runs_would_go_to_the_working_directory() -> None:
    assert Needs().output_dir == Path(os.getcwd()) / "runs"


def test_vllm_inside_the_trainer_starts_on_its_gpus(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        GRPO.replace("gpus: 2, port: 8123, group_port: 51217", "mode: colocate, gpu_memory_utilization: 0.3")
    )
    plan = plan_request(Request(path, (f"output_dir={tmp_path}/run",), assume_gpus="4x80GiB"))
    found = needs_of(plan.recipe, "r.yaml", plan)
    assert (len(found.engine_gpus), found.utilization) == (2, 0.3)
