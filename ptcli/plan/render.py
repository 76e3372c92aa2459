"""A plan for people and for programs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ptcli.methods import METHODS
from ptcli.plan.colocate import uses_colocate
from ptcli.plan.memory import describe_memory, describe_split
from ptcli.plan.model import Plan, Server, Step
from ptcli.plan.reference import describe_reference
from ptcli.plan.script import PASTED_END, clean_environment, pasted_server, shell_command
from ptcli.plan.slurm import Job, describe_job


def render_json(plan: Plan, job: Job | None = None) -> dict[str, Any]:
    """The shape that CONTRACT.md promises, and `server`, `notes` and `output_dir` besides. With a job, its files are
    among the others."""
    return {
        "method": plan.method,
        "steps": [_step(step) for step in plan.steps],
        "files": {**plan.files, **(job.files if job else {})},
        "batch": dict(plan.batch),
        "memory": dict(plan.memory),
        "server": _server(plan.server) if plan.server else None,
        "after": _step(plan.after) if plan.after else None,
        "output_dir": str(plan.output_dir),
        "smoke": plan.smoke,
        "notes": list(plan.notes),
    }


def render_text(plan: Plan) -> str:
    """What will run, in a screenful, and then files and commands, ready to paste into bash, singly or as a whole."""
    blocks = ["\n".join(f"# {line}" for line in _summary(plan))]
    if plan.notes:
        blocks.append("\n".join(f"# note: {note}" for note in plan.notes))
    blocks.append(_files(plan))
    blocks.append(f"# nothing of another launcher that may have started this shell\n{clean_environment()}")
    blocks += [f"# {_title(step, plan)}\n{_command(step, plan)}" for step in plan.steps]
    if (server := _first(plan, "rollouts")) and not server.node:
        blocks.append(f"# when the trainer has ended\n{PASTED_END}")
    if plan.after:
        blocks.append(f"# merge, when training has succeeded\n{shell_command(plan.after)}")
    return "\n\n".join(blocks) + "\n"


def render_job(plan: Plan, job: Job) -> str:
    """The script of a job, and then, as comments, what it runs."""
    summary = [f"job       {describe_job(job)}", *_summary(plan), *(f"note: {note}" for note in plan.notes)]
    return f"{job.script}\n" + "\n".join(f"# {line}" for line in summary) + "\n"


def _files(plan: Plan) -> str:
    """The files that the commands read, as shell text. `launch.sh` is those commands again, and so left out."""
    folder = shlex.quote(str(plan.output_dir))
    written = [
        f"cat > {shlex.quote(str(plan.output_dir / name))} <<'PTCLI'\n{text.rstrip()}\nPTCLI"
        for name, text in plan.files.items()
        if not name.endswith(".sh")
    ]
    return "\n\n".join([f"mkdir -p {folder}", *written])


def _command(step: Step, plan: Plan) -> str:
    if step.name == "rollouts" and plan.server and not step.node:
        return pasted_server(step, plan.server).rstrip()
    return shell_command(step)


def _summary(plan: Plan) -> list[str]:
    lines = [
        ("method", f"{plan.method} ({METHODS[plan.method].title})"),
        ("model", _model(plan)),
        *[("reference", text) for text in _reference(plan)],
        *[("rollouts", text) for text in _rollouts(plan)],
        *[("trainer", text) for text in _trainer(plan)],
        *[("batch", text) for text in _batch(plan.batch)],
        *[("memory", text) for text in describe_memory(plan.memory)],
        ("output", str(plan.output_dir)),
        ("files", ", ".join(plan.files)),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return [f"{name:<{width}}{text}" for name, text in lines]


def _model(plan: Plan) -> str:
    model, adapter = plan.recipe.model, "; an adapter is trained" if plan.recipe.trains_adapter else ""
    quantization = model.quantization or {}
    bits = next((bits for bits in (4, 8) if quantization.get(f"load_in_{bits}bit") is True), None)
    held = f"{bits} bits, those that are not quantised in {model.dtype}" if bits else str(model.dtype)
    return f"{model.path}, weights in {held}{adapter}"


def _reference(plan: Plan) -> list[str]:
    text = describe_reference(plan.recipe)
    return [] if text is None else [text]


def _rollouts(plan: Plan) -> list[str]:
    server = plan.server
    if server is None and uses_colocate(plan.recipe):
        return _colocate(plan)
    if server is None:
        return ["generated in the trainer"] if METHODS[plan.method].online else []
    step = _first(plan, "rollouts")
    where = "already running" if server.external else _where(step)
    where += f" of node {step.node}" if step and step.node else ""
    length = _length(server.max_model_len)
    sizes = f"tensor parallel {server.tensor_parallel_size} x data parallel {server.data_parallel_size}"
    return [f"vLLM at {server.url}, {where}, {sizes}, {server.dtype}, {length}, weights over {server.weight_transfer}"]


def _colocate(plan: Plan) -> list[str]:
    rollouts = plan.recipe.rollouts
    size = f"tensor parallel {rollouts.tensor_parallel_size}"
    engine = f"vLLM inside the trainer (colocate), {size}, {rollouts.dtype}, {_length(rollouts.max_model_len)}"
    return [engine, *filter(None, [describe_split(plan.memory)])]


def _length(tokens: int | None) -> str:
    return f"at most {tokens} tokens" if tokens else "the model's own longest sequence"


def _trainer(plan: Plan) -> list[str]:
    step = _first(plan, "trainer")
    if step is None:
        return []
    world = plan.batch.get("world_size", 1)
    count = sum(each.name == "trainer" for each in plan.steps)
    nodes = f" on {count} nodes" if count > 1 else ""
    return [f"{_where(step)}{nodes}, {world} process{'' if world == 1 else 'es'}, {plan.recipe.launch.accelerate}"]


def _where(step: Step | None) -> str:
    if step is None or not step.gpus:
        return "on the CPU"
    return f"GPU{'s' if len(step.gpus) > 1 else ''} {','.join(step.gpus)}"


def _batch(batch: Mapping[str, Any]) -> list[str]:
    if not batch:
        return []
    factors = " x ".join(
        f"{name} {batch[key]}"
        for name, key in (
            ("per device", "per_device_train_batch_size"),
            ("accumulation", "gradient_accumulation_steps"),
            ("processes", "world_size"),
        )
    )
    text = f"{factors} = {batch['global_batch_size']} {_unit(batch)} an optimizer step"
    return [text, *_generation(batch), _duration(batch)]


def _unit(batch: Mapping[str, Any]) -> str:
    """What a batch is counted in: a row of preferences is a pair of sequences, a prompt of online DPO gets two."""
    if "completions_per_step" in batch:
        return "prompts"
    return "sequences" if {"num_generations", "num_mini_batches"} & batch.keys() else "rows"


def _generation(batch: Mapping[str, Any]) -> list[str]:
    if "prompts_per_generation_batch" not in batch:
        return []
    return [
        f"{batch['generation_batch_size']} completions at a time: {batch['prompts_per_generation_batch']} prompts x "
        f"num_generations {batch['num_generations']}, used in {batch['steps_per_generation']} steps"
    ]


def _duration(batch: Mapping[str, Any]) -> str:
    if "max_steps" in batch:
        return f"{batch['max_steps']} step{'' if batch['max_steps'] == 1 else 's'}"
    return f"{batch['num_train_epochs']:g} epoch{'' if batch['num_train_epochs'] == 1 else 's'}"


def _title(step: Step, plan: Plan) -> str:
    return step.name if plan.nodes == 1 else f"{step.name} on node {step.node}"


def _first(plan: Plan, name: str) -> Step | None:
    return next((step for step in plan.steps if step.name == name), None)


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "node": step.node,
        "argv": list(step.argv),
        "env": dict(step.env),
        "gpus": list(step.gpus),
    }


def _server(server: Server) -> dict[str, Any]:
    return {name: getattr(server, name) for name in Server.__dataclass_fields__}
