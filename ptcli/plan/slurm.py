"""The job of `ptcli train --launcher slurm`: one batch script, written from a plan.

The script starts one ptcli on each node, and each is the same `ptcli train` that a person would run there. What it adds
is what only Slurm knows: the nodes, the warning before the time is up, and the queue.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.methods import METHODS
from ptcli.plan.gpus import asked
from ptcli.plan.layout import server_size, serves_apart, uses_server
from ptcli.plan.machine import PREFERRED_PORTS
from ptcli.plan.model import GPU, Machine, Place, Plan
from ptcli.plan.nodes import DEFAULT_PORT, count_nodes
from ptcli.plan.resolve import change
from ptcli.plan.slurm_time import FORMATS, looks_like_hours, parse_time, spell
from ptcli.recipe.loading import dump_recipe
from ptcli.recipe.model import Recipe, SlurmSpec

SCRIPT_FILE = "slurm/job.sh"
RECIPE_FILE = "slurm/recipe.yaml"
PROCESS_FILE = "slurm/pid"
LOG_PATTERN = "logs/slurm-%j.out"
"""`%j` is the job's number."""

CPUS_PER_GPU = 4
"""Fewer than nearly every GPU node has. Slurm's own default is one core for the whole node."""
LATENESS = 60
"""Seconds by which Slurm's warning may come too early (sbatch(1), --signal)."""

_SECTION: KeyPath = ("launch", "slurm")
_SAID_ELSEWHERE = {
    "nodes": "launch.nodes",
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "launch.nodes: there is one task, ptcli, on each"),
    **{name: f"launch.slurm.{name}" for name in ("account", "partition", "time", "qos", "constraint", "requeue")},
    "no-requeue": "launch.slurm.requeue",
    "cpus-per-task": "launch.slurm.cpus_per_task",
    "signal": "launch.slurm.signal_seconds",
    "export": "launch.env: the job has the environment that it was submitted from",
}
_REFUSED = {
    **dict.fromkeys(("output", "open-mode"), "the log is the run directory's"),
    **dict.fromkeys(("array", "wrap", "parsable", "test-only", "wait"), "ptcli submits one job and returns"),
}
_GPU_OPTIONS = frozenset({"gpus-per-node", "gres", "gpus", "gpus-per-task"})
"""Other ways to ask for the GPUs (their type, an old cluster): each takes the place of ours."""


@dataclass(frozen=True)
class Job:
    """A job that could be submitted."""

    nodes: int
    gpus: int
    """GPUs of each node."""
    cpus: int
    """CPU cores of each node."""
    output_dir: Path
    files: Mapping[str, str]
    """What is written before it is submitted: path relative to `output_dir` to text."""
    spec: SlurmSpec
    notes: tuple[str, ...] = field(default=())

    @property
    def script(self) -> str:
        return self.files[SCRIPT_FILE]

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options of sbatch that the script gives."""
        return tuple(re.findall(r"^#SBATCH --([a-z-]+)", self.script, re.MULTILINE))


def slurm_problems(recipe: Recipe) -> list[Problem]:
    """What is wrong with `launch.slurm`, as far as the recipe alone tells."""
    spec = recipe.launch.slurm
    return [*_time_problems(spec), *_text_problems(spec), *_container_problems(spec), *_extra_problems(spec)]


def job_machine(recipe: Recipe) -> Machine:
    """The nodes that a job gets: what the recipe asks for, since a login node has no GPU to count.

    Raises:
        RequestError: where the recipe leaves that open.
    """
    if recipe.launch.device == "cpu":
        return Machine((), recipe.launch.processes or 1, nodes=count_nodes(recipe), free_ports=PREFERRED_PORTS)
    sides = {"launch": recipe.launch.gpus}
    if uses_server(recipe) and recipe.rollouts.url is None:
        sides["rollouts"] = recipe.rollouts.gpus or server_size(recipe)
    problems = [_not_a_count(section, gpus) for section, gpus in sides.items() if not isinstance(gpus, int)]
    if problems:
        raise RequestError(problems)
    together = max if serves_apart(recipe) else sum
    count = together([asked(gpus) or 0 for gpus in sides.values()])
    gpus = tuple(GPU(token=str(index)) for index in range(count))
    return Machine(gpus, nodes=count_nodes(recipe), free_ports=PREFERRED_PORTS, assumed=True)


def placed_by_slurm(recipe: Recipe, machine: Machine) -> tuple[Recipe, Machine]:
    """Recipe and machine with names for the addresses that are known once the job has its nodes."""
    if count_nodes(recipe) > 1:
        machine = replace(machine, place=Place(0, "node-0", DEFAULT_PORT))
    if _finds_server(recipe):
        recipe = change(recipe, rollouts=change(recipe.rollouts, host=f"node-{recipe.launch.nodes}"))
    return recipe, machine


def plan_job(plan: Plan, recipe: Recipe, program: str, *, resume_from: str | None = None) -> Job:
    """The job that runs a plan.

    `recipe` is the recipe as it was loaded, overrides and all: the job reads this copy, so that a later edit of the
    file changes no job that waits or is queued again. `program` is the ptcli that the nodes run.
    """
    spec = recipe.launch.slurm
    used = [
        len({token for step in plan.steps if step.node == node for token in step.gpus}) for node in range(plan.nodes)
    ]
    gpus = max(used)
    processes = int(plan.batch["world_size"]) // (plan.nodes - serves_apart(plan.recipe))
    cpus = spec.cpus_per_task or CPUS_PER_GPU * gpus or processes
    named = recipe.model_copy(update={"output_dir": str(plan.output_dir)})
    script = _script(plan, recipe, "ptcli" if spec.container else program, gpus, cpus, resume_from)
    files = {RECIPE_FILE: dump_recipe(named), SCRIPT_FILE: script}
    return Job(plan.nodes, gpus, cpus, plan.output_dir, files, spec, tuple(_notes(spec, used)))


def describe_job(job: Job) -> str:
    """`2 nodes with 8 GPUs each`."""
    nodes = f"{job.nodes} node{'' if job.nodes == 1 else 's'}"
    each = " each" if job.nodes > 1 else ""
    if job.gpus:
        return f"{nodes} with {job.gpus} GPU{'' if job.gpus == 1 else 's'}{each}"
    return f"{nodes} with {job.cpus} CPU core{'' if job.cpus == 1 else 's'}{each}"


def place_problems(output_dir: Path) -> Iterator[Problem]:
    """What is wrong with a run directory that sbatch has to be told of: a backslash ends the meaning of `%j`."""
    if "\\" in str(output_dir) or not str(output_dir).isprintable():
        message = f"Slurm cannot write a log into {str(output_dir)!r}"
        yield Problem(message, "choose an output_dir without backslashes and control characters", ("output_dir",))


def log_file(output_dir: Path, job: int | str) -> Path:
    """Where a job writes what it says."""
    return output_dir / LOG_PATTERN.replace("%j", str(job))


# --- what can be wrong -----------------------------------------------------------------------------------------------


def _time_problems(spec: SlurmSpec) -> Iterator[Problem]:
    if spec.time is None:
        return
    key = (*_SECTION, "time")
    seconds = parse_time(spec.time)
    if seconds is None:
        yield Problem(f"launch.slurm.time: {spec.time!r} is no time that Slurm reads", FORMATS, key)
    elif spec.signal_seconds and seconds <= spec.signal_seconds + LATENESS:
        early = f"the warning comes {spec.signal_seconds} to {spec.signal_seconds + LATENESS} seconds before its end"
        message = f"launch.slurm.time: {spec.time} is {spec_time(spec)} to Slurm, and {early}"
        fix = f"for hours write them first ({_in_hours(spec.time)})" if looks_like_hours(spec.time) else "give it more"
        yield Problem(message, f"{fix}, or lower launch.slurm.signal_seconds", key)


def spec_time(spec: SlurmSpec) -> str:
    """The time limit in words."""
    return spell(parse_time(spec.time or "0") or 0)


def _in_hours(time: str) -> str:
    return f"{time}:00"


def _text_problems(spec: SlurmSpec) -> Iterator[Problem]:
    """What no line of a script can say. `sbatch` reads its own lines up to their end, whatever stands in quotes."""
    for name in ("account", "partition", "qos", "constraint", "container"):
        value = getattr(spec, name)
        if value is not None and (not value.strip() or not value.isprintable()):
            yield Problem(f"launch.slurm.{name}: {value!r} is no name", "leave it out, or name one", (*_SECTION, name))
    for index, module in enumerate(spec.modules):
        if not module.strip() or not module.isprintable():
            key = (*_SECTION, "modules", index)
            yield Problem(f"launch.slurm.modules: {module!r} is no name of a module", "leave it out", key)


def _container_problems(spec: SlurmSpec) -> Iterator[Problem]:
    if spec.container_mounts and spec.container is None:
        message = "launch.slurm.container_mounts is given, and no container"
        yield Problem(message, "say launch.slurm.container, or leave it out", (*_SECTION, "container_mounts"))
    for index, mount in enumerate(spec.container_mounts):
        key = (*_SECTION, "container_mounts", index)
        if not mount.startswith("/"):
            yield Problem(
                f"launch.slurm.container_mounts: {mount!r} is not absolute", "write /FOLDER or /FROM:/TO", key
            )
        elif "," in mount or not mount.isprintable():
            message = f"launch.slurm.container_mounts: {mount!r} cannot be written into a list of mounts"
            yield Problem(message, "write one folder an entry", key)


def _extra_problems(spec: SlurmSpec) -> Iterator[Problem]:
    for name, value in spec.extra.items():
        key, option = (*_SECTION, "extra", name), _option(name)
        if option in _SAID_ELSEWHERE:
            yield Problem(f"launch.slurm.extra: --{option} is said elsewhere", f"see {_SAID_ELSEWHERE[option]}", key)
        elif option in _REFUSED:
            yield Problem(f"launch.slurm.extra: --{option} is ptcli's own", f"leave it out: {_REFUSED[option]}", key)
        elif not re.fullmatch(r"[a-z][a-z-]+", option):
            message = f"launch.slurm.extra: {name!r} is no option of sbatch"
            yield Problem(message, "write its long name without dashes, as mem or mail-type", key)
        elif not _is_value(value):
            message = f"launch.slurm.extra: the value of {name} is neither text, a number, true nor a list of those"
            yield Problem(message, "write one of them", key)


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str | int) and _is_value(each) for each in value)
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and value.isprintable())


def _not_a_count(section: str, gpus: Any) -> Problem:
    key = (section, "gpus")
    if gpus is None:
        message = "launch.gpus is not said, and a job must say how many GPUs it wants on each node"
        return Problem(message, "say launch.gpus: 8, or launch.device: cpu", key)
    message = f"{section}.gpus names GPUs, and which ones a job gets is for Slurm to say"
    return Problem(message, f"give a count, as {section}.gpus: {len(gpus) or 8}", key)


def _notes(spec: SlurmSpec, used: Sequence[int]) -> Iterator[str]:
    idle = sum(max(used) - count for count in used)
    if idle:
        each = f"all nodes of a job are alike, with {max(used)} GPUs"
        yield f"{each}, and {idle} of the {len(used) * max(used)} stay idle (nodes use {', '.join(map(str, used))})"
    if spec.time is not None and looks_like_hours(spec.time):
        yield f"launch.slurm.time: {spec.time} is {spec_time(spec)} to Slurm; hours are written {_in_hours(spec.time)}"
    if spec.requeue and not spec.signal_seconds:
        yield "launch.slurm.signal_seconds is 0: when its time is up, the job ends without a checkpoint"
    if spec.container:
        yield "models, data and code are read inside the container: launch.slurm.container_mounts must show them there"


# --- the script ------------------------------------------------------------------------------------------------------

_HEADER = """#!/bin/bash
# Written by `ptcli train --launcher slurm`: {title}.
# The recipe beside this file is what was submitted; the job goes on from the run's last checkpoint where there is one.
"""

_MODULES = """
command -v module >/dev/null || . /etc/profile
module load {modules} || exit 1
"""

_BODY = """
set -euo pipefail

run={run}

newest_checkpoint() {{
  find "$run" -maxdepth 1 -name 'checkpoint-[0-9]*' | sed 's/.*-//' | sort -n | tail -n 1
}}

# Slurm tells this shell alone (--signal=B:), and it tells ptcli on this node, which has the trainers save. Sent to the
# job's steps, the same signal would reach every process of theirs and end the trainers before they could.
told=
tell() {{
  told+="$1 "
  kill -s "$1" "$(cat "$run/{process}" 2>/dev/null)" 2>/dev/null || true
}}
trap 'tell USR1' USR1
trap 'tell TERM' TERM

rm -f "$run/{process}"
began_with=$(newest_checkpoint)
{resume}{master}
srun {srun} bash -c '
  [ "$SLURM_NODEID" != 0 ] || echo "$$" > "$0/{process}"
  exec "$@"{rank}
' "$run" {program} train "$run/{recipe}"{host} "${{resume[@]}}" &
step=$! seen= code=0
wait "$step" || code=$?
while [ "$seen" != "$told" ]; do  # a signal ends a wait, and the step goes on
  seen=$told code=0
  wait "$step" || code=$?
done

ended_with=$(newest_checkpoint)
case "$code $told" in
"0 "*) exit 0 ;;
*USR1*) ;;
*) exit "$code" ;;
esac
if ! grep -q '"state": "stopped"' "$run/status.json"; then
  exit "$code"
elif [ "$began_with" = "$ended_with" ]; then
  echo "ptcli: no checkpoint was saved before the time was up; raise launch.slurm.time or signal_seconds"
  exit "$code"
fi
"""

_REQUEUE = """echo "ptcli: the time was up at checkpoint $ended_with; the job is queued again and goes on from there"
trap '' TERM
scontrol requeue "$SLURM_JOB_ID" || echo {refused}
exit "$code"
"""

_LEAVE = """echo "ptcli: the time was up at checkpoint $ended_with; to go on from there:"
echo {command}
exit "$code"
"""

_MASTER = """
export MASTER_ADDR=${PTCLI_MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
"""

_ROLLOUTS = """export ROLLOUTS_ADDR=${PTCLI_ROLLOUTS_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)}
"""

_RESUME_FROM = """resume=(--resume)
if [ "${{SLURM_RESTART_COUNT:-0}}" = 0 ]; then resume=(--resume-from {path}); fi
"""


def _script(plan: Plan, recipe: Recipe, program: str, gpus: int, cpus: int, resume_from: str | None) -> str:
    several, spec = plan.nodes > 1, recipe.launch.slurm
    folder = plan.output_dir
    title = f"{METHODS[plan.method].title} of {plan.recipe.model.path}".replace("\n", " ")
    checkpoint = shlex.quote(str(Path(resume_from).expanduser().absolute())) if resume_from else ""
    resume = _RESUME_FROM.format(path=checkpoint) if resume_from else "resume=(--resume)\n"
    rank = ' --node-rank "$SLURM_NODEID" --master "$MASTER_ADDR:$MASTER_PORT"' if several else ""
    body = _BODY.format(
        run=shlex.quote(str(folder)),
        process=PROCESS_FILE,
        recipe=RECIPE_FILE,
        resume=resume,
        master=(_MASTER if several else "") + (_ROLLOUTS if _finds_server(recipe) else ""),
        host=' "rollouts.host=$ROLLOUTS_ADDR"' if _finds_server(recipe) else "",
        srun=_srun(spec, folder),
        rank=rank,
        program=shlex.quote(program),
    )
    directives = "".join(_directives(_options(plan, spec, gpus, cpus)))
    modules = _MODULES.format(modules=shlex.join(spec.modules)) if spec.modules else ""
    return f"{_HEADER.format(title=title)}{directives}{modules}{body}{_end(spec, folder)}"


def _end(spec: SlurmSpec, folder: Path) -> str:
    command = f"ptcli train {shlex.quote(str(folder / RECIPE_FILE))} --launcher slurm --resume"
    if spec.requeue:
        return _REQUEUE.format(refused=shlex.quote(f"ptcli: Slurm refused to; to go on from there: {command}"))
    return _LEAVE.format(command=shlex.quote(f"  {command}"))


def _srun(spec: SlurmSpec, folder: Path) -> str:
    """`--mpi=none`: PMI's variables would look to accelerate like a launcher's. The cores of a task are no longer
    inherited from the job (Slurm 22.05)."""
    words = ["--kill-on-bad-exit=1", "--label", "--mpi=none", '--cpus-per-task="$SLURM_CPUS_PER_TASK"']
    if spec.container:
        mounts = ",".join(dict.fromkeys([f"{folder}:{folder}", *spec.container_mounts]))
        words += [f"--container-image={shlex.quote(spec.container)}", f"--container-mounts={shlex.quote(mounts)}"]
    return " ".join(words)


def _options(plan: Plan, spec: SlurmSpec, gpus: int, cpus: int) -> Iterator[tuple[str, str | None]]:
    extra = {_option(name): value for name, value in spec.extra.items() if value is not None and value is not False}
    if "job-name" not in extra:
        yield "job-name", "".join(filter(str.isprintable, plan.recipe.name))
    yield "nodes", str(plan.nodes)
    yield "ntasks-per-node", "1"
    yield "cpus-per-task", str(cpus)
    if gpus and not _GPU_OPTIONS & extra.keys():
        yield "gpus-per-node", str(gpus)
    for name in ("account", "partition", "qos", "constraint", "time"):
        if (value := getattr(spec, name)) is not None:
            yield name, value
    if spec.signal_seconds:
        yield "signal", f"B:USR1@{spec.signal_seconds}"
    yield ("requeue" if spec.requeue else "no-requeue"), None
    yield "open-mode", "append"
    yield "output", f"{str(plan.output_dir).replace('%', '%%')}/{LOG_PATTERN}"
    yield "export", "ALL"
    for name, value in extra.items():
        yield name, None if value is True else ",".join(map(str, value if isinstance(value, list) else [value]))


def _directives(options: Iterable[tuple[str, str | None]]) -> Iterator[str]:
    for name, value in options:
        yield f"#SBATCH --{name}\n" if value is None else f"#SBATCH --{name}={shlex.quote(value)}\n"


def _option(name: str) -> str:
    return name.replace("_", "-")


def _finds_server(recipe: Recipe) -> bool:
    """Whether the server has the last node, whatever its address is."""
    return bool(serves_apart(recipe)) and "host" not in recipe.rollouts.model_fields_set
