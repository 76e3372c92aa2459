"""What goes with what: method x adapter x quantisation x strategy x rollouts.

`REFUSALS` and `CONDITIONS` are the whole of it: a refusal holds for a place in that table whatever else a recipe says,
a condition looks at more. Everything else is allowed; what the tests have trained is marked in
accelerate_configs/README.md, which is generated from here (tests/unit/plan/combinations_page.py).

Sources: user-pain.md L8 to L11 and O8 to O10, launch.md section 4; trl 1.12, peft 0.21, accelerate 1.15.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS, Method
from ptcli.plan.accelerate import KEY, Strategy
from ptcli.plan.arguments import argument, argument_key
from ptcli.plan.layout import Layout, decide_backend
from ptcli.plan.reference import changes_base
from ptcli.plan.toolkit import read_nvcc, read_torch_cuda, same_cuda
from ptcli.recipe.adapter_folders import adapter_folder
from ptcli.recipe.local_models import read_model_config
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.modeling import layer_classes
from ptcli.recipe.suggest import nearest

SECTIONS = ("model", "ref_model", "reward_model", "value_model", "teacher")

Way = Literal["single", "ddp", "zero0", "zero1", "zero2", "zero3", "fsdp1", "fsdp2", "hsdp"]
Rollouts = Literal["none", "transformers", "server", "colocate"]
Form = Literal["weights", "adapter"]

_WHOLE = "use launch.accelerate: ddp or zero2"


@dataclass(frozen=True)
class Combination:
    """A place in the table."""

    method: Method
    form: Form
    """What is trained."""
    bits: int
    """Of the weights: 4 and 8 where they are quantised, else 16."""
    way: Way
    """How training is spread."""
    rollouts: Rollouts
    splits_sequences: bool = False
    """True with `cp` or `sp` above 1."""

    @property
    def fsdp(self) -> bool:
        """True under FSDP of any version."""
        return self.way in ("fsdp1", "fsdp2", "hsdp")

    @property
    def splits_weights(self) -> bool:
        """True where no GPU has all weights."""
        return self.fsdp or self.way == "zero3"

    @property
    def vllm(self) -> bool:
        """True where vLLM gets the weights after each step."""
        return self.rollouts in ("server", "colocate")


@dataclass(frozen=True)
class Refusal:
    """Places in the table where nothing can be trained, and why."""

    message: str
    """With `{config}` for the accelerate config, `{splitter}` for what it splits with, `{method}` for the method."""
    fix: str
    key: KeyPath
    source: str
    covers: Callable[[Combination], bool]
    frozen_too: bool = False
    """True where it holds for models that are only read as well, each by its own bits."""


@dataclass(frozen=True)
class Run:
    """What conditions look at."""

    recipe: Recipe
    layout: Layout
    assumed: bool
    """True for a machine of which nothing was read."""

    @property
    def strategy(self) -> Strategy:
        """The accelerate config."""
        return self.layout.strategy


@dataclass(frozen=True)
class Condition:
    """Something that must hold in a part of the table."""

    says: str
    source: str
    broken: Callable[[Run], Iterator[Problem]]


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "8-bit weights cannot be split over GPUs by {splitter}, which {config} asks for",
        "use load_in_4bit, or launch.accelerate: ddp or zero2",
        ("model", "quantization"), "bitsandbytes; axolotl#1482", frozen_too=True,
        covers=lambda it: it.bits == 8 and it.splits_weights,
    ),
    Refusal(
        "an adapter on 4-bit weights that FSDP has split cannot be merged for vLLM",
        "use launch.accelerate: ddp or zero2, or no quantization",
        ("model", "quantization"), "trl#6007",
        covers=lambda it: it.bits == 4 and it.fsdp and it.vllm,
    ),
    Refusal(
        "rollouts.mode: colocate does not work with 8-bit weights: vLLM cannot quantise them while it loads",
        "use load_in_4bit, or rollouts.backend: transformers",
        ("model", "quantization"), "trl 1.12",
        covers=lambda it: it.bits == 8 and it.rollouts == "colocate",
    ),
    Refusal(
        "{config} is FSDP 1, under which TRL may send vLLM an adapter merged by halves",
        "write fsdp_version: 2, or use launch.accelerate: fsdp2",
        KEY, "trl#3582, trl#3317",
        covers=lambda it: it.way == "fsdp1" and it.form == "adapter" and it.vllm,
    ),
    Refusal(
        "{config} is {splitter}, and the trainer of {method} has no way to run under it",
        "use launch.accelerate: ddp or zero2",
        KEY, "trl 1.12",
        covers=lambda it: ("fsdp" if it.fsdp else it.way) in it.method.fails_under,
    ),
    Refusal(
        # TRL's own guard looks at its argument only, not at accelerate's file.
        "{config}: {method} generates, and cannot split sequences over GPUs (cp, sp)",
        "set both sizes to 1",
        KEY, "trl 1.12",
        covers=lambda it: it.splits_sequences and it.method.online,
    ),
)  # fmt: skip


def combination_problems(recipe: Recipe, layout: Layout, *, assumed: bool = False) -> list[Problem]:
    """Everything that does not go together. On an `assumed` machine nothing is said about what is installed."""
    run = Run(recipe, layout, assumed)
    problems = [problem for refusal in REFUSALS for problem in _refused(refusal, run)]
    return problems + [problem for condition in CONDITIONS for problem in condition.broken(run)]


def combination_notes(recipe: Recipe, layout: Layout) -> list[str]:
    """What a person should know of a combination that works."""
    place = combination_of(recipe, layout)
    if place.way == "zero3" and place.form == "adapter" and place.vllm:
        return [
            f"{layout.strategy.name} with an adapter and vLLM: for every sync each GPU holds the whole model for a "
            "moment (trl#5766); zero2 needs no more than that at any time"
        ]
    return []


def combination_of(recipe: Recipe, layout: Layout) -> Combination:
    """The run's place in the table."""
    strategy = layout.strategy
    return Combination(
        method=METHODS[recipe.method],
        form="adapter" if recipe.trains_adapter else "weights",
        bits=bits(recipe.model),
        way=way(strategy),
        rollouts=_rollouts(recipe),
        splits_sequences=strategy.size("cp") * strategy.size("sp") > 1,
    )


def bits(spec: ModelSpec) -> int:
    """Bits of a model's weights, of which only that matters here: 4, 8, or 16 for any that are not quantised."""
    values = spec.quantization or {}
    return 8 if values.get("load_in_8bit") is True else 4 if values.get("load_in_4bit") is True else 16


def way(strategy: Strategy) -> Way:
    """How a config spreads training."""
    if strategy.kind == "FSDP":
        if str(strategy.fsdp("version")) != "2":
            return "fsdp1"
        return "hsdp" if strategy.size("dp_replicate") > 1 else "fsdp2"
    stages: tuple[Way, ...] = ("zero0", "zero1", "zero2", "zero3")
    if strategy.kind == "DEEPSPEED":
        return stages[strategy.zero_stage]
    return "single" if strategy.single else "ddp"


def specs_of(recipe: Recipe) -> Iterator[tuple[str, ModelSpec]]:
    """The models of a recipe, by the section that names them."""
    for section in SECTIONS:
        spec = getattr(recipe, section)
        if spec is not None:
            yield section, spec


def _rollouts(recipe: Recipe) -> Rollouts:
    if not METHODS[recipe.method].online:
        return "none"
    return recipe.rollouts.mode if decide_backend(recipe) == "vllm" else "transformers"


def _refused(refusal: Refusal, run: Run) -> Iterator[Problem]:
    place = combination_of(run.recipe, run.layout)
    splitter = "FSDP" if place.fsdp else "ZeRO-3"
    message = refusal.message.format(config=run.strategy.name, splitter=splitter, method=place.method.name)
    if not refusal.frozen_too:
        if refusal.covers(place):
            yield Problem(message, refusal.fix, refusal.key)
        return
    for section, spec in specs_of(run.recipe):
        if refusal.covers(_with_bits(place, bits(spec))):
            yield Problem(message, refusal.fix, (section, *refusal.key[1:]))


def _with_bits(place: Combination, width: int) -> Combination:
    return Combination(place.method, place.form, width, place.way, place.rollouts, place.splits_sequences)


# --- conditions ------------------------------------------------------------------------------------------------------


def _storage(run: Run) -> Iterator[Problem]:
    """FSDP splits tensors of one floating type: packed bytes would stay whole on every GPU, with a mere warning."""
    for section, spec in specs_of(run.recipe) if run.strategy.kind == "FSDP" else ():
        values = spec.quantization or {}
        held = spec.dtype or "float32"
        stored = str(values.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch.")
        computed = str(values.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch.")
        if bits(spec) == 4 and not stored == computed == held:
            message = (
                f"FSDP splits 4-bit weights only where they are stored, computed and held in one floating type: here "
                f"bnb_4bit_quant_storage is {stored}, bnb_4bit_compute_dtype {computed} and {section}.dtype {held}"
            )
            yield Problem(message, "set all three to bfloat16", (section, "quantization"))


def _merged(run: Run) -> Iterator[Problem]:
    """A frozen model that is an adapter is merged in memory. (The trained one is merged on disk, before: start/.)"""
    if way(run.strategy) != "zero3":
        return
    frozen: list[tuple[ModelSpec, KeyPath]] = [
        (spec, (section, "path")) for section, spec in specs_of(run.recipe) if section != "model"
    ]
    rewards = enumerate(run.recipe.rewards)
    frozen += [(ModelSpec(path=each.use), ("rewards", index, "use")) for index, each in rewards]
    for spec, key in frozen:
        if adapter_folder(spec):
            message = f"{spec.path} is an adapter, and merging it needs whole weights, which ZeRO-3 splits"
            yield Problem(message, f"{_WHOLE}, or a model that is merged already", key)


def _takes_from_base(run: Run) -> Iterator[Problem]:
    """PiSSA and the like start by taking a part out of the base."""
    start = (run.recipe.peft or {}).get("init_lora_weights")
    if changes_base(run.recipe.peft) and combination_of(run.recipe, run.layout).splits_weights:
        message = f"`init_lora_weights: {start}` needs whole weights, and {run.strategy.name} splits them"
        yield Problem(message, f"{_WHOLE}, or init_lora_weights: true", ("peft", "init_lora_weights"))


def _device_map(run: Run) -> Iterator[Problem]:
    world = run.layout.world
    for section, spec in specs_of(run.recipe):
        if world > 1 and spec.init_kwargs.get("device_map") is not None:
            message = f"`{section}.init_kwargs.device_map` spreads a model over GPUs, and there are {world} processes"
            key = (section, "init_kwargs", "device_map")
            yield Problem(message, "leave it out: the launcher places the model", key)


def _reference_ahead(run: Run) -> Iterator[Problem]:
    method = METHODS[run.recipe.method]
    if method.precomputes_whole and way(run.strategy) == "zero3":
        name = "precompute_ref_log_probs"
        if argument(run.recipe, name, False):
            message = f"training.{name}: {method.name} computes them with whole weights, which ZeRO-3 splits"
            yield Problem(message, f"{_WHOLE}, or leave it out", ("training", name))


def _wrapped_layers(run: Run) -> Iterator[Problem]:
    """FSDP splits a model layer by layer; accelerate looks for the classes by name, once the model is loaded."""
    said = run.strategy.fsdp("transformer_layer_cls_to_wrap") if run.strategy.kind == "FSDP" else None
    names = said.split(",") if isinstance(said, str) else said if isinstance(said, list) else []
    spec = run.recipe.model
    found = layer_classes(read_model_config(spec.path, spec.revision)) if names and not spec.trust_remote_code else None
    if found is None:
        return
    for name in (str(each).strip() for each in names):
        if name not in found.all:
            near = ", ".join(found.layers) or nearest(name, found.all) or "leave it out"
            message = f"{run.strategy.name}: fsdp_transformer_layer_cls_to_wrap {name} is no class of {spec.path}"
            yield Problem(message, f"write {near}, or leave it out: the model's own layers are the default", KEY)


_STEPS_ON_CPU = ("adamw_torch", "adamw_torch_fused", "paged_adamw", "paged_adamw_32bit", "adagrad")
"""`training.optim` for which accelerate takes DeepSpeed's own of the same kind; for any other it takes Adam."""


def _optimizer_offload(run: Run) -> Iterator[Problem]:
    file: Mapping[str, Any] = run.strategy.deepspeed or {}
    optimizer = argument(run.recipe, "optim")
    if not run.strategy.offloads("optimizer") or "optimizer" in file or optimizer in _STEPS_ON_CPU:
        return
    if file.get("zero_force_ds_cpu_optimizer") is not False:
        message = f"{run.strategy.name} offloads the optimizer, and accelerate then puts DeepSpeed's Adam in its place"
        key = argument_key(run.recipe, ("optim",))
        yield Problem(f"training.optim {optimizer}: {message}", "use adamw_torch", key if len(key) > 1 else KEY)


def _toolkit(run: Run) -> Iterator[Problem]:
    """DeepSpeed compiles its Adam for the CPU at the start, on GPUs with nvcc."""
    if run.assumed or run.layout.device == "cpu" or not run.strategy.offloads("optimizer"):
        return
    wanted, found = read_torch_cuda(), read_nvcc()
    if wanted is None or (found is not None and same_cuda(found, wanted)):
        return
    has = f"nvcc here is {found}" if found else "there is no nvcc here"
    message = f"{run.strategy.name} offloads the optimizer, which DeepSpeed compiles with CUDA {wanted}, and {has}"
    yield Problem(message, f"install the CUDA {wanted} toolkit and set CUDA_HOME, or use fsdp2_offload", KEY)


def _installed(run: Run) -> Iterator[Problem]:
    if run.strategy.kind == "DEEPSPEED" and not run.assumed and importlib.util.find_spec("deepspeed") is None:
        message = f"launch.accelerate: {run.strategy.name} needs DeepSpeed, which is not installed"
        yield Problem(message, "pip install 'ptcli[deepspeed]', or use fsdp2", KEY)


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        "FSDP with 4-bit weights: `bnb_4bit_quant_storage`, `bnb_4bit_compute_dtype` and `dtype` are one floating type",
        "trl#1723, accelerate 1.15", _storage,
    ),
    Condition("ZeRO-3: a reference, reward model or teacher is no adapter that must be merged first", "peft", _merged),
    Condition("ZeRO-3 and FSDP: `peft.init_lora_weights` is none of PiSSA's kind", "peft", _takes_from_base),
    Condition("several processes: no `init_kwargs.device_map`", "transformers#31557", _device_map),
    Condition("ZeRO-3 with bco: no `precompute_ref_log_probs`", "trl 1.12", _reference_ahead),
    Condition(
        "FSDP: `fsdp_transformer_layer_cls_to_wrap` names classes of the model", "LLaMA-Factory#8279", _wrapped_layers
    ),
    Condition("ZeRO: DeepSpeed is installed", "accelerate 1.15", _installed),
    Condition("optimizer offload: `training.optim` is AdamW or Adagrad", "accelerate 1.15", _optimizer_offload),
    Condition("optimizer offload on GPUs: nvcc of torch's CUDA version", "DeepSpeed#1279, #4513", _toolkit),
)  # fmt: skip
