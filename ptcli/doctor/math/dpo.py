"""Direct preference optimisation."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel

from ptcli.doctor.math.identity import identity
from ptcli.doctor.math.reference import (
    Text,
    apart,
    exact,
    falls,
    gradients_apart,
    log_probabilities,
    log_probability,
    log_probability_with_gradient,
    log_sigmoid,
    mean,
    sigmoid,
)
from ptcli.doctor.math.trainers import batch_of, first_rows, make_trainer, move, pairs

BETA = 0.3
_SOURCE = "Rafailov et al. 2023, arXiv:2305.18290"


def _pairs() -> list[tuple[Text, Text]]:
    return pairs(first_rows("arithmetic-preference"))


def _ratios(trainer: Any) -> list[tuple[float, float]]:
    """log pi/pi_ref of the chosen and of the rejected completion of each pair."""
    now, before = exact(trainer.model), exact(trainer.ref_model)
    return [(_ratio(now, before, good), _ratio(now, before, bad)) for good, bad in _pairs()]


def _ratio(now: PreTrainedModel, before: PreTrainedModel, text: Text) -> float:
    return log_probability(now, text) - log_probability(before, text)


def _expected(trainer: Any) -> float:
    return mean(-log_sigmoid(BETA * (chosen - rejected)) for chosen, rejected in _ratios(trainer))


@identity(
    "dpo-start",
    "DPO loss = ln 2 while the policy is its reference",
    source=f"{_SOURCE}, eq. 7",
    methods=("dpo",),
    tolerance=1e-6,
)
def start() -> float:
    trainer = make_trainer("dpo", beta=BETA)
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), math.log(2))


@identity(
    "dpo-sigmoid",
    "DPO loss = -log sigmoid(beta ((log pi_w - log ref_w) - (log pi_l - log ref_l))), mean over pairs",
    source=f"{_SOURCE}, eq. 7",
    methods=("dpo",),
)
def sigmoid_loss() -> float:
    trainer = make_trainer("dpo", beta=BETA)
    move(trainer.model, seed=1)
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), _expected(trainer))


@identity(
    "dpo-precomputed",
    "the same loss when the reference's log-probabilities are computed before training",
    source=f"{_SOURCE}, eq. 7",
    methods=("dpo",),
)
def precomputed_reference() -> float:
    trainer = make_trainer("dpo", beta=BETA, precompute_ref_log_probs=True)
    batch, before = batch_of(trainer), exact(trainer.model)
    move(trainer.model, seed=1)
    found = trainer.compute_loss(trainer.model, batch)
    return apart(found, _expected(SimpleNamespace(model=trainer.model, ref_model=before)))


@identity(
    "dpo-ipo",
    "IPO loss = ((h_w/|y_w| - h_l/|y_l|) - 1/(2 beta))^2, h the log ratios; the paper has sums, TRL means over tokens",
    source="Azar et al. 2023, arXiv:2310.12036, eq. 17",
    methods=("dpo",),
)
def ipo_loss() -> float:
    trainer = make_trainer("dpo", beta=BETA, loss_type="ipo")
    move(trainer.model, seed=1)
    terms = []
    for (chosen, rejected), (good, bad) in zip(_ratios(trainer), _pairs(), strict=True):
        terms.append((chosen / good.length - rejected / bad.length - 1 / (2 * BETA)) ** 2)
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), mean(terms))


@identity(
    "dpo-falls",
    "DPO loss falls strictly as log pi(chosen) rises and all else stays, and is what the formula gives there",
    source=f"{_SOURCE}, eq. 7",
    methods=("dpo",),
)
def falls_with_the_chosen() -> float:
    return _along([0.0, 0.5, 1.0, 2.0, 4.0])


@identity(
    "dpo-wrong-way",
    "DPO loss exceeds ln 2, and rises strictly, as log pi(chosen) falls",
    source=f"{_SOURCE}, eq. 7",
    methods=("dpo",),
)
def rises_the_wrong_way() -> float:
    return _along([-4.0, -2.0, -1.0, -0.5, 0.0])


def _along(raises: list[float]) -> float:
    """The losses for raised logits of the chosen tokens: how far they fail to fall, or are from the formula."""
    trainer = make_trainer("dpo", beta=BETA)
    batch = batch_of(trainer)
    before, texts = exact(trainer.model), _pairs()
    losses, off = [], 0.0
    for by in raises:
        losses.append(float(trainer.compute_loss(Leaning(trainer.model, batch, by), batch)))
        gains = [_gain(before, good, by) for good, _ in texts]
        off = max(off, apart(losses[-1], mean(-log_sigmoid(BETA * gain) for gain in gains)))
    return max(falls(losses), off)


def _gain(model: PreTrainedModel, text: Text, by: float) -> float:
    """What log p of a text gains when the logit of each of its tokens is raised: p -> p e^by / (1 + p (e^by - 1))."""
    return math.fsum(by - math.log1p(math.exp(each) * math.expm1(by)) for each in log_probabilities(model, text))


class Leaning(torch.nn.Module):
    """The policy with the logits of the chosen completions' own tokens raised; the rejected half is left alone."""

    def __init__(self, model: PreTrainedModel, batch: dict[str, torch.Tensor], by: float) -> None:
        super().__init__()
        self.policy, self.batch, self.by = model, batch, by

    def forward(self, **inputs: Any) -> Any:
        outputs = self.policy(**inputs)
        ids, completion = self.batch["input_ids"], self.batch["completion_mask"].bool().clone()
        completion[len(ids) // 2 :] = False
        raised = outputs.logits.clone()
        for row, token in completion.nonzero().tolist():
            raised[row, token - 1, ids[row, token]] += self.by
        outputs.logits = raised
        return outputs


@identity(
    "dpo-gradient",
    "gradient = -beta E[sigmoid(r_l - r_w) (grad log pi_w - grad log pi_l)], r = beta log pi/pi_ref",
    source=f"{_SOURCE}, section 4",
    methods=("dpo",),
    tolerance=1e-4,
)
def gradient() -> float:
    trainer = make_trainer("dpo", beta=BETA)
    move(trainer.model, seed=1)
    policy, terms = exact(trainer.model), []
    for (chosen, rejected), (good, bad) in zip(_ratios(trainer), _pairs(), strict=True):
        weight = sigmoid(BETA * (rejected - chosen))
        difference = log_probability_with_gradient(policy, good) - log_probability_with_gradient(policy, bad)
        terms.append(-BETA * weight * difference)
    trainer.compute_loss(trainer.model, batch_of(trainer)).backward()
    return gradients_apart(trainer.model, policy, torch.stack(terms).mean())
