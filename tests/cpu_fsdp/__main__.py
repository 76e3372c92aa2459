"""The ptcli command, which plans FSDP on a CPU here."""

from __future__ import annotations

from ptcli import cli
from ptcli.plan import accelerate

_count_conflicts = accelerate._count_conflicts


def _without_the_refusal(strategy: accelerate.Strategy, processes: int, device: str) -> list[accelerate.Problem]:
    """What is wrong with the counts, as they would be judged of a machine with GPUs."""
    return _count_conflicts(strategy, processes, "cuda" if strategy.kind == "FSDP" else device)


if __name__ == "__main__":
    accelerate._count_conflicts = _without_the_refusal
    cli.main()
