"""Models that score: the reward model of whole completions, and the process reward model of steps."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import PreTrainedModel

from ptcli.doctor.math.identity import identity
from ptcli.doctor.math.reference import Text, apart, exact, log_sigmoid, log_softmax, mean
from ptcli.doctor.math.trainers import (
    Row,
    batch_of,
    first_rows,
    load,
    make_trainer,
    move,
    pairs,
    tokenizer,
)

CENTERING = 0.1
_BRADLEY_TERRY = "Ouyang et al. 2022, arXiv:2203.02155, eq. 1 (Bradley-Terry)"


def _preferences(*, margins: bool = False) -> list[Row]:
    drawn = random.Random(0)
    extra = [{"margin": drawn.uniform(0.0, 2.0)} if margins else {} for _ in range(6)]
    return [row | more for row, more in zip(first_rows("arithmetic-preference"), extra, strict=True)]


def _trainer(rows: list[Row], **arguments: Any) -> Any:
    trainer = make_trainer("reward", rows=rows, model=load("SequenceClassification", num_labels=1), **arguments)
    move(trainer.model, seed=1)
    return trainer


def _scores(model: PreTrainedModel, rows: list[Row]) -> list[tuple[float, float]]:
    both = pairs(rows)
    return [(_score(model, good), _score(model, bad)) for good, bad in both]


def _score(model: PreTrainedModel, text: Text) -> float:
    """The head's product with the hidden state of the last token, summed one weight at a time."""
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([text.ids])).last_hidden_state[0, -1].tolist()
    weights = model.score.weight[0].tolist()
    return sum(weight * value for weight, value in zip(weights, hidden, strict=True))


def _reward_apart(rows: list[Row], centering: float = 0.0, **arguments: Any) -> float:
    trainer = _trainer(rows, **arguments)
    scores = _scores(exact(trainer.model), rows)
    expected = mean(
        -log_sigmoid(good - bad - row.get("margin", 0.0)) for (good, bad), row in zip(scores, rows, strict=True)
    )
    expected += centering * mean((good + bad) ** 2 for good, bad in scores)
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)


@identity(
    "reward-bradley-terry",
    "reward model loss = -E[log sigmoid(r_w - r_l)], r the score of the last token",
    source=_BRADLEY_TERRY,
    methods=("reward",),
)
def bradley_terry() -> float:
    return _reward_apart(_preferences())


@identity(
    "reward-margin",
    "with a margin column the loss is -E[log sigmoid(r_w - r_l - m)]",
    source="Touvron et al. 2023, arXiv:2307.09288, eq. 2",
    methods=("reward",),
)
def margin() -> float:
    return _reward_apart(_preferences(margins=True))


@identity(
    "reward-centering",
    "center_rewards_coefficient c adds c E[(r_w + r_l)^2]",
    source="Eisenstein et al. 2023, arXiv:2312.09244, eq. 2",
    methods=("reward",),
)
def centering() -> float:
    return _reward_apart(_preferences(), CENTERING, center_rewards_coefficient=CENTERING)


@identity(
    "prm-steps",
    "PRM loss = cross-entropy of right and wrong at the last token of each step, and at no other",
    source="Lightman et al. 2023, arXiv:2305.20050",
    methods=("prm",),
)
def every_step() -> float:
    return _prm_apart()


@identity(
    "prm-last-step",
    "with train_on_last_step_only, at the last token of the last step alone",
    source="Lightman et al. 2023, arXiv:2305.20050",
    methods=("prm",),
)
def last_step() -> float:
    return _prm_apart(train_on_last_step_only=True)


def _prm_apart(**arguments: Any) -> float:
    rows = first_rows("arithmetic-steps")
    trainer = make_trainer("prm", rows=rows, model=load("TokenClassification", num_labels=2), **arguments)
    move(trainer.model, seed=1)
    model, terms = exact(trainer.model), []
    for row in rows:
        costs = _step_costs(model, row)
        terms += costs[-1:] if arguments else costs
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), mean(terms))


def _step_costs(model: PreTrainedModel, row: Row) -> list[float]:
    """-log p(label) of each step, where the step ends: at the separator that follows it."""
    encode = tokenizer().encode
    ids, costs = list(encode(row["prompt"])), []
    for step, label in zip(row["completions"], row["labels"], strict=True):
        ids += encode(step + "\n")
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()
        costs.append(-log_softmax(scores)[int(label)])
    return costs
