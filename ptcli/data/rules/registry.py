"""The row rules and the rules about whole sets, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ptcli.data.model import Finding, Hit, Profile
from ptcli.data.rules import chats, columns, config, duplicates, labels, pairs, rewards, text, tokenized, tools, values
from ptcli.data.rules.facts import Facts, Plan, Seen

RowRule = Callable[[Seen], Iterator[Hit]]
SetRule = Callable[[Profile, Facts], Iterator[Finding]]
Serves = Callable[[Facts, Plan], bool]


def _read(facts: Facts, plan: Plan) -> bool:
    """Rows with text or chats."""
    return bool(plan.values)


def _chats(facts: Facts, plan: Plan) -> bool:
    return bool(plan.values) and facts.traits.chats and plan.form != "text"


def _answers(facts: Facts, plan: Plan) -> bool:
    return bool(plan.values) and facts.answers


def _prompt(facts: Facts, plan: Plan) -> bool:
    return "prompt" in plan.values and plan.form != "prompt"


def _beside_conversations(facts: Facts, plan: Plan) -> bool:
    return facts.traits.sharegpt and "conversations" in plan.columns and plan.form not in ("", "sharegpt", "tokens")


def _form(*forms: str) -> Serves:
    return lambda facts, plan: plan.form in forms


def _prompted_answer(facts: Facts, plan: Plan) -> bool:
    return _prompt(facts, plan) and plan.form != "steps"


ROW_RULES: tuple[tuple[RowRule, Serves], ...] = (
    (values.read_values, _read),
    (values.empty_answers, _answers),
    (values.empty_prompt, _read),
    (values.steps, _form("steps")),
    (values.extras, lambda facts, plan: "margin" in plan.columns or "chat_template_kwargs" in plan.columns),
    (values.not_finite, lambda facts, plan: True),
    (values.column_nulls, lambda facts, plan: facts.rewarded),
    (chats.messages, _chats),
    (chats.misplaced, lambda facts, plan: plan.shape is None and "conversations" in plan.columns),
    (chats.second_chat, _beside_conversations),
    (chats.turns, _form("messages", "sharegpt")),
    (chats.role_order, _chats),
    (chats.prompt_roles, _chats),
    (chats.answer_roles, _form("prompt-completion", "unpaired", "pairs")),
    (pairs.formats, lambda facts, plan: plan.shape is not None and facts.method.prompts == "text"),
    (pairs.prompt_duplicated, _prompted_answer),
    (pairs.same_answers, _form("pairs")),
    (pairs.implicit_prompt, _form("pairs")),
    (pairs.no_shared_prompt, _form("pairs")),
    (pairs.scores, _form("pairs")),
    (labels.label, _form("unpaired")),
    (labels.bad_examples, _form("prompt-completion")),
    (labels.step_labels, _form("steps")),
    (tokenized.ids, _form("tokens")),
    (tokenized.mask_ignored, _form("tokens")),
    (tools.tools, lambda facts, plan: "tools" in plan.columns and plan.shape is not None),
    (rewards.leak, lambda facts, plan: facts.rewarded and plan.form == "prompt"),
    (text.suspects, _read),
    (text.low_information, _answers),
    (text.boundary, _prompted_answer),
    (text.text_field, _form("text")),
)
"""Functions that look at one row, and for which methods and columns they are called."""

SET_RULES: tuple[SetRule, ...] = (
    *columns.SET_RULES,
    *config.SET_RULES,
    *labels.SET_RULES,
    *rewards.SET_RULES,
    *duplicates.SET_RULES,
)
"""Functions that look at a profile."""
