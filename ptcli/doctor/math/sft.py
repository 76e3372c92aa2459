"""Supervised fine-tuning: cross-entropy over the tokens that are trained."""

from __future__ import annotations

import math
from typing import Any

import torch

from ptcli.doctor.math.identity import Unexercised, identity
from ptcli.doctor.math.reference import (
    Text,
    apart,
    exact,
    gradients_apart,
    log_probabilities,
    log_probabilities_with_gradient,
    log_probability_with_gradient,
    mean,
)
from ptcli.doctor.math.trainers import batch_of, chat, first_rows, make_trainer, move

_GPT = "Radford et al. 2018, eq. 1, as a mean over tokens"
_COMPLETIONS = "arithmetic-prompt-completion"


def _completions() -> list[Text]:
    return [chat(row["prompt"], row["completion"]) for row in first_rows(_COMPLETIONS)]


def _trainer(**arguments: Any) -> Any:
    return make_trainer("sft", rows=first_rows(_COMPLETIONS), **arguments)


def _cross_entropy(model: Any, texts: list[Text]) -> float:
    reference = exact(model)
    return mean(-each for text in texts for each in log_probabilities(reference, text))


def _loss_apart(trainer: Any) -> float:
    move(trainer.model, seed=1)
    found = trainer.compute_loss(trainer.model, batch_of(trainer))
    return apart(found, _cross_entropy(trainer.model, _completions()))


@identity(
    "sft-chunked",
    "SFT loss (chunked, the default) = -1/|T| sum_T log p(x_t | x_<t), T the completion's tokens",
    source=_GPT,
    methods=("sft",),
)
def chunked_loss() -> float:
    return _loss_apart(_trainer())


@identity(
    "sft-nll",
    "SFT loss (loss_type nll) = -1/|T| sum_T log p(x_t | x_<t), T the completion's tokens",
    source=_GPT,
    methods=("sft",),
)
def plain_loss() -> float:
    return _loss_apart(_trainer(loss_type="nll"))


@identity(
    "sft-dft",
    "SFT loss (loss_type dft) = -1/|T| sum_T p(x_t) log p(x_t)",
    source="Wu et al. 2025, arXiv:2508.05629",
    methods=("sft",),
)
def dynamic_loss() -> float:
    trainer = _trainer(loss_type="dft")
    reference = exact(trainer.model)
    terms = [each for text in _completions() for each in log_probabilities(reference, text)]
    found = trainer.compute_loss(trainer.model, batch_of(trainer))
    return apart(found, mean(-math.exp(each) * each for each in terms))


@identity(
    "sft-dft-gradient",
    "the gradient of loss_type dft is -1/|T| sum_T p(x_t) grad log p(x_t): p is a weight, and is not differentiated",
    source="Wu et al. 2025, arXiv:2508.05629",
    methods=("sft",),
    tolerance=1e-4,
)
def dynamic_gradient() -> float:
    trainer = _trainer(loss_type="dft")
    reference = exact(trainer.model)
    terms = torch.cat([log_probabilities_with_gradient(reference, text) for text in _completions()])
    trainer.compute_loss(trainer.model, batch_of(trainer)).backward()
    return gradients_apart(trainer.model, reference, -(terms.exp().detach() * terms).mean())


@identity(
    "sft-all-tokens",
    "without a completion column every token but the first is trained: -1/(n-1) sum_t log p(x_t | x_<t)",
    source=_GPT,
    methods=("sft",),
)
def whole_conversations() -> float:
    trainer = make_trainer("sft")
    reference = exact(trainer.model)
    texts = [chat(row["messages"][:1], row["messages"][1:]) for row in first_rows("arithmetic-messages")]
    expected = mean(-each for text in texts for each in log_probabilities(reference, text, start=1))
    return apart(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)


@identity(
    "sft-accumulation",
    "losses of unequal micro-batches, each over the step's token count, add up to the mean over all",
    source=_GPT,
    methods=("sft",),
)
def accumulated_loss() -> float:
    trainer = _trainer()
    rows = [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]
    parts = [trainer.data_collator(rows[:2]), trainer.data_collator(rows[2:])]
    tokens = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts)
    losses = (trainer.compute_loss(trainer.model, part, num_items_in_batch=tokens) for part in parts)
    found = sum(float(loss.detach()) for loss in losses)
    return apart(found, _cross_entropy(trainer.model, _completions()))


@identity(
    "sft-uniform",
    "logits that are all equal cost ln V a token, V the vocabulary",
    source="entropy of a uniform choice, Shannon 1948",
    methods=("sft",),
    tolerance=1e-6,
)
def uniform_logits() -> float:
    return max(_headless_apart(_trainer()), _headless_apart(_trainer(loss_type="nll")))


def _headless_apart(trainer: Any) -> float:
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
    found = trainer.compute_loss(trainer.model, batch_of(trainer))
    return apart(found, math.log(trainer.model.config.vocab_size))


@identity(
    "sft-wrong",
    "a model that is sure of wrong tokens loses more than ln V: the shortfall, and the distance to the formula",
    source=_GPT,
    methods=("sft",),
)
def confidently_wrong() -> float:
    trainer = _trainer()
    with torch.no_grad():
        trainer.model.lm_head.weight.neg_()
    found = float(trainer.compute_loss(trainer.model, batch_of(trainer)))
    shortfall = max(0.0, math.log(trainer.model.config.vocab_size) - found)
    return max(shortfall, apart(found, _cross_entropy(trainer.model, _completions())))


@identity(
    "sft-gradient",
    "the gradient of the default loss is that of -1/|T| sum_T log p(x_t | x_<t), for every weight",
    source=_GPT,
    methods=("sft",),
    tolerance=1e-4,
)
def gradient() -> float:
    trainer = _trainer()
    reference, texts = exact(trainer.model), _completions()
    if len({text.length for text in texts}) == 1:
        raise Unexercised("all completions have one length")
    total = torch.stack([log_probability_with_gradient(reference, text) for text in texts]).sum()
    trainer.compute_loss(trainer.model, batch_of(trainer)).backward()
    return gradients_apart(trainer.model, reference, -total / sum(text.length for text in texts))
