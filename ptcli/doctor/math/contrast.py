"""Preference losses without a reference model: ORPO, CPO and SimPO."""

from __future__ import annotations

import math
from typing import Any

from ptcli.doctor.math.identity import identity
from ptcli.doctor.math.reference import Text, apart, exact, log_probabilities, log_sigmoid, mean
from ptcli.doctor.math.trainers import batch_of, first_rows, make_trainer, move, pairs

BETA, ALPHA, GAMMA = 0.3, 0.6, 0.5


def _pairs() -> list[tuple[Text, Text]]:
    """These trainers end a conversation with one more end token."""
    return pairs(first_rows("arithmetic-preference"), end=True)


def _moved(method: str, **arguments: Any) -> Any:
    trainer = make_trainer(method, beta=BETA, **arguments)
    move(trainer.model, seed=1)
    return trainer


def _likelihood_loss(model: Any, *, whole: bool) -> float:
    """-mean log p over the tokens of all chosen completions, or of the conversations as a whole."""
    texts = [good for good, _ in _pairs()]
    return mean(-each for text in texts for each in log_probabilities(model, text, start=1 if whole else None))


def _log_odds(log_p: float) -> float:
    """log p/(1 - p)."""
    return log_p - math.log(-math.expm1(log_p))


@identity(
    "orpo-loss",
    "ORPO loss = NLL(chosen) - beta E[log sigmoid(log odds_w - log odds_l)], p the mean token probability; TRL's "
    "NLL is over prompt and completion",
    source="Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7",
    methods=("orpo",),
)
def odds_ratio() -> float:
    trainer = _moved("orpo")
    model, terms = exact(trainer.model), []
    for good, bad in _pairs():
        chosen, rejected = (_log_odds(mean(log_probabilities(model, text))) for text in (good, bad))
        terms.append(log_sigmoid(chosen - rejected))
    expected = _likelihood_loss(model, whole=True) - BETA * mean(terms)
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)


@identity(
    "cpo-loss",
    "CPO loss = -E[log sigmoid(beta (log pi_w - log pi_l))] + alpha NLL(chosen); the paper's NLL is a sum a "
    "sequence, TRL's a mean over tokens",
    source="Xu et al. 2024, arXiv:2401.08417, section 3",
    methods=("cpo",),
)
def contrastive() -> float:
    trainer = _moved("cpo", cpo_alpha=ALPHA)
    model = exact(trainer.model)
    sums = [tuple(math.fsum(log_probabilities(model, text)) for text in pair) for pair in _pairs()]
    preferred = mean(-log_sigmoid(BETA * (good - bad)) for good, bad in sums)
    expected = preferred + ALPHA * _likelihood_loss(model, whole=False)
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)


@identity(
    "cpo-simpo",
    "SimPO loss (loss_type simpo, cpo_alpha 0) = -E[log sigmoid(beta (log pi_w/|y_w| - log pi_l/|y_l|) - gamma)]",
    source="Meng et al. 2024, arXiv:2405.14734, eq. 6",
    methods=("cpo",),
)
def simple() -> float:
    trainer = _moved("cpo", loss_type="simpo", cpo_alpha=0.0, simpo_gamma=GAMMA)
    model = exact(trainer.model)
    means = [tuple(mean(log_probabilities(model, text)) for text in pair) for pair in _pairs()]
    expected = mean(-log_sigmoid(BETA * (good - bad) - GAMMA) for good, bad in means)
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)
