"""The child of `ptcli doctor`: imports what a run imports, one module after the other, and says how each went.

    python -m ptcli.doctor.probe RESULT MODULE[:NAME][,MODULE...] ... [template]

Each argument is one thing that must be importable, by all its parts; `template` stands for what `ptcli.doctor.template`
tries with what was imported. RESULT gets a line of JSON before and after each.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

TEMPLATE = "template"
"""What `ptcli.doctor.template` tries, in the place of a module."""


def main(result: str, *targets: str) -> None:
    """Import every target, also after one failed."""
    with Path(result).open("a", encoding="utf-8", buffering=1) as out:
        for target in targets:
            _write(out, {"importing": _name(target)})
            _write(out, {"module": _name(target), **_import(target)})


def _import(target: str) -> dict[str, Any]:
    try:
        if target == TEMPLATE:
            from ptcli.doctor.template import find_problem

            return {"error": "", "facts": {"problem": find_problem()}}
        for part in target.split(","):
            module, _, attribute = part.partition(":")
            loaded = importlib.import_module(module)
            if attribute:
                getattr(
                    loaded, attribute
                )  # TRL, transformers and vLLM import what is behind a name when it is asked for
        return {"error": "", "facts": _facts(_name(target))}
    except BaseException as error:  # a library may end the process that imports it
        last = traceback.format_exception_only(error)[-1].strip()
        return {"error": _cause(error) or last, "facts": {}}


def _cause(error: BaseException) -> str:
    """The last line of what began it: a lazy import wraps the error in one that tells less."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = traceback.format_exception_only(error)[-1].strip()
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _facts(module: str) -> dict[str, Any]:
    if module == "torch":
        return _torch_facts()
    if module == "vllm":
        from vllm.platforms import current_platform

        return {"device": current_platform.device_type}
    return {}


def _torch_facts() -> dict[str, Any]:
    """The CUDA that torch was built for, and what CUDA says when it is started."""
    import torch

    facts: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    if torch.version.cuda or torch.version.hip:
        try:
            torch.cuda.init()
            facts["gpus"] = torch.cuda.device_count()
        except Exception as error:
            facts["error"] = str(error).strip().splitlines()[0]
    return facts


def _name(target: str) -> str:
    return target.partition(",")[0].partition(":")[0].partition(".")[0]


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
