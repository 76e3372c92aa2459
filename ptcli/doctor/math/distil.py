"""Distillation: the generalised Jensen-Shannon divergence of student and teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ptcli.doctor.math.identity import identity
from ptcli.doctor.math.reference import apart, exact, log_softmax, logits, mean
from ptcli.doctor.math.trainers import batch_of, chat, first_rows, load, make_trainer, move

_SOURCE = "Agarwal et al. 2023, arXiv:2306.13649, eq. 1"


def _divergence(of: Sequence[float], to: Sequence[float]) -> float:
    """KL(of || to) of two distributions given as logarithms."""
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(of, to, strict=True))


def _jensen_shannon(teacher: list[float], student: list[float], beta: float) -> float:
    """beta KL(P_T || M) + (1 - beta) KL(P_S || M), M = beta P_T + (1 - beta) P_S."""
    if beta in (0.0, 1.0):
        return _divergence(student, teacher) if beta else _divergence(teacher, student)
    mixture = [math.log(beta * math.exp(p) + (1 - beta) * math.exp(q)) for p, q in zip(teacher, student, strict=True)]
    return beta * _divergence(teacher, mixture) + (1 - beta) * _divergence(student, mixture)


def _apart(beta: float) -> float:
    trainer = _trainer(beta)
    teacher, student = exact(trainer.teacher_model), exact(trainer.model)
    terms = []
    for row in first_rows("arithmetic-messages"):
        text = chat(row["messages"][:1], row["messages"][1:])
        both = list(zip(logits(teacher, text), logits(student, text), strict=True))[text.start - 1 : -1]
        terms += [_jensen_shannon(log_softmax(theirs), log_softmax(ours), beta) for theirs, ours in both]
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), mean(terms))


def _trainer(beta: float) -> Any:
    """Student and teacher are two different models."""
    teacher = load()
    move(teacher, seed=1)
    return make_trainer("gkd", given={"teacher_model": teacher}, beta=beta)


@identity(
    "gkd-loss",
    "GKD loss = mean over completion tokens of beta KL(P_T||M) + (1-beta) KL(P_S||M), M = beta P_T + (1-beta) P_S",
    source=_SOURCE,
    methods=("gkd",),
)
def in_between() -> float:
    return max(_apart(0.5), _apart(0.2))


@identity(
    "gkd-limits",
    "GKD with beta 0 is KL(teacher || student), with beta 1 KL(student || teacher)",
    source=f"{_SOURCE}, as TRL takes its limits",
    methods=("gkd",),
)
def limits() -> float:
    return max(_apart(0.0), _apart(1.0))
