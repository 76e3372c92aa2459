"""The weights of a model from its `config.json` alone: a name and a shape for each, and what its KV cache keeps.

A model type is a row of `FAMILIES`. Names and shapes are those of the transformers classes of the pinned version
(`named_parameters()`, in which a tied head does not appear a second time); a test compares them for every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, Literal

from ptcli.methods import Head

Part = Literal["embeddings", "attention", "mlp", "experts", "router", "norms", "head"]
Bias = bool | str
"""Whether a layer has a bias, or the config key that says so."""

_HEAD_LABELS: Mapping[Head, int] = MappingProxyType({"sequence_classification": 1, "token_classification": 2})
"""Outputs of the heads that ptcli puts on: a score, or right and wrong."""


@dataclass(frozen=True)
class Weight:
    """One parameter of a model."""

    name: str
    """As in `named_parameters()`."""
    shape: tuple[int, ...]
    part: Part
    linear: bool = False
    """True for the weight of an `nn.Linear`: what can be quantised, and what adapters go on."""

    @property
    def size(self) -> int:
        """Values in it."""
        return prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that it belongs to."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Cache:
    """What the KV cache keeps for one layer."""

    heads: int
    """Key-value heads."""
    width: int
    """Values a head keeps of each token, for the key and again for the value."""
    window: int | None
    """Tokens that are kept at most; None: all."""


@dataclass(frozen=True)
class Architecture:
    """A model's weights and caches."""

    model_type: str
    weights: tuple[Weight, ...]
    caches: tuple[Cache, ...] = ()
    vocabulary: int | None = None
    tied: bool = False
    """True when the output layer is the embeddings."""

    @property
    def parameters(self) -> int:
        """Values in all weights; one that is used twice counts once."""
        return sum(weight.size for weight in self.weights)

    def parts(self) -> dict[Part, int]:
        """Parameters of each part that the model has."""
        counts: dict[Part, int] = {}
        for weight in self.weights:
            counts[weight.part] = counts.get(weight.part, 0) + weight.size
        return counts


@dataclass(frozen=True)
class Family:
    """How the models of one type are built."""

    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Values of its config class, which a `config.json` may leave out."""
    qkv_bias: Bias = False
    out_bias: Bias = False
    mlp_bias: Bias = False
    qk_norm: Literal["none", "head", "all"] = "none"
    """Norms of queries and keys: none, one of a head's width, or one over all heads."""
    sinks: bool = False
    """A learned value a head beside the keys."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """Norms of a layer."""
    fused: bool = False
    """Queries, keys and values are one matrix, and so are gate and up."""
    experts: Literal["none", "plain", "shared", "biased"] = "none"
    """Mixture of experts: plain, with a shared expert besides, or with biases and transposed matrices."""
    window: Literal["never", "every layer", "if wanted", "upper layers", "by type"] = "never"
    """Which layers look back no further than `sliding_window`, where `layer_types` does not say: none, all, all or
    those from `max_window_layers` on where `use_sliding_window` is set, or all but every n-th."""
    full_every: int = 2
    """Every n-th layer looks back all the way."""


def _family(defaults: Mapping[str, Any] | None = None, **traits: Any) -> Family:
    return Family(MappingProxyType({"tie_word_embeddings": False} | dict(defaults or {})), **traits)


_FOUR_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
_GEMMA: dict[str, Any] = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA2: dict[str, Any] = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "sliding_window": 4096,
} | _GEMMA  # fmt: skip

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": _family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
        "granite": _family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
        "mistral": _family({"num_key_value_heads": 8, "sliding_window": 4096}, window="every layer"),
        "qwen2": _family({"max_window_layers": 28, "sliding_window": 4096}, qkv_bias=True, window="upper layers"),
        "qwen3": _family(
            {"head_dim": 128, "max_window_layers": 28, "sliding_window": 4096},
            qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", window="upper layers",
        ),
        "smollm3": _family(
            {
                "tie_word_embeddings": True, "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008,
                "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
            },
            qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", window="if wanted",
        ),
        "gemma": _family(_GEMMA, qkv_bias="attention_bias", out_bias="attention_bias"),
        "gemma2": _family(
            {"vocab_size": 256000} | _GEMMA2,
            qkv_bias="attention_bias", out_bias="attention_bias", norms=_FOUR_NORMS, window="by type",
        ),
        "gemma3_text": _family(
            {"vocab_size": 262208} | _GEMMA2,
            qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", norms=_FOUR_NORMS, window="by type",
            full_every=6,
        ),
        "phi3": _family(fused=True, window="every layer"),
        "olmo2": _family(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="all", norms=_AFTER),
        "olmo3": _family(
            {"sliding_window": 4096},
            qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="all", norms=_AFTER, window="by type",
            full_every=4,
        ),
        "mixtral": _family({"num_key_value_heads": 8}, experts="plain", window="every layer"),
        "qwen2_moe": _family(
            {"qkv_bias": True, "max_window_layers": 28, "sliding_window": 4096},
            qkv_bias="qkv_bias", experts="shared", window="if wanted",
        ),
        "qwen3_moe": _family(
            {"num_key_value_heads": 4, "sliding_window": 4096},
            qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", experts="plain", window="if wanted",
        ),
        "gpt_oss": _family(
            {"attention_bias": True, "head_dim": 64, "sliding_window": 128},
            qkv_bias="attention_bias", out_bias="attention_bias", sinks=True, experts="biased", window="by type",
        ),
    }
)  # fmt: skip
"""Every model type whose weights can be counted from its config."""


@dataclass(frozen=True)
class _Sizes:
    """The numbers of a config, with all that it leaves out filled in."""

    family: Family
    config: Mapping[str, Any]
    hidden: int
    layers: int
    vocabulary: int
    heads: int
    key_values: int
    width: int
    """Of a head."""

    def number(self, *names: str) -> int:
        """The first of these keys that the config has. Raises KeyError for none, ValueError for no count."""
        name = next((name for name in names if self.config.get(name) is not None), names[0])
        return _count(self.config[name])

    def has(self, bias: Bias) -> bool:
        """Whether there is this bias."""
        return bool(self.config.get(bias, False)) if isinstance(bias, str) else bias


def describe_config(config: Mapping[str, Any] | None, head: Head = "causal_lm") -> Architecture | None:
    """The model that transformers makes of a `config.json`, with this head; None for a type that has no row, for one
    of text and images, and where the config lacks what it needs."""
    model_type = (config or {}).get("model_type")
    family = FAMILIES.get(str(model_type))
    if config is None or family is None or "vision_config" in config:
        return None
    try:
        sizes = _read(family, {**family.defaults, **config})
        weights = tuple(_weights(sizes, head))
        caches = tuple(_caches(sizes))
    except (KeyError, TypeError, ValueError):
        return None
    return Architecture(str(model_type), weights, caches, sizes.vocabulary, _tied(sizes))


def describe_shapes(shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> Architecture:
    """A model of which only the tensors in its files are known: their names and shapes."""
    weights = tuple(Weight(name, shape, *_guess(name, shape)) for name, shape in shapes.items())
    return Architecture("", weights, tied=tied)


def _guess(name: str, shape: tuple[int, ...]) -> tuple[Part, bool]:
    """Part of a tensor, and whether it is a linear layer's weight, by its name."""
    if any(word in name for word in ("embed", "wte.", "wpe.")):
        return "embeddings", False
    if len(shape) == 1:
        return "norms", False
    part: Part = "attention" if "attn" in name or "attention" in name else "mlp"
    return ("head" if "lm_head" in name or "score" in name else part), name.endswith(".weight") and len(shape) == 2


def _read(family: Family, config: Mapping[str, Any]) -> _Sizes:
    hidden, heads = _count(config["hidden_size"]), _count(config["num_attention_heads"])
    key_values, width = config.get("num_key_value_heads"), config.get("head_dim")
    return _Sizes(
        family=family,
        config=config,
        hidden=hidden,
        layers=_count(config["num_hidden_layers"]),
        vocabulary=_count(config["vocab_size"]),
        heads=heads,
        key_values=heads if key_values is None else _count(key_values),
        width=hidden // heads if width is None else _count(width),
    )


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(value)
    return value


def _tied(sizes: _Sizes) -> bool:
    return bool(sizes.config.get("tie_word_embeddings"))


def _weights(sizes: _Sizes, head: Head) -> Iterator[Weight]:
    yield Weight("model.embed_tokens.weight", (sizes.vocabulary, sizes.hidden), "embeddings")
    for index in range(sizes.layers):
        place = f"model.layers.{index}"
        yield from _attention(sizes, f"{place}.self_attn")
        yield from _feed_forward(sizes, f"{place}.mlp", index)
        yield from (_norm(f"{place}.{name}", sizes.hidden) for name in sizes.family.norms)
    yield _norm("model.norm", sizes.hidden)
    yield from _output(sizes, head)


def _output(sizes: _Sizes, head: Head) -> Iterator[Weight]:
    labels = _HEAD_LABELS.get(head)
    if labels is not None:
        yield from _linear("score", labels, sizes.hidden, "head", bias=head == "token_classification")
    elif not _tied(sizes):
        yield from _linear("lm_head", sizes.vocabulary, sizes.hidden, "head")


def _attention(sizes: _Sizes, place: str) -> Iterator[Weight]:
    queries, keys, family = sizes.heads * sizes.width, sizes.key_values * sizes.width, sizes.family
    bias = sizes.has(family.qkv_bias)
    if family.fused:
        yield from _linear(f"{place}.qkv_proj", queries + 2 * keys, sizes.hidden, "attention", bias=bias)
    else:
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from _linear(f"{place}.{name}", rows, sizes.hidden, "attention", bias=bias)
    yield from _linear(f"{place}.o_proj", sizes.hidden, queries, "attention", bias=sizes.has(family.out_bias))
    if family.qk_norm != "none":
        per_head = family.qk_norm == "head"
        yield _norm(f"{place}.q_norm", sizes.width if per_head else queries)
        yield _norm(f"{place}.k_norm", sizes.width if per_head else keys)
    if family.sinks:
        yield Weight(f"{place}.sinks", (sizes.heads,), "attention")


def _feed_forward(sizes: _Sizes, place: str, index: int) -> Iterator[Weight]:
    if _is_sparse(sizes, index):
        yield from _experts(sizes, place)
    else:
        yield from _gated(sizes, place, sizes.number("intermediate_size"))


def _is_sparse(sizes: _Sizes, index: int) -> bool:
    """Whether the layer is a mixture: the Qwen ones have dense layers between where the config says so."""
    if sizes.family.experts == "none":
        return False
    dense, step = sizes.config.get("mlp_only_layers") or (), sizes.config.get("decoder_sparse_step") or 1
    return index not in dense and (index + 1) % step == 0


def _gated(sizes: _Sizes, place: str, inner: int) -> Iterator[Weight]:
    """The gated feed-forward layer: down(act(gate(x)) * up(x))."""
    bias = sizes.has(sizes.family.mlp_bias)
    if sizes.family.fused:
        yield from _linear(f"{place}.gate_up_proj", 2 * inner, sizes.hidden, "mlp", bias=bias)
    else:
        for name in ("gate_proj", "up_proj"):
            yield from _linear(f"{place}.{name}", inner, sizes.hidden, "mlp", bias=bias)
    yield from _linear(f"{place}.down_proj", sizes.hidden, inner, "mlp", bias=bias)


def _experts(sizes: _Sizes, place: str) -> Iterator[Weight]:
    """Experts as transformers 5 holds them: all of a layer's in one tensor."""
    count = sizes.number("num_experts", "num_local_experts")
    inner = sizes.number("moe_intermediate_size", "intermediate_size")
    kind, hidden = sizes.family.experts, sizes.hidden
    router = "router" if kind == "biased" else "gate"
    yield Weight(f"{place}.{router}.weight", (count, hidden), "router")
    up, down = (count, 2 * inner, hidden), (count, hidden, inner)
    if kind == "biased":
        up, down = (count, hidden, 2 * inner), (count, inner, hidden)
        yield Weight(f"{place}.{router}.bias", (count,), "router")
        yield Weight(f"{place}.experts.gate_up_proj_bias", (count, 2 * inner), "experts")
        yield Weight(f"{place}.experts.down_proj_bias", (count, hidden), "experts")
    yield Weight(f"{place}.experts.gate_up_proj", up, "experts")
    yield Weight(f"{place}.experts.down_proj", down, "experts")
    if kind == "shared":
        yield from _gated(sizes, f"{place}.shared_expert", sizes.number("shared_expert_intermediate_size"))
        yield from _linear(f"{place}.shared_expert_gate", 1, hidden, "router")


def _linear(place: str, rows: int, columns: int, part: Part, *, bias: bool = False) -> Iterator[Weight]:
    yield Weight(f"{place}.weight", (rows, columns), part, linear=True)
    if bias:
        yield Weight(f"{place}.bias", (rows,), part)


def _norm(place: str, width: int) -> Weight:
    return Weight(f"{place}.weight", (width,), "norms")


def _caches(sizes: _Sizes) -> Iterator[Cache]:
    window = sizes.config.get("sliding_window")
    for index in range(sizes.layers):
        kept = _count(window) if window is not None and _looks_back(sizes, index) else None
        yield Cache(sizes.key_values, sizes.width, kept)


def _looks_back(sizes: _Sizes, index: int) -> bool:
    """Whether the layer looks back no further than the window."""
    family, config = sizes.family, sizes.config
    types = config.get("layer_types")
    if isinstance(types, list) and index < len(types):
        return types[index] == "sliding_attention"
    if family.window in ("if wanted", "upper layers"):
        first = config.get("max_window_layers") or 0 if family.window == "upper layers" else 0
        return bool(config.get("use_sliding_window")) and index >= first
    if family.window == "by type":
        return (index + 1) % _count(config.get("sliding_window_pattern", family.full_every)) != 0
    return family.window == "every layer"
