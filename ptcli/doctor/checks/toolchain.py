"""The compilers that DeepSpeed calls at the start of a run, where the recipe's strategy has it build an operator.

That nvcc is of torch's CUDA is a condition of the plan (`ptcli.plan.combinations`), and so among the recipe's problems.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs

_WHY = "DeepSpeed builds an operator when a run starts"


@dataclass(frozen=True)
class Toolchain:
    """Paths of the programs; empty where there is none."""

    compiler: str = ""
    """g++, or what CXX names."""
    ninja: str = ""


def read_toolchain(needs: Needs) -> Toolchain:
    """Look where the processes of a run would."""
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    compiler = shutil.which(os.environ.get("CXX") or "g++", path=tools)
    return Toolchain(compiler or "", shutil.which("ninja", path=tools) or "")


def judge_toolchain(tools: Toolchain, needs: Needs) -> list[Finding]:
    """Nothing to say for a recipe that compiles nothing."""
    if not needs.compiles:
        return []
    wrong = []
    if not tools.compiler:
        wrong.append(Finding("compiler", "fail", f"{_WHY}, and there is no g++", "sudo apt install g++"))
    if not tools.ninja:
        fix = f"{sys.executable} -m pip install ninja"
        wrong.append(Finding("compiler", "fail", f"{_WHY}, and there is no ninja", fix))
    return wrong or [Finding("compiler", "pass", f"for what DeepSpeed builds: {tools.compiler}, {tools.ninja}")]
