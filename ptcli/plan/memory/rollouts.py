"""Bytes that vLLM holds on each rollout GPU, and how many sequences it can write at a time.

Source: PagedAttention (Kwon et al., 2023), section 3: for each token a key and a value of every layer and key-value
head. The KV cache gets what `gpu_memory_utilization` leaves after the weights; what vLLM takes for activations and CUDA
graphs is not in it, so that real caches are smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

from ptcli.plan.memory.architecture import Architecture, Cache


@dataclass(frozen=True)
class Engine:
    """How one engine of vLLM holds the model."""

    share: int
    """Bytes of each GPU that it may take."""
    width: float
    """Bytes of a weight."""
    cache_width: float
    """Bytes of a value in the KV cache."""
    tensor: int = 1
    pipeline: int = 1
    max_model_len: int | None = None
    """Longest sequence in tokens; None when it is unknown."""


@dataclass(frozen=True)
class Room:
    """What an engine's GPUs are filled with; bytes on each."""

    weights: int
    cache: int
    """At most, for the KV cache; negative where the weights alone are too large."""
    token: int
    """A token of a short sequence takes so much; 0 where the model's layers are unknown."""
    sequence: int | None
    """The longest sequence takes so much; None when unknown."""

    @property
    def tokens(self) -> int | None:
        """Tokens of short sequences that the KV cache can hold at most."""
        return max(self.cache, 0) // self.token if self.token else None

    @property
    def sequences(self) -> float | None:
        """Longest sequences that can be written at a time at most."""
        return max(self.cache, 0) / self.sequence if self.sequence else None


def fill(architecture: Architecture, engine: Engine) -> Room:
    """What is where on each of the engine's GPUs."""
    weights = int(architecture.parameters * engine.width / (engine.tensor * engine.pipeline))
    length = engine.max_model_len
    known = length is not None and bool(architecture.caches)
    return Room(
        weights=weights,
        cache=engine.share - weights,
        token=_kept(architecture, engine, 1),
        sequence=_kept(architecture, engine, length) if known and length is not None else None,
    )


def _kept(architecture: Architecture, engine: Engine, tokens: int) -> int:
    """Bytes of a sequence of so many tokens on a GPU. Heads are split over `tensor` GPUs, of which several hold the
    same one where there are fewer heads; layers over `pipeline`."""
    values = sum(_values(cache, engine.tensor, tokens) for cache in architecture.caches)
    return int(values * engine.cache_width / engine.pipeline)


def _values(cache: Cache, tensor: int, tokens: int) -> int:
    heads = max(cache.heads // tensor, 1)
    return 2 * heads * cache.width * (tokens if cache.window is None else min(tokens, cache.window))
