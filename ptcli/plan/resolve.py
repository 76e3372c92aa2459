"""The resolved recipe: what the worker reads, with everything that planning decided written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from ptcli.methods import METHODS
from ptcli.plan.arguments import argument
from ptcli.plan.layout import Device, Layout, decide_backend
from ptcli.plan.model import Server
from ptcli.plan.server import Ports
from ptcli.recipe.model import ModelSpec, Recipe

MODELS = ("model", "ref_model", "reward_model", "value_model", "teacher")
"""The sections that name a model."""

_PRECISION: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": True, "fp16": False},
    "fp16": {"bf16": False, "fp16": True},
    "no": {"bf16": False, "fp16": False},
}
_Section = TypeVar("_Section", bound=BaseModel)


def with_defaults(recipe: Recipe, device: Device | Literal["auto"]) -> Recipe:
    """What follows from the recipe and the device alone: the device itself, the backend, the models' types.

    `device` is `auto` where none could be decided.
    """
    changes: dict[str, Any] = {name: _typed(getattr(recipe, name)) for name in MODELS if getattr(recipe, name)}
    changes["launch"] = change(recipe.launch, device=device)
    backend = decide_backend(recipe)
    if backend is not None:
        changes["rollouts"] = change(recipe.rollouts, backend=backend)
    return change(recipe, **_stand_ins(recipe), **changes)


def with_evaluation(recipe: Recipe, world: int) -> Recipe:
    """Hold out one evaluation batch of all processes, where the trainer wants evaluation rows and the recipe has none.

    Fewer would be none: such a trainer drops a batch that is not full.
    """
    if not METHODS[recipe.method].wants_eval or recipe.data.eval is not None:
        return recipe
    return change(recipe, data=change(recipe.data, eval=argument(recipe, "per_device_eval_batch_size", 8) * world))


def resolve_recipe(
    recipe: Recipe, layout: Layout, server: Server | None, ports: Ports, *, precision: str, output_dir: Path
) -> Recipe:
    """Write in what the layout and the server turned out to be. `recipe` is that of `with_defaults`."""
    changes: dict[str, Any] = {
        "output_dir": str(output_dir),
        "launch": _launch(recipe, layout),
        "training": recipe.training | _precision(recipe, precision),
    }
    if server is not None:
        changes["rollouts"] = _rollouts(recipe, layout, server, ports)
    return change(recipe, **changes)


def change(section: _Section, **changes: Any) -> _Section:
    """A copy with some fields replaced. The values come from typed code, so they are not validated again."""
    return section.model_copy(update=changes)


def _stand_ins(recipe: Recipe) -> dict[str, ModelSpec]:
    """The models that are loaded a second time for a section that the recipe leaves out, this time to be trained."""
    stand_ins = METHODS[recipe.method].stand_ins
    given = {name: getattr(recipe, source) for name, source in stand_ins.items() if getattr(recipe, name) is None}
    return {name: _to_be_trained(spec, recipe.model) for name, spec in given.items() if spec is not None}


def _to_be_trained(spec: ModelSpec, policy: ModelSpec) -> ModelSpec:
    """A frozen model's section as that of one whose weights all learn, in the policy's type: what is only read may be
    held in a smaller one, in which small updates would be lost."""
    changes: dict[str, Any] = {"dtype": _typed(policy).dtype}
    changes |= {"quantization": None} if spec.quantization else {}
    return change(spec, **changes | ({"adapter": "merge"} if spec.adapter else {}))


def _typed(spec: ModelSpec) -> ModelSpec:
    return change(spec, dtype=spec.dtype or "float32")


def _launch(recipe: Recipe, layout: Layout) -> BaseModel:
    cpu = layout.device == "cpu"
    return change(
        recipe.launch,
        accelerate=layout.strategy.name,
        gpus=None if cpu else list(layout.split.trainer),
        processes=layout.processes if cpu else None,
    )


def _rollouts(recipe: Recipe, layout: Layout, server: Server, ports: Ports) -> BaseModel:
    own = {} if server.external else {"port": ports.server, "gpus": list(layout.split.server) or None}
    return change(
        recipe.rollouts,
        group_port=ports.group,
        data_parallel_size=server.data_parallel_size,
        dtype=server.dtype,
        max_model_len=server.max_model_len,
        startup_timeout=server.startup_timeout,
        **own,
    )


def _precision(recipe: Recipe, precision: str) -> dict[str, Any]:
    """`bf16` and `fp16` spelt out. fp8 is accelerate's own, the arguments stay as they are."""
    return _PRECISION.get(precision, {})
