"""A job's script in a real bash with a stand-in for srun, and what is asked of Slurm before and at a submission."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import RequestError, WorkError
from ptcli.plan.build import build_plan
from ptcli.plan.slurm import Job, job_machine, plan_job
from ptcli.recipe.loading import SourceMap
from ptcli.request import Accepted
from ptcli.run import slurm
from ptcli.run.resume import Resumption
from ptcli.run.slurm import JOB_FILE, Submitted, check_cluster, check_no_job, submission_environment, submitted_lines
from tests.unit.plan.conftest import make_recipe

SRUN = r"""#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NODEID=0
exec "$@"
"""
PTCLI = r"""#!/bin/bash
# Does what $DOES says once it was told to stop: the exit code, the state, and whether a checkpoint was saved.
echo "$@" > "$RUN/called"
read -r code state checkpoint <<< "$DOES"
got=
trap 'got=USR1' USR1
trap 'got=TERM' TERM
touch "$RUN/ready"
while [ -z "$got" ] && [ "$state" = stopped ] || [ -n "$WAITS" ] && [ -z "$got" ]; do sleep 0.01; done
echo "$got" > "$RUN/got.part"
mv "$RUN/got.part" "$RUN/got"
while [ -e "$RUN/saving" ]; do sleep 0.01; done
[ -z "$checkpoint" ] || mkdir "$RUN/checkpoint-$checkpoint"
printf '{\n  "state": "%s",\n  "step": 1\n}' "$state" > "$RUN/status.json"
exit "$code"
"""
SCONTROL = r"""#!/bin/bash
[ "$1" = show ] && { echo n1; echo n2; } || echo "$@" >> "$RUN/scontrol"
[ ! -e "$RUN/refuse" ]
"""


class Batch:
    """A job's script, running as Slurm would run it."""

    def __init__(self, folder: Path, does: str, launch: dict[str, Any], waits: str = "", **slurm: Any):
        self.run = folder / "it's a run"
        tools = folder / "tools"
        for path, text in ((tools / "srun", SRUN), (tools / "ptcli", PTCLI), (tools / "scontrol", SCONTROL)):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        job = job_of(self.run, launch, program=str(tools / "ptcli"), **slurm)
        for name, text in job.files.items():
            (self.run / name).parent.mkdir(parents=True, exist_ok=True)
            (self.run / name).write_text(text)
        ours = {"RUN": str(self.run), "DOES": does, "WAITS": waits, "SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "1"}
        ours |= {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-2]"}
        (self.run / "checkpoint-5").mkdir()
        self.process = subprocess.Popen(
            ["bash", self.run / "slurm/job.sh"], env=os.environ | ours, stdout=subprocess.PIPE, text=True
        )

    def tell(self, *signals: signal.Signals) -> None:
        """What Slurm does with --signal=B: and scancel --batch: the shell alone is told."""
        self.wait_for("ready")
        for each in signals:
            self.process.send_signal(each)

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while not (self.run / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=30)
        return self.process.returncode, said

    def left(self, name: str) -> str | None:
        path = self.run / name
        return path.read_text().strip() if path.exists() else None


def job_of(run: Path, launch: dict[str, Any], program: str = "/opt/ptcli", **slurm: Any) -> Job:
    return accepted_of(run, launch, program, **slurm).job  # type: ignore[return-value]


def accepted_of(run: Path, launch: dict[str, Any], program: str = "/opt/ptcli", **slurm: Any) -> Accepted:
    recipe = make_recipe("sft", launch={"device": "cpu", "slurm": slurm, **launch}, training={"max_steps": 10})
    planned = build_plan(recipe, job_machine(recipe), output_dir=run)
    assert planned.plan, planned.problems
    return Accepted(planned.plan, SourceMap(), plan_job(planned.plan, recipe, program))


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., Batch]:
    return lambda does, nodes=1, **slurm: Batch(tmp_path, does, {"nodes": nodes}, **slurm)


def test_a_run_that_finishes(batch: Callable[..., Batch]) -> None:
    job = batch("0 finished 10", nodes=2, requeue=True)
    assert job.end() == (0, "")
    assert job.left("scontrol") is None
    assert job.left("called") == f"train {job.run}/slurm/recipe.yaml --resume --node-rank 0 --master n1:20077"


def test_one_node_needs_no_master(batch: Callable[..., Batch]) -> None:
    job = batch("0 finished 10")
    assert job.end() == (0, "")
    assert job.left("called") == f"train {job.run}/slurm/recipe.yaml --resume"


def test_warned_saved_and_queued_again(batch: Callable[..., Batch]) -> None:
    job = batch("143 stopped 7", nodes=2, requeue=True)
    job.tell(signal.SIGUSR1)
    code, said = job.end()
    assert code == 143
    assert "the time was up at checkpoint 7; the job is queued again" in said
    assert job.left("got") == "USR1"
    assert job.left("scontrol") == "requeue 77"


def test_a_slurm_that_does_not_queue_again(batch: Callable[..., Batch]) -> None:
    job = batch("143 stopped 7", requeue=True)
    (job.run / "refuse").touch()
    job.tell(signal.SIGUSR1)
    code, said = job.end()
    assert code == 143
    assert "Slurm refused to; to go on from there: ptcli train" in said


def test_warned_twice_is_queued_once(batch: Callable[..., Batch]) -> None:
    job = batch("143 stopped 7", requeue=True)
    (job.run / "saving").touch()
    job.tell(signal.SIGUSR1)
    job.wait_for("got")  # bash loses some of several signals that come at once, which Slurm's do not
    job.tell(signal.SIGUSR1)
    (job.run / "saving").unlink()
    code, said = job.end()
    assert code == 143, said
    assert job.left("scontrol") == "requeue 77"


def test_warned_and_not_to_be_queued_again(batch: Callable[..., Batch]) -> None:
    job = batch("143 stopped 7")
    job.tell(signal.SIGUSR1)
    code, said = job.end()
    assert code == 143
    assert said.splitlines()[0] == "ptcli: the time was up at checkpoint 7; to go on from there:"
    command = said.splitlines()[1].strip()
    words = subprocess.check_output(["bash", "-c", f"printf '%s|' {command}"], text=True).split("|")
    assert words[:-1] == ["ptcli", "train", f"{job.run}/slurm/recipe.yaml", "--launcher", "slurm", "--resume"]
    assert job.left("scontrol") is None


@pytest.mark.parametrize(
    ("does", "signals", "code", "said"),
    [
        ("1 failed", [], 1, ""),
        ("2 failed", [], 2, ""),
        ("1 failed 7", [signal.SIGUSR1], 1, ""),
        ("143 stopped 7", [signal.SIGTERM], 143, ""),  # a person, who would not want to see it again
        ("143 stopped", [signal.SIGUSR1], 143, "no checkpoint was saved"),  # else it would be queued for ever
        ("0 finished 10", [signal.SIGUSR1], 0, ""),
    ],
)
def test_never_queued_again(
    batch: Callable[..., Batch], does: str, signals: list[signal.Signals], code: int, said: str
) -> None:
    job = batch(does, requeue=True, waits="until told" if signals else "")
    job.tell(*signals)
    ended, words = job.end()
    assert ended == code
    assert said in words
    assert job.left("scontrol") is None


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    module = tmp_path / "tools/module"
    module.write_text("#!/bin/bash\nexit 1\n")
    module.chmod(0o755)
    job = Batch(tmp_path, "0 finished 1", {}, modules=["nope"])
    assert job.end()[0] == 1
    assert job.left("called") is None


# --- submitting ------------------------------------------------------------------------------------------------------


class Cluster:
    """Answers as Slurm's programs would, and remembers what it was asked."""

    def __init__(self, **answers: str | int):
        self.answers = answers
        self.asked: list[Sequence[str]] = []

    def __call__(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(argv)
        answer = self.answers.get(argv[0], "")
        if isinstance(answer, int):
            return subprocess.CompletedProcess(argv, answer, "", "sbatch: error: Invalid account\nsbatch: error: no\n")
        return subprocess.CompletedProcess(argv, 0, answer, "")


class Silent:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@pytest.fixture
def accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accepted:
    """A job that could be submitted, on a machine with sbatch and with data that are good."""
    monkeypatch.setattr(slurm, "check_data", lambda *_, **__: None)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    return accepted_of(tmp_path / "run", {"nodes": 2}, time="60")


def submit(accepted: Accepted, cluster: Cluster, **options: Any) -> Submitted:
    return slurm.submit(accepted, view=Silent(), answers=cluster, **options)


def test_a_job_is_submitted(accepted: Accepted) -> None:
    cluster = Cluster(sbatch="42;emulated\n", sinfo="debug*|(null)|infinite|2|8\n")
    submitted = submit(accepted, cluster)
    run = accepted.plan.output_dir
    assert cluster.asked[-1] == ("sbatch", "--parsable", str(run / "slurm/job.sh"))
    assert json.loads((run / "status.json").read_text())["state"] == "planned"
    assert json.loads((run / JOB_FILE).read_text()) == {"job": 42}
    assert (run / "slurm/job.sh").stat().st_mode & 0o111
    assert submitted.as_dict() == {
        "job": 42,
        "output_dir": str(run),
        "script": str(run / "slurm/job.sh"),
        "recipe": str(run / "slurm/recipe.yaml"),
        "log": str(run / "logs/slurm-42.out"),
    }
    lines = submitted_lines(submitted)
    assert lines[0] == "job 42 is queued: 2 nodes with 1 CPU core each"
    assert any("scancel 42" in line for line in lines)


def test_a_second_job_in_the_same_place(accepted: Accepted) -> None:
    submit(accepted, Cluster(sbatch="42\n"))
    with pytest.raises(RequestError, match=r"job 42 of .* is pending"):
        submit(accepted, Cluster(sbatch="43\n", squeue="PENDING\n"), overwrite=True)
    with pytest.raises(RequestError, match="holds another run"):
        submit(accepted, Cluster(sbatch="43\n"))
    assert submit(accepted, Cluster(sbatch="43\n"), overwrite=True).job == 43


def test_what_sbatch_refuses_leaves_the_place_free(accepted: Accepted) -> None:
    with pytest.raises(WorkError) as error:
        submit(accepted, Cluster(sbatch=1))
    assert str(error.value) == "the job was not accepted:\nInvalid account\nno"
    assert not (accepted.plan.output_dir / "status.json").exists()
    assert submit(accepted, Cluster(sbatch="42\n")).job == 42


def test_a_refused_continuation_changes_nothing(accepted: Accepted) -> None:
    run = accepted.plan.output_dir
    (run / "checkpoint-5").mkdir(parents=True)
    (run / "status.json").write_text('{"state": "stopped"}')
    resumed = Accepted(accepted.plan, accepted.sources, accepted.job, Resumption(accepted.plan))
    with pytest.raises(WorkError):
        submit(resumed, Cluster(sbatch=1))
    assert (run / "status.json").read_text() == '{"state": "stopped"}'
    assert (run / "checkpoint-5").is_dir()
    submit(resumed, Cluster(sbatch="42\n"))
    assert (run / "checkpoint-5").is_dir()


def test_without_slurm(accepted: Accepted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    with pytest.raises(RequestError, match="sbatch is not on this machine"):
        submit(accepted, Cluster())
    assert not accepted.plan.output_dir.exists()


def test_a_job_that_could_never_start(accepted: Accepted) -> None:
    with pytest.raises(RequestError, match="needs 2 nodes, and debug has 1"):
        submit(accepted, Cluster(sinfo="debug*|(null)|infinite|1|8\n"))
    assert not accepted.plan.output_dir.exists()


def test_a_container_needs_pyxis(tmp_path: Path, accepted: Accepted) -> None:
    job = job_of(tmp_path / "c", {}, container="image")
    with pytest.raises(RequestError, match="plugin pyxis"):
        check_cluster(job, SourceMap(), Cluster(srun="--container   Path to OCI container bundle\n"))
    check_cluster(job, SourceMap(), Cluster(srun="      --container-image=[USER@][REGISTRY#]IMAGE\n"))


def test_an_earlier_job_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    for text in ('{"job": 5}', "no JSON", "[]", '{"job": null}'):
        (tmp_path / JOB_FILE).write_text(text)
        check_no_job(tmp_path, Cluster(squeue="COMPLETED\n"))
        check_no_job(tmp_path, Cluster(squeue=1))


def test_the_environment_goes_along_but_does_not_speak_for_the_script(tmp_path: Path) -> None:
    environ = {
        "HF_TOKEN": "secret",
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_CPUS_PER_TASK": "3",  # of the job that ptcli runs in
        "SBATCH_EXPORT": "NONE",
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_PARTITION": "mine",
        "SBATCH_RESERVATION": "mine",
    }
    job = job_of(tmp_path, {}, time="60")
    left = submission_environment(environ, job)
    assert left.keys() == {"HF_TOKEN", "PATH", "SLURM_CONF", "SBATCH_PARTITION", "SBATCH_RESERVATION"}
    assert "SBATCH_PARTITION" not in submission_environment(environ, job_of(tmp_path, {}, partition="gpu"))
