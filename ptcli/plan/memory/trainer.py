"""What each trainer GPU holds of a recipe's models: the one that is trained and those beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ptcli.methods import METHODS, Batching, DatasetType, Head
from ptcli.plan.accelerate import Strategy
from ptcli.plan.arguments import argument, computes_in
from ptcli.plan.layout import Layout
from ptcli.plan.memory.adapters import Adapter, describe_adapter
from ptcli.plan.memory.sources import Model, find_model
from ptcli.plan.memory.training import (
    OPTIMIZERS,
    WIDTH,
    Optimizer,
    Shards,
    Widths,
    adapter_groups,
    decide_widths,
    frozen_bytes,
    fsdp_shards,
    trained_bytes,
    zero_shards,
)
from ptcli.plan.reference import has_reference, needs_own_reference
from ptcli.recipe.adapter_folders import adapter_folder
from ptcli.recipe.local_models import adapter_config
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.scorers import is_reward_model

_LENGTHS = ("max_completion_length", "max_new_tokens", "response_length", "max_length")
"""How long the sequences of a batch can be, of which the loss sees the logits."""
_SCORE: Head = "sequence_classification"


@dataclass(frozen=True)
class Held:
    """What is held on each trainer GPU."""

    items: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Bytes of each thing: weights, gradients, optimizer, reference and the like; those that take none left out."""
    parameters: int | None = None
    """Of the model that is trained, without an adapter."""
    trained: int | None = None
    """Parameters that are trained; None when unknown."""
    logits: int | None = None
    """Bytes of the logits of a batch of the greatest length; None where they are not made, or unknown."""
    unknown: tuple[str, ...] = ()
    """Models of which nothing is known here."""

    @property
    def bytes(self) -> int:
        """At least so many."""
        return sum(self.items.values())

    @property
    def largest(self) -> str | None:
        """The item that takes most."""
        return max(self.items, key=lambda name: self.items[name], default=None)


@dataclass(frozen=True)
class _Way:
    """How the launch holds and spreads numbers."""

    precision: str
    kind: str
    stage: int
    shards: Shards
    optimizer: Optimizer

    def widths(self, spec: ModelSpec, *, quantized: bool) -> Widths:
        return decide_widths(spec.dtype or "float32", self.precision, self.kind, self.stage, quantized=quantized)


def hold(recipe: Recipe, layout: Layout) -> Held:
    """What training a resolved recipe holds on each GPU from one step to the next."""
    way, policy = _way(recipe, layout), find_model(recipe.model, METHODS[recipe.method].head)
    items: dict[str, float] = {}
    unknown = [] if policy else [recipe.model.path]
    adapter = _adapter(recipe, policy) if policy and recipe.trains_adapter else None
    if policy is not None:
        items |= _policy(recipe, policy, adapter, way)
    for name, spec, head, trained in _beside(recipe):
        model = find_model(spec, head)
        if model is None:
            unknown.append(spec.path)
            continue
        items[name] = items.get(name, 0.0) + (_trained(spec, model, way) if trained else _frozen(spec, model, way))
    if adapter is not None and _copies_adapter(recipe):
        widths = way.widths(recipe.model, quantized=policy is not None and policy.quantization is not None)
        items["reference"] = widths.adapter * adapter.parameters / way.shards.weights
    return Held(
        items=MappingProxyType({name: int(size) for name, size in items.items() if size >= 1}),
        parameters=policy.architecture.parameters if policy else None,
        trained=_count_trained(recipe, policy, adapter),
        logits=_logits(recipe, policy, way) if policy else None,
        unknown=tuple(dict.fromkeys(unknown)),
    )


def count_weights(recipe: Recipe) -> tuple[int, int] | None:
    """Parameters of the model that is trained, without an adapter, and of what is trained; None when unknown."""
    policy = find_model(recipe.model, METHODS[recipe.method].head)
    adapter = _adapter(recipe, policy) if policy and recipe.trains_adapter else None
    trained = _count_trained(recipe, policy, adapter)
    return (policy.architecture.parameters, trained) if policy and trained is not None else None


# --- the model that is trained ---------------------------------------------------------------------------------------


def _policy(recipe: Recipe, model: Model, adapter: Adapter | None, way: _Way) -> dict[str, float]:
    widths = way.widths(recipe.model, quantized=model.quantization is not None)
    architecture = model.architecture
    if not recipe.trains_adapter:
        if model.quantization is not None:
            return {"weights": _frozen(recipe.model, model, way)}
        return trained_bytes([(architecture.weights, widths.trained)], widths, way.optimizer, way.shards)
    groups = adapter_groups(adapter, widths, quantized=model.quantization is not None) if adapter else []
    thawed = {weight.name for weight in adapter.unfrozen} if adapter else set()
    rest = replace(architecture, weights=tuple(each for each in architecture.weights if each.name not in thawed))
    items = trained_bytes(groups, widths, way.optimizer, way.shards)
    items["weights"] += frozen_bytes(rest, widths.frozen, model.quantization, way.shards)
    return items


def _adapter(recipe: Recipe, model: Model) -> Adapter | None:
    """The adapter that is trained: a new one, or the one that the model's path is."""
    head = METHODS[recipe.method].head
    if recipe.peft is not None:
        return describe_adapter(model.architecture, recipe.peft, head)
    folder = adapter_folder(recipe.model)
    config = adapter_config(folder) if folder else None
    if config is None:
        return None
    return describe_adapter(model.architecture, {**config, "type": config.get("peft_type", "")}, head)


def _count_trained(recipe: Recipe, model: Model | None, adapter: Adapter | None) -> int | None:
    if recipe.trains_adapter:
        return adapter.parameters if adapter else None
    return model.architecture.parameters if model else None


# --- the models beside it --------------------------------------------------------------------------------------------


def _beside(recipe: Recipe) -> Iterator[tuple[str, ModelSpec, Head, bool]]:
    """Item, model, head and whether it is trained, of every other model in memory."""
    reference = _reference(recipe)
    if reference is not None:
        yield "reference", reference, METHODS[recipe.method].head, False
    if recipe.teacher is not None:
        yield "teacher", recipe.teacher, "causal_lm", False
    if recipe.reward_model is not None:
        yield "reward model", recipe.reward_model, _SCORE, False
    if recipe.value_model is not None:
        yield "value model", recipe.value_model, _SCORE, True
    for reward in recipe.rewards:
        if is_reward_model(reward.use):
            yield "reward model", ModelSpec(path=reward.use, dtype=recipe.model.dtype), _SCORE, False


def _reference(recipe: Recipe) -> ModelSpec | None:
    """The second model that is the reference; None where there is none, or it is the policy with its adapter off."""
    if not has_reference(recipe) or argument(recipe, "precompute_ref_log_probs", False):
        return None
    if recipe.ref_model is not None:
        return recipe.ref_model
    second = needs_own_reference(recipe) or not recipe.trains_adapter or argument(recipe, "sync_ref_model", False)
    return recipe.model if second else None


def _copies_adapter(recipe: Recipe) -> bool:
    """Whether the reference is a frozen copy of the adapter that is trained on."""
    kept = has_reference(recipe) and recipe.model.adapter == "continue" and recipe.ref_model is None
    return kept and _reference(recipe) is None and not argument(recipe, "precompute_ref_log_probs", False)


def _frozen(spec: ModelSpec, model: Model, way: _Way) -> float:
    widths = way.widths(spec, quantized=model.quantization is not None)
    return frozen_bytes(model.architecture, widths.frozen, model.quantization, way.shards)


def _trained(spec: ModelSpec, model: Model, way: _Way) -> float:
    widths = way.widths(spec, quantized=False)
    weights = model.architecture.weights
    return sum(trained_bytes([(weights, widths.trained)], widths, way.optimizer, way.shards).values())


# --- the launch ------------------------------------------------------------------------------------------------------


def _way(recipe: Recipe, layout: Layout) -> _Way:
    strategy = layout.strategy
    return _Way(
        precision=computes_in(recipe),
        kind=strategy.kind,
        stage=strategy.zero_stage,
        shards=_shards(recipe, layout),
        optimizer=_optimizer(recipe, strategy),
    )


def _shards(recipe: Recipe, layout: Layout) -> Shards:
    strategy = layout.strategy
    if strategy.kind == "FSDP":
        storage = str((recipe.model.quantization or {}).get("bnb_4bit_quant_storage", "uint8"))
        size, offloads = _fsdp_size(strategy, layout), str(strategy.fsdp("offload_params")).lower() == "true"
        return fsdp_shards(size, offload=offloads, shards_quantized="float" in storage)
    if strategy.kind == "DEEPSPEED":
        return zero_shards(
            strategy.zero_stage,
            layout.world,
            offload_weights=strategy.offloads("param"),
            offload_optimizer=strategy.offloads("optimizer"),
        )
    return Shards()


def _fsdp_size(strategy: Strategy, layout: Layout) -> int:
    """GPUs over which FSDP shards: all, or those of one copy of the model (HSDP)."""
    if "NO_SHARD" in (strategy.fsdp("sharding_strategy"), strategy.fsdp("reshard_after_forward")):
        return 1
    return max(layout.world // strategy.size("dp_replicate"), 1)


def _optimizer(recipe: Recipe, strategy: Strategy) -> Optimizer:
    """The optimizer; a DeepSpeed file that names one of its own wins."""
    own = (strategy.deepspeed or {}).get("optimizer")
    if isinstance(own, Mapping):
        return OPTIMIZERS["adamw_torch" if "adam" in str(own.get("type", "")).lower() else "sgd"]
    found = OPTIMIZERS.get(str(argument(recipe, "optim", "")), Optimizer())
    sharded = strategy.kind in ("FSDP", "DEEPSPEED")  # there embeddings are not recognised as such
    return replace(found, wide_embeddings=False) if sharded else found


# --- logits ----------------------------------------------------------------------------------------------------------


def _logits(recipe: Recipe, model: Model, way: _Way) -> int | None:
    """One tensor of batch x length x vocabulary in the type that is computed in; the loss makes more such."""
    vocabulary, row = model.architecture.vocabulary, METHODS[recipe.method]
    length = next((argument(recipe, name) for name in _LENGTHS if argument(recipe, name) is not None), None)
    if vocabulary is None or not isinstance(length, int) or row.head != "causal_lm" or _reads_output_layer(recipe):
        return None
    pairs = row.datasets[0] is DatasetType.PREFERENCE or row.batching is Batching.PAIRS
    rows = int(argument(recipe, "per_device_train_batch_size", 8)) * (2 if pairs else 1)
    width = WIDTH.get(recipe.model.dtype or "float32", 2) if way.precision == "no" else 2
    return rows * length * vocabulary * width


def _reads_output_layer(recipe: Recipe) -> bool:
    """Whether the loss works on a few rows of the output at a time, and so never holds all logits."""
    reads: Any = METHODS[recipe.method].reads_output_layer
    liger = recipe.training.get("use_liger_kernel") is True
    chunked = recipe.training.get("loss_type") in (None, "chunked_nll")
    return reads == "always" or (liger and reads != "no") or (reads == "chunked" and chunked)
