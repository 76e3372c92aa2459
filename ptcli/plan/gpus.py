"""Which GPUs the rollout server gets and which the trainer: pure arithmetic on tokens.

An index in a recipe is a position in the list of visible GPUs. What is handed on is the token that stood there, so that
a run inside Slurm, Docker or a hand-set CUDA_VISIBLE_DEVICES stays inside its share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ptcli.errors import KeyPath, Problem
from ptcli.plan.model import GPU, Machine
from ptcli.recipe.model import GPUs

ROLLOUTS: KeyPath = ("rollouts", "gpus")
LAUNCH: KeyPath = ("launch", "gpus")
_WITHOUT_SERVER = ", or let the trainer generate itself with rollouts.backend: transformers"


@dataclass(frozen=True)
class Split:
    """Positions in `Machine.gpus`, never the same one on both sides."""

    server: tuple[int, ...] = ()
    trainer: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = field(default=())


@dataclass(frozen=True)
class _Choice:
    picked: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()


def split_gpus(
    machine: Machine, server: GPUs | None, trainer: GPUs | None, *, single: bool = False, trains: bool = True
) -> Split:
    """Give the server its GPUs (`None`: it needs none) and the trainer its own (`None`: all that are left).

    `single` is a trainer of one process: without a choice of its own it gets one GPU, because a process that sees more
    would use DataParallel. `trains` is False when only the server runs here. Rollouts choose first: a count is the
    first N visible, for the trainer the next N.
    """
    positions = tuple(range(len(machine.gpus)))
    served = _choose(machine, server, positions, ROLLOUTS) if server is not None else _Choice()
    rest = tuple(index for index in positions if index not in served.picked)
    if not trains:
        trained = _Choice()
    elif isinstance(trainer, list):
        trained = _choose(machine, trainer, positions, LAUNCH)
    else:
        trained = _count(machine, _trainer_count(trainer, rest, single=single), rest, LAUNCH, taken=served.picked)
    problems = served.problems + trained.problems
    problems += _overlap(machine, served.picked, trained.picked) + _kinds(machine, served.picked, trained.picked)
    return Split(served.picked, trained.picked, problems)


def asked(spec: GPUs | None) -> int | None:
    """How many GPUs a recipe means, whether they are there or not; None when it leaves that open."""
    return spec if spec is None or isinstance(spec, int) else len(spec)


def tokens(machine: Machine, picked: tuple[int, ...]) -> tuple[str, ...]:
    """What goes into CUDA_VISIBLE_DEVICES for these positions."""
    return tuple(machine.gpus[index].token for index in picked)


def seen(machine: Machine) -> str:
    """`8 GPUs are visible`, with what hides the others."""
    count = len(machine.gpus)
    text = f"{count or 'no'} GPU{'' if count == 1 else 's'} {'is' if count == 1 else 'are'} "
    if machine.assumed:
        return text + "assumed"
    return text + "visible" + (f" (CUDA_VISIBLE_DEVICES={machine.visible})" if machine.visible is not None else "")


def _trainer_count(asked: int | None, rest: tuple[int, ...], *, single: bool) -> int:
    if asked is not None:
        return asked
    return 1 if single else max(len(rest), 1)


def _choose(machine: Machine, spec: GPUs, pool: tuple[int, ...], key: KeyPath) -> _Choice:
    return _count(machine, spec, pool, key) if isinstance(spec, int) else _list(machine, spec, key)


def _count(machine: Machine, count: int, pool: tuple[int, ...], key: KeyPath, taken: tuple[int, ...] = ()) -> _Choice:
    if count < 1:
        message = f"{_name(key)} must be at least 1, not {count}"
        return _Choice(problems=(Problem(message, "for a run without GPUs say launch.device: cpu", key),))
    if count > len(pool):
        return _Choice(problems=(_too_many(machine, count, pool, key, taken),))
    return _Choice(pool[:count])


def _too_many(machine: Machine, count: int, pool: tuple[int, ...], key: KeyPath, taken: tuple[int, ...]) -> Problem:
    wanted = f"{_name(key)} asks for {count} GPU{'s' if count > 1 else ''}"
    if not taken:
        fix = "ask for fewer" + (_WITHOUT_SERVER if key == ROLLOUTS else "")
        return Problem(f"{wanted}, but {seen(machine)}", fix, key)
    left = f"rollouts take {len(taken)} of them" + (f", which leaves {len(pool)}" if pool else ", which leaves none")
    fix = f"give one side fewer{_WITHOUT_SERVER}"
    if not pool:
        wanted = "the trainer needs at least 1 GPU of its own"
    return Problem(f"{wanted}, but {seen(machine)} and {left}", fix, key if pool else ROLLOUTS)


def _list(machine: Machine, entries: list[int | str], key: KeyPath) -> _Choice:
    if not entries:
        return _Choice(problems=(Problem(f"{_name(key)} is an empty list", "leave it out, or name GPUs", key),))
    picked: list[int] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries):
        place = (*key, number)
        position = _position(machine, entry)
        if position is None:
            problems.append(_unknown(machine, entry, place))
        elif position in picked:
            problems.append(Problem(f"GPU {entry} is named twice", "CUDA would then see no GPU at all", place))
        else:
            picked.append(position)
    return _Choice(tuple(picked), tuple(problems))


def _position(machine: Machine, entry: int | str) -> int | None:
    """Position of the GPU that an index, a token or a UUID (or its beginning) names; None when none or several do."""
    if isinstance(entry, int) or entry.isdecimal():
        return int(entry) if 0 <= int(entry) < len(machine.gpus) else None
    found = [index for index, gpu in enumerate(machine.gpus) if _is(gpu, entry)]
    return found[0] if len(found) == 1 else None


def _is(gpu: GPU, entry: str) -> bool:
    named = entry.startswith(("GPU-", "MIG-"))
    return gpu.token == entry or (named and gpu.uuid is not None and gpu.uuid.startswith(entry))


def _unknown(machine: Machine, entry: int | str, key: KeyPath) -> Problem:
    if machine.assumed and isinstance(entry, str) and not entry.isdecimal():
        return Problem(f"the UUID of GPU {entry} cannot be looked up on an assumed machine", "use indices", key)
    return Problem(f"GPU {entry} is not there: {seen(machine)}", _names(machine), key)


def _names(machine: Machine) -> str:
    if not machine.gpus:
        return ""
    return f"indices are positions among the visible ones, 0 to {len(machine.gpus) - 1}"


def _overlap(machine: Machine, server: tuple[int, ...], trainer: tuple[int, ...]) -> tuple[Problem, ...]:
    both = [str(index) for index in trainer if index in server]
    if not both:
        return ()
    message = f"GPU {', '.join(both)} {'is' if len(both) == 1 else 'are'} in both rollouts.gpus and launch.gpus"
    return (Problem(message, "trainer and server cannot share a GPU in server mode", LAUNCH),)


def _kinds(machine: Machine, server: tuple[int, ...], trainer: tuple[int, ...]) -> tuple[Problem, ...]:
    """CUDA shows a process one MIG device at most, and NCCL puts no two ranks on slices of one GPU."""
    mig = [token for token in tokens(machine, server + trainer) if token.startswith("MIG-")]
    if not mig or (not server and len(trainer) == 1):
        return ()
    message = f"{mig[0]} is a MIG slice: a run over several GPUs, or with a rollout server, needs whole ones"
    fix = "use one MIG slice for a single process without a server"
    return (Problem(message, fix, ROLLOUTS if server else LAUNCH),)


def _name(key: KeyPath) -> str:
    return ".".join(map(str, key))
