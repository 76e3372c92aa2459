"""The light half stays light: nothing before the start of work imports a heavy library."""

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ptcli"
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "peft",
    "vllm",
    "deepspeed",
    "numpy",
    "huggingface_hub",
}
HEAVY_MODULES = {
    "ptcli.__main__", "ptcli.rollouts.gloo", "ptcli.rollouts.gloo_engine", "ptcli.rollouts.client",
    "ptcli.rollouts.colocate", "ptcli.rollouts.quantized",
    "ptcli.recipe.generate_catalogue", "ptcli.builtin.build", "ptcli.builtin.train_model",
    "ptcli.builtin.make_tokenizer", "ptcli.data.columnar",
}  # fmt: skip
HEAVY_ROOMS = ("ptcli.train", "ptcli.data.scan", "ptcli.doctor.math", "ptcli.merge")
LIGHT_IN_HEAVY_ROOM = {
    "ptcli.merge", "ptcli.merge.adapter", "ptcli.merge.base", "ptcli.merge.experts", "ptcli.merge.headers",
    "ptcli.merge.hub", "ptcli.merge.identity", "ptcli.merge.lean", "ptcli.merge.libtorch", "ptcli.merge.machine",
    "ptcli.merge.model",
    "ptcli.merge.names",
    "ptcli.merge.operations", "ptcli.merge.plan", "ptcli.merge.progress", "ptcli.merge.publish", "ptcli.merge.render",
    "ptcli.merge.request", "ptcli.merge.run", "ptcli.merge.scales", "ptcli.merge.serve_check", "ptcli.merge.serving",
    "ptcli.merge.sharded", "ptcli.merge.stream", "ptcli.merge.targets", "ptcli.merge.tying",
    "ptcli.merge.verifier", "ptcli.merge.verify_child",
    "ptcli.train",
    "ptcli.train.config",
    "ptcli.train.guards",
    "ptcli.train.guards.decisions",
    "ptcli.train.guards.measures",
    "ptcli.train.guards.resumed",
    "ptcli.train.reward_child",
    "ptcli.train.reward_loading",
}  # fmt: skip


def _modules() -> list[str]:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    return [
        name
        for name in names
        if name not in HEAVY_MODULES and (not name.startswith(HEAVY_ROOMS) or name in LIGHT_IN_HEAVY_ROOM)
    ]


def _heavy_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split("\n")[-2].split()) & HEAVY


def test_light_modules_import_nothing_heavy() -> None:
    assert _heavy_after("import " + ", ".join(_modules())) == set()


def test_heavy_imports_would_be_seen() -> None:
    assert "numpy" in _heavy_after("import numpy")


@pytest.mark.parametrize(
    "arguments", [["train", "recipes/grpo.yaml", "--dry-run", "--assume-gpus", "8x80GiB"], ["--help"]]
)
def test_commands_before_the_start_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys, os
os.chdir({str(PACKAGE.parent)!r})
sys.argv = ["ptcli", *{arguments!r}]
from ptcli.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert _heavy_after(code) == set()


def test_no_method_names_in_conditions() -> None:
    from ptcli.methods import METHODS

    names = "|".join(METHODS)
    import re

    pattern = re.compile(rf"""(?:==|!=|\bin\b)\s*[\[({{]?\s*["'](?:{names})["']""")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []
