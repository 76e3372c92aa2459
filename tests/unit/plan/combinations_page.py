"""accelerate_configs/README.md, from the table: `python -m tests.unit.plan.combinations_page --write`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptcli.methods import METHODS, Splitter
from ptcli.plan.accelerate import CONFIGS
from ptcli.plan.combinations import CONDITIONS, REFUSALS, Combination, Form, Refusal, Rollouts, Way

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "accelerate_configs/README.md"

FORMS: dict[str, tuple[Form, int]] = {
    "all weights": ("weights", 16),
    "adapter": ("adapter", 16),
    "adapter, 4 bits": ("adapter", 4),
    "adapter, 8 bits": ("adapter", 8),
}
WAYS: dict[Way, str] = {
    "single": "single", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3, zero3_offload",
    "fsdp2": "fsdp2, fsdp2_offload, fsdp2_qlora", "hsdp": "hsdp",
}  # fmt: skip
MODES: dict[Rollouts, str] = {
    "none": "methods that generate nothing",
    "transformers": "the trainer generates",
    "server": "a vLLM server",
    "colocate": "vLLM inside the trainer",
}
USUAL = {"none": "sft", "transformers": "grpo", "server": "grpo", "colocate": "grpo"}
"""A method that stands for those without a refusal of their own."""


_HEAD = """# Launch configs, and what goes with what

`launch.accelerate` names one of these files, or is the path of one of yours. ptcli fills in counts, machines, ports and
precision, writes the result to the run directory, and passes every count on the command line as well. Your own default
config of accelerate's is never read.
"""
_FOOT = """\
`hsdp` makes a copy of the model on each node, split over the node's GPUs; on one node two copies, each split over half
of them. FSDP needs GPUs: accelerate would silently run DDP on a CPU, so that ptcli refuses it there; the tests patch
accelerate. `fsdp2_offload` is not trained by any test: it has no CPU form."""


@dataclass(frozen=True)
class Tested:
    """What a test trains, through the command line."""

    test: str
    methods: tuple[str, ...]
    ways: tuple[Way, ...]
    forms: tuple[str, ...] = ("all weights",)
    rollouts: Rollouts = "none"

    def places(self) -> Iterator[Combination]:
        """All of it."""
        for method in self.methods:
            for form in self.forms:
                for way in self.ways:
                    yield Combination(METHODS[method], *FORMS[form], way, self.rollouts)


_STRATEGIES = "tests/long/test_strategies.py"
_SAME = f"{_STRATEGIES}::test_trains_as_one_process_does"
_HERE = "tests/long/test_combinations.py"
_GENERATING = ("grpo", "rloo", "online_dpo", "xpo", "nash_md", "gkd", "minillm", "distillation")
_GENERATE = f"{_HERE}::test_the_trainer_generates"
_MERGED = f"{_HERE}::test_vllm_has_the_adapter_merged"


def _under(splitter: Splitter) -> tuple[str, ...]:
    return tuple(name for name in _GENERATING if splitter not in METHODS[name].fails_under)


TESTED = (
    Tested(_SAME, ("sft", "dpo"), ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2", "hsdp")),
    Tested(_SAME, ("sft", "dpo"), ("single", "zero3", "fsdp2"), ("adapter",)),
    Tested(_SAME, ("sft", "dpo"), ("single", "zero3"), ("adapter, 4 bits",)),
    Tested(f"{_HERE}::test_a_reference_that_trl_would_copy", ("bco",), ("zero3",)),
    Tested(f"{_HERE}::test_offload", ("sft", "dpo"), ("zero3",)),
    Tested(f"{_HERE}::test_four_bits_split_by_fsdp", ("sft", "dpo"), ("fsdp2",), ("adapter, 4 bits",)),
    Tested(f"{_HERE}::test_four_bits_split_by_fsdp", ("grpo",), ("fsdp2",), ("adapter, 4 bits",), "transformers"),
    Tested(f"{_HERE}::test_quantised_and_whole", ("sft",), ("ddp",), ("adapter, 8 bits",)),
    Tested(f"{_HERE}::test_quantised_and_whole", ("sft",), ("zero2",), ("adapter, 4 bits",)),
    Tested(
        "tests/integration/test_methods.py::test_smoke", ("xpo", "ppo", "gkd"), ("single",), rollouts="transformers"
    ),
    Tested("tests/long/test_methods.py::test_smoke", ("nash_md",), ("single",), rollouts="transformers"),
    Tested(
        "tests/long/test_adapters.py::test_smoke", ("grpo",), ("single",), ("adapter", "adapter, 4 bits"),
        "transformers",
    ),
    Tested(_GENERATE, _under("zero3"), ("zero3",), rollouts="transformers"),
    Tested(_GENERATE, _under("fsdp"), ("fsdp2",), rollouts="transformers"),
    Tested(f"{_GENERATE}_with_an_adapter", ("grpo",), ("zero3", "fsdp2"), ("adapter",), "transformers"),
    Tested("tests/integration/test_server_methods.py::test_rloo", ("rloo",), ("single",), rollouts="server"),
    Tested(
        "tests/long/test_server_methods.py::test_the_server_has_the_trained_weights",
        ("online_dpo", "distillation", "minillm"), ("single",), rollouts="server",
    ),
    Tested(f"{_STRATEGIES}::test_grpo_follows_the_server", ("grpo",), ("ddp", "zero3", "fsdp2"), rollouts="server"),
    Tested(_MERGED, ("grpo",), ("ddp", "zero3", "fsdp2"), ("adapter",), "server"),
    Tested(_MERGED, ("grpo",), ("ddp", "zero3"), ("adapter, 4 bits",), "server"),
    Tested(f"{_HERE}::test_ppo", ("ppo",), ("zero2", "zero3"), rollouts="transformers"),
    Tested("tests/long/test_methods.py::test_ppo_on_two_processes", ("ppo",), ("ddp",), rollouts="transformers"),
    Tested(
        "tests/long/test_methods.py::test_ppo_trains_an_adapter_on_two_processes", ("ppo",), ("ddp",), ("adapter",),
        "transformers",
    ),
    Tested("tests/integration/test_methods.py::test_smoke", ("grpo",), ("zero2",), rollouts="server"),
    Tested(
        "tests/long/test_methods.py::test_smoke", ("rloo", "online_dpo", "minillm", "distillation"), ("zero2",),
        rollouts="server",
    ),
    Tested("tests/long/test_rollouts_parallel.py::test_two_trainer_processes", ("grpo",), ("ddp",), rollouts="server"),
    Tested("tests/integration/test_colocate.py::test_the_command", ("grpo",), ("single",), rollouts="colocate"),
    Tested("tests/long/test_colocate.py::test_smoke_with_two_processes", ("grpo",), ("ddp",), rollouts="colocate"),
)  # fmt: skip


def render_page() -> str:
    """The whole page."""
    return "\n".join([*_configs(), *_tables(), *_refusals(), *_conditions()]) + "\n"


def _configs() -> Iterator[str]:
    yield _HEAD
    yield "| config | what it does |"
    yield "|---|---|"
    for path in sorted(CONFIGS.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").partition("\n#\n")[0].splitlines()
        yield f"| `{path.stem}` | {' '.join(line.removeprefix('# ') for line in lines)} |"
    yield ""
    yield _FOOT


def _tables() -> Iterator[str]:
    yield ""
    yield "**tested**: the tests train it, on CPUs. yes: planned, not tested. A number: refused, for the reason below."
    for mode, title in MODES.items():
        yield ""
        yield f"| {title} | {' | '.join(FORMS)} |"
        yield f"|---|{'---|' * len(FORMS)}"
        for way, names in WAYS.items():
            row = (_cell(Combination(METHODS[USUAL[mode]], form, bits, way, mode)) for form, bits in FORMS.values())
            yield f"| {names} | {' | '.join(row)} |"


def _cell(place: Combination) -> str:
    numbers = [str(index) for index, refusal in enumerate(REFUSALS, 1) if refusal.covers(place)]
    if numbers:
        return f"no ({', '.join(numbers)})"
    trained = any(_same_cell(place, each) for tested in TESTED for each in tested.places())
    return "**tested**" if trained else "yes"


def _same_cell(place: Combination, other: Combination) -> bool:
    mine, its = ((each.form, each.bits, each.way, each.rollouts) for each in (place, other))
    return mine == its


def _refusals() -> Iterator[str]:
    yield ""
    yield "| | refused | instead | source |"
    yield "|---|---|---|---|"
    for index, refusal in enumerate(REFUSALS, 1):
        yield f"| {index} | {_reason(refusal)} | {refusal.fix} | {refusal.source} |"


def _reason(refusal: Refusal) -> str:
    splitter, method = "ZeRO-3 or FSDP", "the method"
    if "way to run" in refusal.message:
        failing = {name: row.fails_under for name, row in METHODS.items() if row.fails_under}
        splitter = "of that kind"
        method = " and ".join(f"{name} ({', '.join(ways)})" for name, ways in failing.items())
    return refusal.message.format(config="the config", splitter=splitter, method=method)


def _conditions() -> Iterator[str]:
    yield ""
    yield "| must hold | source |"
    yield "|---|---|"
    for condition in CONDITIONS:
        yield f"| {condition.says} | {condition.source} |"
    yield ""
    yield "What the tests train, and which they are: `TESTED` in `tests/unit/plan/combinations_page.py`."


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(render_page(), encoding="utf-8")
    else:
        print(render_page(), end="")
