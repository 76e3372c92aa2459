"""The other side of every comparison: float64, one sequence at a time, no padding, loops that can be read.

Log-probabilities come from a copy of the model in float64 with the plain attention, and never from the batch, the mask,
the fused loss or the attention kernel that the trainer uses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt with its completion."""

    ids: tuple[int, ...]
    start: int
    """Index of the first token of the completion."""

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return len(self.ids) - self.start


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in float64, in a model of its own with the plain attention."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = "eager"
    copy = type(model)(config).to(torch.float64)
    copy.load_state_dict({name: tensor.detach().to(torch.float64) for name, tensor in model.state_dict().items()})
    return copy.eval()


def logits(model: PreTrainedModel, text: Text) -> list[list[float]]:
    """What the model gives at each position, shape (tokens, vocabulary): row t is about token t + 1."""
    with torch.no_grad():
        rows: list[list[float]] = model(input_ids=torch.tensor([text.ids])).logits[0].tolist()
    return rows


def log_softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    total = math.fsum(math.exp(value - top) for value in row)
    return [value - top - math.log(total) for value in row]


def log_probabilities(
    model: PreTrainedModel, text: Text, *, start: int | None = None, temperature: float = 1.0
) -> list[float]:
    """log p(x_t | x_<t) of each token of the completion, or of each from `start` on, in nats."""
    rows = logits(model, text)
    first = text.start if start is None else start
    return [log_softmax([z / temperature for z in rows[t - 1]])[text.ids[t]] for t in range(first, len(text.ids))]


def log_probability(model: PreTrainedModel, text: Text) -> float:
    """log p(completion | prompt), in nats."""
    return math.fsum(log_probabilities(model, text))


def log_probability_with_gradient(model: PreTrainedModel, text: Text) -> torch.Tensor:
    """The same as a scalar that remembers how it was made."""
    return log_probabilities_with_gradient(model, text).sum()


def log_probabilities_with_gradient(model: PreTrainedModel, text: Text) -> torch.Tensor:
    """One for each token of the completion."""
    spread = torch.log_softmax(model(input_ids=torch.tensor([text.ids])).logits[0], dim=-1)
    return torch.stack([spread[t - 1, text.ids[t]] for t in range(text.start, len(text.ids))])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def apart(found: Any, expected: float) -> float:
    """Difference, relative to the expected value where that is larger than one. `found` is a number or a scalar."""
    value = found.item() if isinstance(found, torch.Tensor) else float(found)
    return abs(value - expected) / max(1.0, abs(expected))


def gradients_apart(model: PreTrainedModel, other: PreTrainedModel, expected: torch.Tensor) -> float:
    """Largest difference over all weights between the gradients that `model` has and those of `expected` in `other`.

    Relative to the largest entry of the expected gradient.
    """
    expected.backward()
    wanted = {name: weight.grad for name, weight in other.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    size = max(float(gradient.abs().max()) for gradient in wanted.values())
    if size == 0 or found.keys() != wanted.keys():
        raise ValueError("the two losses do not depend on the same weights")
    return max(float((found[name].double() - wanted[name]).abs().max()) for name in wanted) / size


def falls(values: Sequence[float]) -> float:
    """How much the values fail to fall strictly from one to the next: 0.0 when they do."""
    rises = [after - before for before, after in itertools.pairwise(values)]
    return max(0.0, *rises) if all(rise != 0 for rise in rises) else math.inf
