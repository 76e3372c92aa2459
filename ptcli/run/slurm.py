"""Submitting the job of a plan: the cluster is asked, the files are written, `sbatch` is called once."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.errors import Problem, RequestError, WorkError
from ptcli.plan.partitions import FORMAT, cluster_problems, read_partitions
from ptcli.plan.slurm import RECIPE_FILE, SCRIPT_FILE, Job, describe_job, log_file
from ptcli.run.datacheck import check_data
from ptcli.run.rundir import RunDirectory

if TYPE_CHECKING:
    from ptcli.recipe.loading import SourceMap
    from ptcli.request import Accepted
    from ptcli.run.panel import View

ANSWER_SECONDS = 60.0
"""How long a program of Slurm's may take."""
JOB_FILE = "slurm/job.json"
_ALIVE = frozenset(("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD"))
_KEPT = frozenset(("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS"))
_OTHER_VARIABLES = {"time": "SBATCH_TIMELIMIT"}
"""Variables of sbatch that are not named like their option."""

Answers = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
"""Runs a program of Slurm's. Raises OSError or SubprocessError."""


@dataclass(frozen=True)
class Submitted:
    """A job that waits or runs."""

    job: int
    output_dir: Path
    what: str
    """`2 nodes with 8 GPUs each`."""

    @property
    def log(self) -> Path:
        return log_file(self.output_dir, self.job)

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "job": self.job,
            "output_dir": str(self.output_dir),
            "script": str(self.output_dir / SCRIPT_FILE),
            "recipe": str(self.output_dir / RECIPE_FILE),
            "log": str(self.log),
        }


def submitted_lines(submitted: Submitted) -> list[str]:
    """What to say of a job that was submitted."""
    number = submitted.job
    return [
        f"job {number} is queued: {submitted.what}",
        f"its log      {submitted.log} (ptcli's own are beside it)",
        f"follow it    squeue --job {number}; tail -F {shlex.quote(str(submitted.log))}",
        f"end it       scancel {number}",
        f"save first   scancel --batch --signal=TERM {number}",
    ]


def check_cluster(job: Job, sources: SourceMap, answers: Answers) -> None:
    """Look for what keeps a job from ever starting.

    Raises:
        RequestError: there is no Slurm here, or the cluster cannot give what the job asks for.
    """
    if shutil.which("sbatch") is None:
        fix = "submit from a login node of the cluster, or see the script with --dry-run"
        raise RequestError(Problem("sbatch is not on this machine, so nothing can be submitted from here", fix))
    problems = cluster_problems(read_partitions(_ask(answers, "sinfo", "--noheader", f"--format={FORMAT}")), job)
    if job.spec.container and "--container-image" not in _ask(answers, "srun", "--help"):
        message = "launch.slurm.container needs Slurm's plugin pyxis, and srun here has no --container-image"
        problems.append(Problem(message, "leave it out, or have it installed", ("launch", "slurm", "container")))
    if problems:
        raise RequestError([sources.locate(problem) for problem in problems])


def check_no_job(output_dir: Path, answers: Answers) -> None:
    """Raise RequestError while an earlier job of this run directory waits or runs."""
    number = _earlier_job(output_dir)
    if number is None:
        return
    state = _ask(answers, "squeue", "--noheader", f"--job={number}", "--format=%T").strip()
    if state in _ALIVE:
        message = f"job {number} of {output_dir} is {state.lower()}"
        raise RequestError(Problem(message, f"wait for it, or end it: scancel {number}", ("output_dir",)))


def submit(accepted: Accepted, *, overwrite: bool = False, view: View, answers: Answers | None = None) -> Submitted:
    """Check what can be checked before a job waits for hours, and submit it.

    Raises:
        RequestError: no Slurm here, a job that cannot start there, or a run directory that is not free.
        WorkError: the data have errors, or sbatch refused; the run directory is then free again.
    """
    job, rundir, resume = accepted.job, RunDirectory(accepted.plan.output_dir), accepted.resumes
    assert job is not None, "only a request with `launcher: slurm` is submitted"
    answers = answers or partial(run_program, environ=submission_environment(os.environ, job))
    check_cluster(job, accepted.sources, answers)
    check_no_job(job.output_dir, answers)
    rundir.check(overwrite=overwrite, resume=resume)
    check_data(accepted.plan, accepted.sources, view=view)
    view.close()
    with rundir.reserve(job.files, overwrite=overwrite, resume=resume):
        try:
            number = _sbatch(job, answers)
        except WorkError:
            rundir.withdraw(job.files)
            raise
        rundir.write(JOB_FILE, json.dumps({"job": number}) + "\n")
    return Submitted(number, job.output_dir, describe_job(job))


def submission_environment(environ: Mapping[str, str], job: Job) -> dict[str, str]:
    """The caller's environment, which the job gets, tokens and all, without what would speak for the script.

    sbatch prefers its variables (SBATCH_PARTITION) to the script's lines, and where ptcli itself runs in a job, that
    one's variables (SLURM_CPUS_PER_TASK, SLURM_MEM_PER_CPU) would be srun's defaults in the new one.
    """
    spoken = {_OTHER_VARIABLES.get(name, f"SBATCH_{name.upper().replace('-', '_')}") for name in job.options}
    spoken |= {"SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"}
    return {
        name: value
        for name, value in environ.items()
        if name not in spoken and (name in _KEPT or not name.startswith("SLURM_"))
    }


def run_program(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of Slurm's to its end."""
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=environ
    )


def _ask(answers: Answers, *argv: str) -> str:
    """What a program says; nothing when it fails: what cannot be asked is not checked."""
    try:
        done = answers(argv)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _sbatch(job: Job, answers: Answers) -> int:
    script = job.output_dir / SCRIPT_FILE
    try:
        done = answers(("sbatch", "--parsable", str(script)))
    except (OSError, subprocess.SubprocessError) as error:
        raise WorkError(f"sbatch did not answer: {error}") from error
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number.isdigit():
        raise WorkError("\n".join(["the job was not accepted:", *_complaints(done.stderr or done.stdout)]))
    return int(number)


def _complaints(text: str) -> Iterable[str]:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines() if line.strip()]
    return lines or ["sbatch says nothing more"]


def _earlier_job(output_dir: Path) -> int | None:
    try:
        number = json.loads((output_dir / JOB_FILE).read_text(encoding="utf-8"))["job"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return number if isinstance(number, int) else None
