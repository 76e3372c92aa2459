"""What a recipe needs of a machine, as far as it can be told without starting anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ptcli.doctor.pairs import Pair, pair_of
from ptcli.errors import KeyPath, Problem, RequestError
from ptcli.methods import METHODS
from ptcli.plan.accelerate import Strategy, load_strategy
from ptcli.plan.arguments import argument
from ptcli.plan.colocate import uses_colocate
from ptcli.plan.gpus import asked
from ptcli.plan.layout import decide_backend, server_size, uses_server
from ptcli.plan.model import Plan
from ptcli.recipe.local_models import base_model_path, find_base, is_local, local_folder, weight_files
from ptcli.recipe.model import DataEntry, ModelSpec, Recipe
from ptcli.recipe.references import data_lists
from ptcli.run.disk import Need, count_saves, need, sizes_of

UTILIZATION = 0.9
"""vLLM's own default."""
_AMPLE = 64
"""GPUs of a machine on which a recipe has no excuse."""


@dataclass(frozen=True)
class Repository:
    """Something on the hub that a recipe names."""

    kind: Literal["models", "datasets"]
    id: str
    revision: str | None
    key: KeyPath


@dataclass(frozen=True)
class Needs:
    """What the checks compare the machine with. The defaults are what is looked at without a recipe."""

    recipe: str | None = None
    """The recipe's file as it was typed."""
    device: Literal["cpu", "cuda"] | None = None
    """Where it trains; None without a recipe."""
    trainer: str = ""
    """Import string of its trainer."""
    vllm: bool | None = None
    """Whether it needs vLLM here; None without a recipe: where vLLM is installed, it is looked at."""
    packages: frozenset[str] = frozenset()
    """Distributions that it needs beyond those that ptcli always needs."""
    flash_attention: bool = False
    processes: int = 1
    """Trainer and server processes on one node that hold a model."""
    pair: Pair | None = None
    """Two of them, where there are two and this machine can run the recipe."""
    nodes: int = 1
    ports: tuple[tuple[str, int], ...] = ()
    """Key and number of the ports that it names and that something of it has to bind."""
    url: str | None = None
    """A rollout server that must already run."""
    output_dir: Path = field(default_factory=lambda: Path("runs").absolute())
    writes: Need | None = None
    """Bytes of its checkpoints and of the final model; None where the size of the model is not known."""
    weights: int | None = None
    """Bytes of the trained model's weights on this machine; None when they are not here."""
    downloads: tuple[Repository, ...] = ()
    """What it takes from the hub."""
    compiles: bool = False
    """DeepSpeed compiles an operator at its start."""
    engine_gpus: tuple[str, ...] = ()
    """GPUs, as CUDA_VISIBLE_DEVICES names them, on which vLLM starts here."""
    utilization: float = UTILIZATION
    """Share of their memory that it takes, and without which it does not start."""
    slurm: bool = False
    partition: str | None = None
    problems: tuple[Problem, ...] = ()
    """What keeps this machine, and not every machine, from running it."""


def recipe_needs(path: Path, overrides: tuple[str, ...] = ()) -> Needs:
    """What a recipe needs, and what keeps this machine from running it.

    Raises:
        RequestError: with every problem that the recipe has on any machine.
    """
    from ptcli.recipe.loading import load_recipe
    from ptcli.request import Request, accept

    problems: tuple[Problem, ...] = ()
    plan = None
    try:
        plan = accept(Request(path, overrides)).plan
    except RequestError as error:
        problems = error.problems
    recipe = load_recipe(path, overrides).recipe
    if recipe is None:
        raise RequestError(problems)
    if problems:
        _refuse_what_fits_nowhere(path, overrides, recipe, problems)
    return needs_of(recipe, str(path), plan, problems)


def needs_of(recipe: Recipe, name: str, plan: Plan | None = None, problems: tuple[Problem, ...] = ()) -> Needs:
    """The needs of a recipe that is sound. Without a plan, `problems` of this machine keep it from having one."""
    strategy, _ = load_strategy(recipe.launch.accelerate or "ddp")
    device: Literal["cpu", "cuda"] = "cpu" if recipe.launch.device == "cpu" else "cuda"
    vllm = decide_backend(recipe) == "vllm"
    weights = _weights(recipe.model)
    ports = tuple(_ports(recipe))
    return Needs(
        recipe=name,
        device=device,
        trainer=METHODS[recipe.method].trainer,
        vllm=vllm,
        packages=frozenset(_packages(recipe, strategy, vllm)),
        flash_attention=device == "cuda" and recipe.model.attn_implementation == "flash_attention_2",
        processes=_processes(recipe, device),
        pair=pair_of(plan) if plan else None,
        nodes=recipe.launch.nodes,
        ports=ports,
        url=recipe.rollouts.url if uses_server(recipe) else None,
        output_dir=Path(recipe.output_dir).expanduser().absolute(),
        writes=_writes(plan) if plan else None,
        weights=weights,
        downloads=_once(_downloads(recipe)),
        compiles=_compiles(strategy, device),
        engine_gpus=_engine_gpus(plan) if plan else (),
        utilization=(plan.recipe if plan else recipe).rollouts.gpu_memory_utilization or UTILIZATION,
        slurm=bool(recipe.launch.slurm.model_fields_set),
        partition=recipe.launch.slurm.partition,
        problems=tuple(problem for problem in problems if not _is_of_a_port(problem, ports)),
    )


def _refuse_what_fits_nowhere(
    path: Path, overrides: tuple[str, ...], recipe: Recipe, problems: tuple[Problem, ...]
) -> None:
    """Raise RequestError with the problems that a machine with GPUs in plenty would have as well."""
    from ptcli.request import Request, accept

    spec = f"{recipe.launch.nodes}x{_AMPLE}x80GiB"
    try:
        accept(Request(path, overrides, assume_gpus=spec))
    except RequestError as error:
        own = [problem for problem in problems if problem in error.problems]
        if own:
            raise RequestError(own) from None


def _is_of_a_port(problem: Problem, ports: tuple[tuple[str, int], ...]) -> bool:
    """The check of ports says the same, and who has it."""
    return ".".join(map(str, problem.key)) in {name for name, _ in ports}


def _ports(recipe: Recipe) -> Iterator[tuple[str, int]]:
    if not uses_server(recipe):
        return
    names = ("group_port",) if recipe.rollouts.url else ("port", "group_port")
    for name in names:
        if number := getattr(recipe.rollouts, name):
            yield f"rollouts.{name}", number


def _packages(recipe: Recipe, strategy: Strategy | None, vllm: bool) -> Iterator[str]:
    if vllm:
        yield "vllm"
    if strategy is not None and strategy.kind == "DEEPSPEED":
        yield "deepspeed"
    if any(spec.quantization for spec in _models(recipe).values()):
        yield "bitsandbytes"


def _processes(recipe: Recipe, device: str) -> int:
    """Where the number of GPUs is left open, each visible one is used; the check of GPUs counts those."""
    trainer = recipe.launch.processes if device == "cpu" else asked(recipe.launch.gpus)
    server = 0
    if uses_server(recipe) and not recipe.rollouts.url:
        server = asked(recipe.rollouts.gpus) or server_size(recipe)
    return (trainer or 1) + server


def _compiles(strategy: Strategy | None, device: str) -> bool:
    """DeepSpeed builds its AdamW for the CPU when the optimizer is offloaded, and an operator for gloo on a CPU."""
    if strategy is None or strategy.kind != "DEEPSPEED":
        return False
    return device == "cpu" or strategy.offloads("optimizer")


def _writes(plan: Plan) -> Need | None:
    sizes = sizes_of(plan)
    if sizes is None:
        return None
    return need(sizes, limit=argument(plan.recipe, "save_total_limit"), saves=count_saves(plan.recipe))


def _engine_gpus(plan: Plan) -> tuple[str, ...]:
    """The server's, or the trainer's where vLLM runs inside it."""
    name = "trainer" if uses_colocate(plan.recipe) else "rollouts"
    return tuple(token for step in plan.steps if step.name == name and step.node == 0 for token in step.gpus)


def _models(recipe: Recipe) -> dict[str, ModelSpec]:
    found = {name: getattr(recipe, name) for name in Recipe.model_fields}
    return {name: spec for name, spec in found.items() if isinstance(spec, ModelSpec)}


def _weights(model: ModelSpec) -> int | None:
    """Bytes of the weights that a model of this machine is loaded from, of an adapter those of its base."""
    folder = local_folder(*find_base(model.path, model.revision))
    files = weight_files(folder) if folder else []
    try:
        return sum(path.stat().st_size for path in files) or None
    except OSError:
        return None


def _once(repositories: Iterable[Repository]) -> tuple[Repository, ...]:
    """A data set is often named twice, for training and for evaluation. The first place stands for both."""
    found: dict[tuple[str, str, str | None], Repository] = {}
    for each in repositories:
        found.setdefault((each.kind, each.id, each.revision), each)
    return tuple(found.values())


def _downloads(recipe: Recipe) -> Iterator[Repository]:
    for name, spec in _models(recipe).items():
        base, revision = find_base(spec.path, spec.revision)
        for place, at in dict.fromkeys(((spec.path, spec.revision), (base, revision))):
            if _is_hub_id(place):
                yield Repository("models", place, at, (name, "path"))
    for index, reward in enumerate(recipe.rewards):
        if ":" not in reward.use and "/" in reward.use and _is_hub_id(base_model_path(reward.use)):
            yield Repository("models", reward.use, None, ("rewards", index, "use"))
    for key, entries in data_lists(recipe):
        yield from (_dataset(entry, (*key, index)) for index, entry in enumerate(entries) if _is_hub_id(entry.path))


def _dataset(entry: DataEntry, key: KeyPath) -> Repository:
    return Repository("datasets", entry.path, entry.revision, (*key, "path"))


def _is_hub_id(path: str) -> bool:
    return not (path.startswith("builtin:") or is_local(path) or Path(path).exists() or path.count("/") > 1)
