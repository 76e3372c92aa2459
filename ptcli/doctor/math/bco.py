"""Binary classifier optimisation."""

from __future__ import annotations

from ptcli.doctor.math.identity import identity
from ptcli.doctor.math.reference import Text, apart, exact, log_probability, log_sigmoid, mean
from ptcli.doctor.math.trainers import Row, batch_of, chat, first_rows, load, make_trainer, move

BETA = 0.3


def _text(row: Row) -> Text:
    """The trainer ends a conversation with one more end token."""
    return chat(row["prompt"], row["completion"], end=True)


@identity(
    "bco-loss",
    "BCO loss = E[-log sigmoid(+-(beta log pi/ref - delta))], delta the mean of all rewards so far; the paper's is "
    "halfway between the means of the two kinds",
    source="Jung et al. 2024, arXiv:2404.04656",
    methods=("bco",),
)
def classifier() -> float:
    rows = first_rows("arithmetic-unpaired")
    trainer = make_trainer("bco", rows=rows, given={"ref_model": load()}, beta=BETA)
    before, seen, off = exact(trainer.ref_model), [], 0.0
    for seed in (1, 2):  # delta remembers the first step in the second
        move(trainer.model, seed=seed)
        now = exact(trainer.model)
        rewards = [BETA * (log_probability(now, _text(row)) - log_probability(before, _text(row))) for row in rows]
        seen += rewards
        shifted = [reward - mean(seen) for reward in rewards]
        signed = [each if row["label"] else -each for each, row in zip(shifted, rows, strict=True)]
        found = trainer.compute_loss(trainer.model, batch_of(trainer))
        off = max(off, apart(found, mean(-log_sigmoid(each) for each in signed)))
    return off
