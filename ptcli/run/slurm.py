"""Submitting the job of a plan: the cluster is asked, the files are written, `sbatch` is called once."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.errors import Problem, RequestError, WorkError
from ptcli.plan.partitions import FORMAT, cluster_problems, read_partitions
from ptcli.plan.slurm import RECIPE_FILE, SCRIPT_FILE, Job, describe_job, log_file

if TYPE_CHECKING:
    from ptcli.recipe.loading import SourceMap
    from ptcli.run.rundir import RunDirectory

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


def check_cluster(job: Job, sources: SourceMap, answers: Answers | None = None) -> None:
    """Look for what keeps a job from ever starting.

    Raises:
        RequestError: there is no Slurm here, or the cluster cannot give what the job asks for.
    """
    answers = answers or run_program
    if answers is run_program and shutil.which("sbatch") is None:
        fix = "submit from a login node of the cluster, or see the script with --dry-run"
        raise RequestError(Problem("sbatch is not on this machine, so nothing can be submitted from here", fix))
    problems = cluster_problems(read_partitions(_ask(answers, "sinfo", "--noheader", f"--format={FORMAT}")), job)
    if job.spec.container and "--container-image" not in _ask(answers, "srun", "--help"):
        message = "launch.slurm.container needs Slurm's plugin pyxis, and srun here has no --container-image"
        problems.append(Problem(message, "leave it out, or have it installed", ("launch", "slurm", "container")))
    if problems:
        raise RequestError([sources.locate(problem) for problem in problems])


def check_no_job(output_dir: Path, answers: Answers | None = None) -> None:
    """Raise RequestError while an earlier job of this run directory waits or runs."""
    number = _earlier_job(output_dir)
    if number is None:
        return
    state = _ask(answers or run_program, "squeue", "--noheader", f"--job={number}", "--format=%T").strip()
    if state in _ALIVE:
        message = f"job {number} of {output_dir} is {state.lower()}"
        raise RequestError(Problem(message, f"wait for it, or end it: scancel {number}", ("output_dir",)))


def submit(
    job: Job, rundir: RunDirectory, *, overwrite: bool, resume: bool, answers: Answers | None = None
) -> Submitted:
    """Write the job's files into the run directory and submit it.

    Raises:
        RequestError: the run directory holds another run, is in use, or cannot be written.
        WorkError: sbatch refused; the directory is then as it was.
    """
    with rundir.reserve(job.files, overwrite=overwrite, resume=resume) as reserved:
        try:
            number = _sbatch(job, answers or (lambda argv: run_program(argv, submission_environment(os.environ, job))))
        except WorkError:
            reserved.withdraw(job.files)
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
