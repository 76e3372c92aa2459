"""Kahneman-Tversky optimisation."""

from __future__ import annotations

from typing import Any

from ptcli.doctor.math.identity import Unexercised, identity
from ptcli.doctor.math.reference import Text, apart, exact, log_probability, mean, sigmoid
from ptcli.doctor.math.trainers import batch_of, chat, first_rows, make_trainer, move

BETA, DESIRABLE, UNDESIRABLE = 0.3, 1.3, 0.7
_SOURCE = "Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7"
_DATA = "arithmetic-unpaired"


def _trainer() -> Any:
    return make_trainer("kto", beta=BETA, desirable_weight=DESIRABLE, undesirable_weight=UNDESIRABLE)


def _texts() -> list[Text]:
    return [chat(row["prompt"], row["completion"]) for row in first_rows(_DATA)]


def _mismatched() -> list[Text]:
    """Each prompt with the completion of the row before it, as the paper estimates z_0 within a batch."""
    rows = first_rows(_DATA)
    return [chat(row["prompt"], before["completion"]) for row, before in zip(rows, rows[-1:] + rows[:-1], strict=True)]


def _divergence(now: Any, before: Any) -> float:
    """Mean of log pi/pi_ref over the mismatched rows, before it is clamped at zero."""
    return mean(log_probability(now, text) - log_probability(before, text) for text in _mismatched())


def _expected(now: Any, before: Any) -> float:
    """E[lambda_y - v(x, y)], v = lambda_D sigmoid(beta (r - z_0)) or lambda_U sigmoid(beta (z_0 - r))."""
    zero = max(0.0, _divergence(now, before))
    terms = []
    for text, row in zip(_texts(), first_rows(_DATA), strict=True):
        ratio = log_probability(now, text) - log_probability(before, text)
        weight, gain = (DESIRABLE, ratio - zero) if row["label"] else (UNDESIRABLE, zero - ratio)
        terms.append(weight - weight * sigmoid(BETA * gain))
    return mean(terms)


def _apart(above: bool) -> float:
    """The deviation for the first random policy whose divergence lies on this side of zero."""
    for seed in range(1, 20):
        trainer = _trainer()
        move(trainer.model, seed=seed, by=0.15)
        now, before = exact(trainer.model), exact(trainer.ref_model)
        if (_divergence(now, before) > 0) == above:
            found = trainer.compute_loss(trainer.model, batch_of(trainer))
            return apart(found, _expected(now, before))
    raise Unexercised(f"no policy was found whose divergence is {'above' if above else 'below'} zero")


@identity(
    "kto-loss",
    "KTO loss = E[lambda_y (1 - sigmoid(+-beta (log pi/ref - z_0)))], z_0 = max(0, mean log pi/ref of mismatched rows)",
    source=_SOURCE,
    methods=("kto",),
)
def above_its_reference() -> float:
    return _apart(above=True)


@identity(
    "kto-clamp",
    "the same where the mismatched rows have become less likely: z_0 = 0",
    source=_SOURCE,
    methods=("kto",),
)
def below_its_reference() -> float:
    return _apart(above=False)


@identity(
    "kto-start",
    "KTO loss = mean of lambda_y / 2 while the policy is its reference",
    source=_SOURCE,
    methods=("kto",),
    tolerance=1e-6,
)
def start() -> float:
    trainer = _trainer()
    expected = mean((DESIRABLE if row["label"] else UNDESIRABLE) / 2 for row in first_rows(_DATA))
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)
