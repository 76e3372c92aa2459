"""The job of a plan: a script as golden text, what can be wrong with `launch.slurm`, and what a cluster cannot give."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import RequestError
from ptcli.plan.build import build_plan
from ptcli.plan.partitions import cluster_problems, read_partitions
from ptcli.plan.slurm import (
    RECIPE_FILE,
    Job,
    describe_job,
    job_machine,
    log_file,
    place_problems,
    placed_by_slurm,
    plan_job,
    slurm_problems,
)
from ptcli.plan.slurm_time import looks_like_hours, parse_time, spell
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import Recipe
from tests.unit.plan.conftest import make_recipe

GOLDEN = Path(__file__).parent / "jobs"
PROGRAM = "/opt/ptcli/bin/ptcli"
RUN = Path("/scratch/runs/x")

CPUS = {"device": "cpu", "nodes": 2}
GPUS = {"gpus": 4, "nodes": 2}
ONLINE: dict[str, Any] = {
    "rewards": [{"use": "ptcli.builtin.rewards:exact_match"}],
    "data": {"train": [{"path": "builtin:arithmetic"}]},
    "training": {"num_generations": 8, "per_device_train_batch_size": 8},
}


def job_of(
    method: str = "sft", launch: dict[str, Any] | None = None, run: Path = RUN, slurm: Any = None, **sections: Any
) -> Job:
    """The job of a recipe with these sections. The run is 10 steps, so that no dataset has to be counted."""
    launch = (CPUS if launch is None else launch) | {"slurm": slurm or {}}
    sections = {"training": {"max_steps": 10}} | sections
    resume_from = sections.pop("resume_from", None)
    recipe = make_recipe(method, launch=launch, **sections)
    planned = build_plan(*placed_by_slurm(recipe, job_machine(recipe)), output_dir=run)
    assert planned.plan, planned.problems
    return plan_job(planned.plan, recipe, PROGRAM, resume_from=resume_from)


def problems_of(**slurm: Any) -> list[str]:
    return [str(problem) for problem in slurm_problems(make_recipe("sft", launch={"slurm": slurm}))]


def directives(job: Job) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in job.script.splitlines() if line.startswith("#SBATCH")]


EVERYTHING = {
    "account": "lab-7",
    "partition": "gpu",
    "time": "1-12:00:00",
    "qos": "high",
    "constraint": "a100&nvlink",
    "container": "registry.example/train:1",
    "container_mounts": ["/data", "/scratch/me:/mine:ro"],
    "modules": ["cuda/13.0", "gcc"],
    "requeue": True,
    "signal_seconds": 600,
    "cpus_per_task": 48,
    "extra": {"mem": 0, "exclusive": True, "mail-type": ["END", "FAIL"], "comment": "it's mine", "nice": None},
}
JOBS = {
    "two_nodes": lambda: job_of(),
    "one_node": lambda: job_of(launch={"gpus": 8}),
    "server_apart": lambda: job_of("grpo", GPUS, rollouts={"gpus": 2, "nodes": 1}, **ONLINE),
    "everything": lambda: job_of(
        "grpo", GPUS, Path("/scratch/it's 100% mine"), EVERYTHING, rollouts={"gpus": 2}, **ONLINE
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_script(name: str) -> None:
    """PTCLI_WRITE_GOLDEN=1 writes them again."""
    golden, script = GOLDEN / f"{name}.sh", JOBS[name]().script
    if os.environ.get("PTCLI_WRITE_GOLDEN"):
        golden.write_text(script)
    assert script == golden.read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_options_of_slurm_are_those_of_the_recipe() -> None:
    assert directives(JOBS["everything"]())[5:] == [
        "--account=lab-7",
        "--partition=gpu",
        "--qos=high",
        "--constraint='a100&nvlink'",
        "--time=1-12:00:00",
        "--signal=B:USR1@600",
        "--requeue",
        "--open-mode=append",
        """--output='/scratch/it'"'"'s 100%% mine/logs/slurm-%j.out'""",
        "--export=ALL",
        "--mem=0",
        "--exclusive",
        "--mail-type=END,FAIL",
        """--comment='it'"'"'s mine'""",
    ]


@pytest.mark.parametrize(
    ("method", "launch", "sections", "asked"),
    [
        ("sft", {"gpus": 8}, {}, (1, 8, 32)),
        ("sft", GPUS, {}, (2, 4, 16)),
        ("grpo", {"gpus": 4}, {"rollouts": {"gpus": 2}, **ONLINE}, (1, 6, 24)),
        ("grpo", {"gpus": 4}, {"rollouts": {"tensor_parallel_size": 2}, **ONLINE}, (1, 6, 24)),
        ("grpo", {"gpus": 4}, {"rollouts": {"gpus": 2, "nodes": 1}, **ONLINE}, (2, 4, 16)),
        ("grpo", {"gpus": 2}, {"rollouts": {"gpus": 4, "nodes": 1}, **ONLINE}, (2, 4, 16)),
        ("grpo", {"gpus": 4}, {"rollouts": {"url": "http://10.0.0.1:8000"}, **ONLINE}, (1, 4, 16)),
        ("grpo", {"gpus": 4}, {"rollouts": {"mode": "colocate", "gpu_memory_utilization": 0.3}, **ONLINE}, (1, 4, 16)),
        ("sft", {"device": "cpu", "nodes": 3, "processes": 2}, {}, (3, 0, 2)),
        ("grpo", {"device": "cpu"}, {"rollouts": {"nodes": 1}, **ONLINE}, (2, 0, 1)),
        ("grpo", {"device": "cpu", "nodes": 2, "processes": 2}, {"rollouts": {"nodes": 1}, **ONLINE}, (3, 0, 2)),
    ],
)
def test_nodes_gpus_and_cores_follow_from_the_recipe(
    method: str, launch: dict[str, Any], sections: dict[str, Any], asked: tuple[int, int, int]
) -> None:
    job = job_of(method, launch, **sections)
    assert (job.nodes, job.gpus, job.cpus) == asked
    assert (f"--gpus-per-node={job.gpus}" in directives(job)) == bool(job.gpus)


def test_gpus_that_would_stay_idle_are_told() -> None:
    (note,) = job_of("grpo", GPUS, rollouts={"gpus": 2}, **ONLINE).notes
    assert note == "all nodes of a job are alike, with 6 GPUs, and 2 of the 12 stay idle (nodes use 6, 4)"
    assert job_of("grpo", {"gpus": 4}, rollouts={"gpus": 2}, **ONLINE).notes == ()


def test_a_server_with_an_address_of_its_own_keeps_it() -> None:
    rollouts = {"gpus": 4, "nodes": 1, "host": "10.0.0.9"}
    assert "rollouts.host" not in job_of("grpo", GPUS, rollouts=rollouts, **ONLINE).script


def test_gpus_can_be_asked_for_in_another_way() -> None:
    job = job_of(launch=GPUS, slurm={"extra": {"gres": "gpu:a100:4"}})
    assert "--gres=gpu:a100:4" in directives(job)
    assert not any(line.startswith("--gpus-per-node") for line in directives(job))


@pytest.mark.parametrize(
    ("gpus", "said"),
    [(None, "launch.gpus is not said"), ([0, 1], "launch.gpus: 2"), (["GPU-1"], "for Slurm to say")],
)
def test_gpus_must_be_a_count(gpus: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        job_machine(make_recipe("sft", launch={"gpus": gpus}))


def test_the_job_reads_a_copy_of_the_recipe(tmp_path: Path) -> None:
    job = job_of(slurm={"time": "60"})
    (tmp_path / "recipe.yaml").write_text(job.files[RECIPE_FILE])
    loaded = load_recipe(tmp_path / "recipe.yaml").require()
    original = make_recipe("sft", launch=CPUS | {"slurm": {"time": "60"}}, training={"max_steps": 10})
    assert loaded == original.model_copy(update={"output_dir": str(RUN)})


def test_secrets_stay_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The submitted environment has them (--export=ALL); no file of the job does."""
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretverysecret")
    path = tmp_path / "r.yaml"
    path.write_text(
        "method: sft\nmodel: {path: builtin:tiny}\ndata: {train: [{path: builtin:arithmetic-messages}]}\n"
        "training: {max_steps: 1}\nlaunch: {device: cpu, env: {MY_TOKEN: '${oc.env:HF_TOKEN}'}}\n"
    )
    recipe = load_recipe(path).require()
    plan = build_plan(recipe, job_machine(recipe), output_dir=RUN).plan
    assert plan
    job = plan_job(plan, recipe, PROGRAM)
    assert "verysecret" not in "".join(job.files.values())
    assert "MY_TOKEN: ${oc.env:HF_TOKEN}" in job.files[RECIPE_FILE]
    assert "--export=ALL" in directives(job)


def test_a_named_checkpoint_is_for_the_first_start_only() -> None:
    script = job_of(resume_from="/old/it's/checkpoint-5").script
    chosen = script[script.index("resume=(") : script.index("\n", script.index("resume=(--resume-from"))]

    def chosen_at(restart: str) -> str:
        text = f"{chosen}\nprintf '%s|' \"${{resume[@]}}\""
        return subprocess.check_output(["bash", "-c", text], text=True, env={"SLURM_RESTART_COUNT": restart})

    assert chosen_at("0") == "--resume-from|/old/it's/checkpoint-5|"
    assert chosen_at("1") == "--resume|"


def test_nothing_of_this_machine_is_in_the_script() -> None:
    text = "".join(job().script for job in JOBS.values())
    assert str(Path(__file__).parents[3]) not in text
    assert sys.prefix not in text


# --- what is wrong with launch.slurm ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:00", 60),
        ("90:30", 5430),
        ("24:00:00", 86400),
        ("2-00", 172800),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
        ("0", float("inf")),
        ("INFINITE", float("inf")),
        ("UNLIMITED", float("inf")),
        ("", None),
        ("1h", None),
        ("1:2:3:4", None),
        ("-1", None),
        ("1 day", None),
        ("1.5", None),
        ("2-", None),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str, seconds: float | None) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(60, "1 minute"), (131415, "1 day 12 hours 30 minutes 15 seconds"), (float("inf"), "no limit"), (0, "no time")],
)
def test_times_are_spelt_out(seconds: float, words: str) -> None:
    assert spell(seconds) == words


def test_the_classic_mistakes_with_times() -> None:
    assert looks_like_hours("12:00")
    assert not looks_like_hours("12:00:00")
    assert not looks_like_hours("600:00")
    (problem,) = problems_of(time="1:00")
    assert "1:00 is 1 minute to Slurm" in problem
    assert "for hours write them first (1:00:00)" in problem
    (note,) = job_of(slurm={"time": "12:00"}).notes
    assert note == "launch.slurm.time: 12:00 is 12 minutes to Slurm; hours are written 12:00:00"
    assert job_of(slurm={"time": "12:00:00"}).notes == ()


@pytest.mark.parametrize(
    ("slurm", "said"),
    [
        ({"time": "one day"}, "is no time that Slurm reads; write minutes (90)"),
        ({"time": "6"}, "6 is 6 minutes to Slurm, and the warning comes 300 to 360 seconds before its end"),
        ({"time": "2:00:00", "signal_seconds": 7200}, "lower launch.slurm.signal_seconds"),
        ({"partition": "a\nb"}, "launch.slurm.partition: 'a\\nb' is no name"),
        ({"account": " "}, "launch.slurm.account: ' ' is no name"),
        ({"modules": ["gcc", ""]}, "launch.slurm.modules: '' is no name of a module"),
        ({"container_mounts": ["/data"]}, "container_mounts is given, and no container"),
        ({"container": "x", "container_mounts": ["data"]}, "'data' is not absolute"),
        ({"container": "x", "container_mounts": ["/a,/b"]}, "write one folder an entry"),
        ({"extra": {"nodes": 2}}, "--nodes is said elsewhere; see launch.nodes"),
        ({"extra": {"cpus_per_task": 2}}, "see launch.slurm.cpus_per_task"),
        ({"extra": {"output": "x"}}, "--output is ptcli's own; leave it out: the log is the run directory's"),
        ({"extra": {"array": "1-8"}}, "--array is ptcli's own"),
        ({"extra": {"--mem": 0}}, "'--mem' is no option of sbatch; write its long name without dashes"),
        ({"extra": {"p": "gpu"}}, "'p' is no option of sbatch"),
        ({"extra": {"mem": {"a": 1}}}, "the value of mem is neither text"),
        ({"extra": {"comment": "a\nb"}}, "the value of comment"),
    ],
)
def test_refused(slurm: dict[str, Any], said: str) -> None:
    (problem,) = problems_of(**slurm)
    assert said in problem


@pytest.mark.parametrize(
    "slurm",
    [
        EVERYTHING,
        {"time": "7"},
        {"time": "1", "signal_seconds": 0},
        {"time": "UNLIMITED"},
        {"extra": {"mail_type": "END", "begin": "now+1hour", "exclusive": False, "job-name": "mine"}},
    ],
)
def test_accepted(slurm: dict[str, Any]) -> None:
    assert problems_of(**slurm) == []
    assert dataclasses.is_dataclass(job_of(slurm=slurm))


def test_a_recipe_with_a_wrong_job_is_refused_wherever_it_runs() -> None:
    recipe = make_recipe("sft", launch=CPUS | {"slurm": {"time": "x"}})
    planned = build_plan(recipe, job_machine(recipe), output_dir=RUN)
    assert [problem.key for problem in planned.problems] == [("launch", "slurm", "time")]


def test_a_run_directory_that_sbatch_cannot_be_told() -> None:
    assert list(place_problems(Path("/a b'c#%d"))) == []
    assert len(list(place_problems(Path("/a\\b")))) == 1
    assert len(list(place_problems(Path("/a\nb")))) == 1


def test_a_job_says_what_it_asks_for() -> None:
    assert describe_job(job_of(launch=GPUS)) == "2 nodes with 4 GPUs each"
    assert describe_job(job_of(launch={"gpus": 1})) == "1 node with 1 GPU"
    assert describe_job(job_of()) == "2 nodes with 1 CPU core each"
    assert log_file(RUN, 12) == RUN / "logs/slurm-12.out"


# --- what a cluster has ----------------------------------------------------------------------------------------------

SINFO = """\
cpu*|(null)|2-00:00:00|10|64
gpu|gpu:a100:8(S:0-1)|1-00:00:00|4|96
gpu|gpu:a100:4|1-00:00:00|2|48+
debug|(null)|30:00|1|n/a
nonsense
"""


def test_partitions_are_read() -> None:
    cpu, gpu, debug = read_partitions(SINFO)
    assert (cpu.name, cpu.default, cpu.gpus, cpu.seconds, cpu.nodes, cpu.cpus) == ("cpu", True, False, 172800, 10, 64)
    assert (gpu.name, gpu.default, gpu.gpus, gpu.seconds, gpu.nodes, gpu.cpus) == ("gpu", False, True, 86400, 6, 96)
    assert (debug.seconds, debug.cpus) == (1800, 0)


def recipe_in(launch: dict[str, Any], **slurm: Any) -> Job:
    return job_of(launch=launch, slurm=slurm)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (recipe_in(CPUS), []),
        (recipe_in(GPUS, partition="gpu"), []),
        (recipe_in(GPUS, partition="debug,gpu", time="1-00"), []),
        (recipe_in(GPUS, partition="gup"), ["no partition 'gup' on this cluster; did you mean gpu?"]),
        (recipe_in(CPUS, partition="xyz"), ["there are cpu, gpu, debug"]),
        (recipe_in(GPUS), ["no node of cpu has any that Slurm knows of"]),
        (recipe_in({"device": "cpu", "nodes": 11}), ["needs 11 nodes, and cpu has 10"]),
        (recipe_in({"gpus": 8}, partition="gpu", cpus_per_task=97), ["needs 97 cores on a node"]),
        (recipe_in(CPUS, time="3-00"), ["asks for 3 days, and cpu allows 2 days"]),
        (recipe_in(CPUS, time="UNLIMITED"), ["asks for no limit"]),
        (recipe_in(CPUS, partition="debug", time="1:00:00"), ["needs 2 nodes", "allows 30 minutes"]),
    ],
)
def test_what_a_cluster_cannot_give(job: Job, said: list[str]) -> None:
    found = [str(problem) for problem in cluster_problems(read_partitions(SINFO), job)]
    assert len(found) == len(said)
    assert all(text in problem for text, problem in zip(said, found, strict=True))


def test_a_cluster_that_tells_nothing_is_not_in_the_way() -> None:
    assert cluster_problems(read_partitions(""), job_of(launch=GPUS)) == []
    assert cluster_problems(read_partitions("cpu|(null)|1:00|1|1\n"), job_of(launch=GPUS)) == []  # no default


def test_recipes_of_all_places(tmp_path: Path) -> None:
    """`extra` and the rest come from YAML with the types that YAML gives them."""
    (tmp_path / "r.yaml").write_text(
        "method: sft\nmodel: {path: builtin:tiny}\ndata: {train: [{path: builtin:arithmetic-messages}]}\n"
        "launch: {device: cpu, slurm: {time: 24:00:00, container: ./image.sqsh, extra: {mem: 0, mail-type: END}}}\n"
    )
    recipe: Recipe = load_recipe(tmp_path / "r.yaml").require()
    slurm = recipe.launch.slurm
    assert (slurm.time, slurm.extra) == ("24:00:00", {"mem": 0, "mail-type": "END"})
    assert slurm.container == str(tmp_path / "image.sqsh")
