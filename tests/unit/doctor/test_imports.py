"""What a child that imports leaves, and what is made of it."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest

from ptcli.doctor import probe
from ptcli.doctor.checks.imports import (
    Imported,
    Probe,
    judge_cuda,
    judge_imports,
    judge_template,
    read_result,
    targets,
)
from ptcli.doctor.needs import Needs
from ptcli.doctor.template import judge_batch

TORCH = Imported("torch", facts={"version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "gpus": 8})
VLLM = Imported("vllm", facts={"device": "cuda"})


def cuda(*imported: Imported, driver: tuple[int, int] | None = (13, 0), gpus: int = 8) -> list[tuple[str, str]]:
    return [(each.state, each.message) for each in judge_cuda(Probe(imported), driver, gpus)]


# --- the child -------------------------------------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("fine_one", "broken_one", "lazy_one", "quitter"):
        sys.modules.pop(name, None)


def run(tmp_path: Path, *targets: str) -> list[dict]:
    result = tmp_path / "result.jsonl"
    probe.main(str(result), *targets)
    return [json.loads(line) for line in result.read_text().splitlines()]


def test_each_import_is_announced_and_told(modules: Path) -> None:
    (modules / "fine_one.py").write_text("thing = 1")
    lines = run(modules, "fine_one,fine_one:thing")
    assert lines == [{"importing": "fine_one"}, {"module": "fine_one", "error": "", "facts": {}}]


def test_one_that_fails_does_not_keep_the_others(modules: Path) -> None:
    (modules / "broken_one.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    (modules / "quitter.py").write_text("raise SystemExit('no')")
    (modules / "fine_one.py").write_text("")
    errors = {
        line["module"]: line["error"] for line in run(modules, "broken_one", "quitter", "fine_one") if "module" in line
    }
    assert errors == {
        "broken_one": "ImportError: libcudart.so.13: cannot open shared object file",
        "quitter": "SystemExit: no",
        "fine_one": "",
    }


def test_the_error_told_is_the_one_that_began_it(modules: Path) -> None:
    """transformers wraps what happened behind a lazy name in an error that ends in advice."""
    (modules / "lazy_one.py").write_text(
        "def __getattr__(name):\n"
        "    try:\n        raise RuntimeError('operator torchvision::nms does not exist')\n"
        "    except RuntimeError as error:\n        raise ModuleNotFoundError('Could not import module') from error\n"
    )
    assert run(modules, "lazy_one:Model")[1]["error"] == "RuntimeError: operator torchvision::nms does not exist"


def test_what_is_imported_follows_the_needs() -> None:
    sft = targets(Needs("r.yaml", "cuda", trainer="trl:SFTTrainer", vllm=False))
    assert sft == ("torch", "transformers:PreTrainedModel", "accelerate", "peft", "trl:SFTTrainer")
    online = Needs("r.yaml", "cpu", trainer="trl:GRPOTrainer", vllm=True, packages=frozenset({"vllm", "deepspeed"}))
    vllm = "vllm,vllm.distributed.weight_transfer,vllm:LLM"
    assert targets(online)[2:] == ("deepspeed", "accelerate", "peft", vllm, "trl:GRPOTrainer")
    assert targets(Needs())[-2:] == (vllm, "trl")


# --- what it left ----------------------------------------------------------------------------------------------------


def test_a_child_that_died_is_told_with_what_it_imported() -> None:
    lines = [{"importing": "torch"}, {"module": "torch", "error": "", "facts": {}}, {"importing": "vllm"}]
    (passed, failed) = judge_imports(read_result(lines, -4, "Illegal instruction"))
    assert (passed.state, passed.message) == ("pass", "torch can be imported")
    assert (failed.state, failed.message) == (
        "fail", "importing vllm ended its process by SIGILL: Illegal instruction",
    )  # fmt: skip
    assert "instructions" in failed.fix


def test_a_child_that_takes_too_long_is_told() -> None:
    (finding,) = judge_imports(read_result([{"importing": "torch"}], None, ""))
    assert (finding.state, finding.message) == ("fail", "importing torch takes too long")
    assert finding.fix


def test_a_child_that_never_began_is_told() -> None:
    (finding,) = judge_imports(read_result([], 1, "No module named ptcli"))
    assert finding.state == "fail"
    assert "exit code 1: No module named ptcli" in finding.message


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", "uninstall torchvision"),
        ("ImportError: /lib/libc.so.6: version `GLIBC_2.34' not found", "newer Linux"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "driver"),
        ("ImportError: libcudart.so.12: cannot open shared object file", "--force-reinstall 'torch==2.13.0'"),
        ("ImportError: undefined symbol: _ZN3c10", "--force-reinstall --no-deps"),
    ],
)
def test_a_failed_import_says_what_mends_it(error: str, fix: str) -> None:
    passed, failed = judge_imports(Probe((TORCH, Imported("vllm", error))))
    assert passed.message == "torch can be imported"
    assert failed.message == f"vllm cannot be imported: {error}"
    assert fix in failed.fix


def test_what_fails_with_the_same_error_is_told_once() -> None:
    """torch that is broken takes all others with it."""
    (finding,) = judge_imports(Probe(tuple(Imported(name, "ImportError: no") for name in ("torch", "peft", "trl"))))
    assert finding.message == "torch, peft, trl cannot be imported: ImportError: no"
    assert "torch==" in finding.fix


def test_a_module_that_hides_the_installed_one_is_to_be_moved_away() -> None:
    (finding,) = judge_imports(Probe((Imported("vllm", "ImportError: no", shadowed="/home/me/vllm"),)))
    assert finding.fix == "move /home/me/vllm away: it hides the vllm that is installed"


# --- transformers and TRL together -----------------------------------------------------------------------------------


def test_a_problem_with_the_template_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = types.SimpleNamespace(find_problem=lambda: "a mask of 2")
    monkeypatch.setitem(sys.modules, "ptcli.doctor.template", told)
    lines = run(tmp_path, "template")
    assert lines == [
        {"importing": "template"}, {"module": "template", "error": "", "facts": {"problem": "a mask of 2"}},
    ]  # fmt: skip
    probe_of = read_result(lines, 0, "")
    (finding,) = judge_template(probe_of)
    assert finding.state == "fail"
    assert finding.message.endswith(" do not fit together: a mask of 2")
    assert re.search(r"pip install transformers==\S+ trl==\S+$", finding.fix)
    assert judge_imports(probe_of) == []


@pytest.mark.parametrize(
    ("broken", "error", "problem", "states"),
    [
        ("", "", "", ["pass"]),
        ("", "TypeError: no", "", ["fail"]),
        ("ImportError: no", "ImportError: no", "", []),  # said once, of what could not be imported
        ("ImportError: no", "", "", ["pass"]),
    ],
)
def test_what_cannot_be_imported_is_no_matter_of_the_template(
    broken: str, error: str, problem: str, states: list[str]
) -> None:
    found = Probe((Imported("vllm", broken), Imported("template", error, {"problem": problem})))
    assert [each.state for each in judge_template(found)] == states
    assert "template" not in " ".join(each.message for each in judge_imports(found))


def test_a_template_that_was_never_tried_is_not_told_of() -> None:
    assert judge_template(Probe((TORCH,), "importing trl takes too long")) == []
    (died,) = judge_imports(read_result([{"importing": "template"}], -11, ""))
    assert died.message == "tokenizing a chat with TRL ended its process by SIGSEGV"


def test_each_token_of_a_batch_is_compared() -> None:
    rows = [([1, 2, 3], [3]), ([1, 2, 3, 4], [3, 4])]
    assert judge_batch(rows, rows) == ""
    assert "not those of the chat template's text" in judge_batch(rows, [([1, 2, 3], [3]), ([1, 2, 4, 3], [4, 3])])
    masked = judge_batch(rows, [([1, 2, 3], [3]), ([1, 2, 3, 4], [2, 3, 4])])
    assert masked == "the SFT trainer trains on 3 tokens of a row whose completion has 2"


# --- CUDA ------------------------------------------------------------------------------------------------------------


def test_cuda_within_what_the_driver_can_do_passes() -> None:
    assert [state for state, _ in cuda(TORCH, VLLM)] == ["pass"]
    assert [state for state, _ in cuda(TORCH, VLLM, driver=(14, 1))] == ["pass"]


def test_cuda_of_a_newer_major_version_fails() -> None:
    assert cuda(TORCH, driver=(12, 8)) == [("fail", "torch 2.13.0+cu130 needs CUDA 13.0, and the driver can do 12.8")]


def test_cuda_of_a_newer_minor_version_is_a_warning() -> None:
    newer = Imported("torch", facts=TORCH.facts | {"cuda": "13.2"})
    assert [state for state, _ in cuda(newer)] == ["warn"]


def test_cuda_that_does_not_start_fails_with_what_it_says() -> None:
    broken = Imported("torch", facts=TORCH.facts | {"error": "Error 802: system not yet initialized"})
    (finding,) = judge_cuda(Probe((broken,)), (13, 0), 8)
    assert finding.state == "fail"
    assert finding.message.endswith("system not yet initialized")
    assert "nvidia-fabricmanager" in finding.fix


def test_a_torch_for_cpus_on_a_machine_with_gpus_fails() -> None:
    cpu = Imported("torch", facts={"version": "2.13.0+cpu", "cuda": None, "hip": None})
    assert [state for state, _ in cuda(cpu)] == ["fail"]
    assert cuda(cpu, gpus=0) == []


def test_a_vllm_for_cpus_on_a_machine_with_gpus_fails() -> None:
    assert [state for state, _ in cuda(TORCH, Imported("vllm", facts={"device": "cpu"}))] == ["pass", "fail"]
