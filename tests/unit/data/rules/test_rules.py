"""Every structure rule: rows that break it, and rows like them that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from ptcli.data.model import Context, Finding, RewardNeeds, Row
from ptcli.data.rules import RULES, Checker, conclude
from ptcli.methods import METHODS

NAN = float("nan")
NEEDS_ANSWER = {"rewards": (RewardNeeds("exact", ("answer",), ("answer",)),)}
BATCH_OF_4 = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}

ELSEWHERE = {
    "unreadable-file", "json-array-file", "transform-failed", "ppo-needs-input-ids", "missing-chat-template",
    "template-raises", "template-drops-content", "template-drops-tools", "template-not-prefix-stable",
    "boundary-token-merge", "truncation", "completion-truncated-away", "truncated-identical", "cpo-truncation",
    "bco-truncation", "reward-filtered", "rl-prompt-not-truncated", "zero-trained", "no-eos", "double-bos",
    "pad-is-eos", "vocab-vs-embeddings", "assistant-mask-empty", "unk-rate", "eval-mask-mismatch",
}  # fmt: skip
"""Rules about files, transforms and tokens, and one that says nothing."""


def find(method: str, rows: Sequence[Row], arguments: dict[str, Any] | None = None, **more: Any) -> list[Finding]:
    context = Context(METHODS[method], arguments or {}, **more)
    checker = Checker(context)
    checker.rows(rows)
    return conclude(checker.profile, context)


# --- rows ------------------------------------------------------------------------------------------------------------


def user(content: Any = "How deep is the lake at Orm?", **more: Any) -> Row:
    return {"role": "user", "content": content, **more}


def bot(content: Any = "Nine metres.", **more: Any) -> Row:
    return {"role": "assistant", "content": content, **more}


def said(role: Any, content: Any = "Be brief.", **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def call(arguments: Any = None, **more: Any) -> Row:
    function = {"name": "depth", "arguments": {"lake": "Orm"} if arguments is None else arguments}
    return said("assistant", None, tool_calls=[{"type": "function", "function": function}], **more)


Q = "How deep is the lake at Orm?"
TEXT = [{"text": f"{Q} It is {n} metres deep."} for n in range(6)]
CHAT = [{"messages": [user(), bot(f"It is {n} metres deep.")]} for n in range(6)]
PC = [{"prompt": f"{Q} ({n})", "completion": f" It is {n} metres deep."} for n in range(6)]
CPC = [{"prompt": [user(f"{Q} {n}")], "completion": [bot()]} for n in range(6)]
PREF = [{"prompt": f"{Q} ({n})", "chosen": f" {n} metres.", "rejected": f" {n} miles, or so."} for n in range(6)]
CPREF = [{"prompt": [user(f"{n}")], "chosen": [bot("No.")], "rejected": [bot("Yes.")]} for n in range(6)]
IMPLICIT = [{"chosen": f"Q: {Q}\nA: {n} metres.", "rejected": f"Q: {Q}\nA: About {n} miles."} for n in range(6)]
CIMPLICIT = [{"chosen": [user(f"{n}"), bot("No.")], "rejected": [user(f"{n}"), bot("Yes.")]} for n in range(6)]
UNP = [{"prompt": f"{Q} ({n})", "completion": f" {n} metres.", "label": n % 2 == 0} for n in range(6)]
CUNP = [{"prompt": [user(f"{n}")], "completion": [bot(f"{n}")], "label": n % 2 == 0} for n in range(6)]
PROMPT = [{"prompt": f"{Q} ({n})"} for n in range(6)]
CPROMPT = [{"prompt": [user(f"{Q} ({n})")]} for n in range(6)]
ANSWER = [{"prompt": f"{Q} ({n})", "answer": f"9{n}"} for n in range(6)]
STEPS = [{"prompt": f"{n}", "completions": ["Look.", "Count."], "labels": [True, n % 2 == 0]} for n in range(6)]
IDS = [{"input_ids": [5 + n, 6, 7, 2], "labels": [-100, -100, 7, 2]} for n in range(6)]
TOOL = {"type": "function", "function": {"name": "depth", "parameters": {}}}


def put(rows: Sequence[Row], row: int = 3, **values: Any) -> list[Row]:
    """The rows with other values in one of them; `...` takes a column away."""
    changed = [dict(each) for each in rows]
    changed[row] |= values
    changed[row] = {name: value for name, value in changed[row].items() if value is not ...}
    return changed


def add(rows: Sequence[Row], **values: Any) -> list[Row]:
    """The rows with other values in all of them."""
    return [{name: value for name, value in (row | values).items() if value is not ...} for row in rows]


def rename(rows: Sequence[Row], **names: str) -> list[Row]:
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


# --- rules -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Rows that break a rule, and rows that are like them and do not break it."""

    rule: str
    methods: str
    bad: Sequence[Row]
    good: Sequence[Row]
    severity: str = "error"
    known: dict[str, Any] = field(default_factory=dict)
    """What the context holds besides the method."""


def warns(rule: str, methods: str, bad: Sequence[Row], good: Sequence[Row], **known: Any) -> Case:
    return Case(rule, methods, bad, good, "warning", known)


PAIRS = "dpo cpo orpo bco kto reward"
RL = "grpo rloo online_dpo xpo nash_md minillm distillation ppo"
LIST = {"prompt": [user()]}

CASES = [
    # files and batches
    Case("empty-split", "sft dpo grpo", [], TEXT + PREF + PROMPT),
    Case("eval-missing", "sft grpo", TEXT, TEXT, known={"arguments": {"eval_strategy": "steps"}}),
    Case("too-few-rows", "grpo", PROMPT[:1], PROMPT, known={"prompts_per_generation": 2}),
    Case("too-few-rows", "ppo", PROMPT[:1], PROMPT, known={"arguments": BATCH_OF_4}),
    warns("too-few-rows", "sft", TEXT[:3], TEXT[:4], arguments=BATCH_OF_4),
    warns("too-few-rows", "sft", TEXT[:5], TEXT + TEXT, arguments=BATCH_OF_4, world=2),
    warns("rl-tail-dropped", "grpo rloo minillm", PROMPT[:5], PROMPT, prompts_per_generation=2),
    # columns
    Case("missing-columns", "sft", [{"body": "x"}], TEXT),
    Case("missing-columns", "kto bco", add(UNP, label=...), UNP),
    Case("missing-columns", "dpo reward orpo", add(PREF, rejected=...), PREF),
    Case("missing-columns", "gkd", TEXT, CHAT),
    Case("missing-columns", "prm", add(STEPS, labels=...), STEPS),
    Case("misspelt-column", "sft", rename(PC, prompt="promt"), PC),
    Case("misspelt-column", "sft", rename(PC, prompt="question", completion="answer"), PC),
    Case("misspelt-column", "dpo cpo", rename(PREF, chosen="choosen"), PREF),
    Case("misspelt-column", "grpo", rename(PROMPT, prompt="promtp"), PROMPT),
    Case("misspelt-column", "prm", rename(STEPS, completions="completion", labels="label"), STEPS),
    Case("misspelt-column", "sft gkd", rename(CHAT, messages="conversation"), CHAT),
    warns("misspelt-column", "dpo", [{"question": Q, **row} for row in IMPLICIT], IMPLICIT),
    Case("wrong-type-family", "sft", PREF, PC),
    Case("wrong-type-family", "sft", UNP, add(UNP, label=True)),
    Case("wrong-type-family", "dpo cpo kto reward", CHAT, PREF),
    Case("wrong-type-family", "dpo gkd", PC, []),
    Case("wrong-type-family", f"{RL} bco", TEXT, []),
    Case("wrong-type-family", "prm", UNP, STEPS),
    warns("unused-completion", "grpo distillation xpo", PC, PROMPT),
    warns("unused-completion", "nash_md", PREF, PROMPT),
    Case("ambiguous-columns", "sft", [{**a, **b} for a, b in zip(CHAT, PROMPT, strict=True)], CHAT),
    Case("ambiguous-columns", "gkd", [{**a, **b} for a, b in zip(CHAT, CPROMPT, strict=True)], CHAT),
    Case("ambiguous-columns", "sft", [{**a, **b} for a, b in zip(TEXT, PC, strict=True)], PC),
    Case("ambiguous-columns", "sft", [{**a, **b} for a, b in zip(CHAT, CPC, strict=True)], CPC),
    Case("ambiguous-columns", "sft", [{**a, **b} for a, b in zip(TEXT, PROMPT, strict=True)], TEXT),
    warns("ambiguous-columns", "sft", [{**a, **b} for a, b in zip(CHAT, TEXT, strict=True)], CHAT),
    Case("mixed-format", "sft", PC[:3] + CPC[:3], CPC),
    Case("mixed-format", "grpo ppo distillation", CPROMPT[:3] + PROMPT[:3], CPROMPT),
    Case("mixed-format", "sft", CHAT[:3] + TEXT[:3], CHAT),
    Case("mixed-format", "dpo cpo", PREF[:3] + IMPLICIT[:3], PREF),
    Case("mixed-format", "kto bco", PREF[:3] + UNP[:3], UNP),
    Case("mixed-format", "sft", add(CPC, prompt=Q), CPC),
    Case("mixed-format", "kto bco", add(CUNP, prompt=Q), CUNP),
    Case("mixed-format", "grpo", add(PROMPT, messages=[user()]), add(CPROMPT, messages=[user()])),
    Case("mixed-format", "sft", put(CHAT, messages=[user([{"type": "text", "text": "x"}]), bot()]), CHAT),
    Case("mixed-format", "cpo", add(CPREF, chosen="x"), add(CIMPLICIT, prompt=Q)),
    Case("prompt-format-mismatch", "dpo kto reward", add(CIMPLICIT, prompt=Q), CIMPLICIT),
    Case("prompt-format-mismatch", "dpo cpo bco", add(PREF, **LIST), PREF),
    warns("ignored-column", "sft", add(CHAT, system="Be brief."), add(CHAT, source="book")),
    warns("ignored-column", "dpo kto", add(PREF, history=[]), PREF),
    Case("vision-columns", "sft", add(CHAT, images=[]), CHAT),
    Case("vision-columns", "dpo", add(PREF, image="a.png"), PREF, known={"vision": False}),
    warns("vision-columns", "sft", add(CHAT, image="a.png"), CHAT),
    warns("ppo-extra-columns", "ppo", ANSWER, PROMPT),
    warns("odpo-null-column", "online_dpo", put(ANSWER, answer=None), ANSWER),
    warns("odpo-null-column", "online_dpo", put(ANSWER, answer=...), ANSWER),
    # values
    Case("wrong-value-type", "sft", put(TEXT, text=["a", "b"]), TEXT),
    Case("wrong-value-type", "sft gkd", add(CHAT, messages=user()), CHAT),
    Case("wrong-value-type", "sft", add(CHAT, messages=["a", "b"]), CHAT),
    Case("wrong-value-type", "sft", put(CHAT, messages=[user(), "x"]), CHAT),
    Case("wrong-value-type", "dpo", put(PREF, chosen=["a"]), PREF),
    Case("wrong-value-type", "grpo ppo", put(PROMPT, prompt=5), PROMPT),
    Case("wrong-value-type", "prm", add(STEPS, completions="Look."), STEPS),
    Case("wrong-value-type", "prm", add(STEPS, labels=True), STEPS),
    Case("wrong-value-type", "reward", add(PREF, margin="1"), add(PREF, margin=1)),
    Case("wrong-value-type", "sft dpo", add([*CHAT, *PREF], chat_template_kwargs='{"a": 1}'), []),
    Case("wrong-value-type", "sft", put(CHAT, messages=[user(5), bot()]), CHAT),
    Case("json-string-column", "sft", add(CHAT, messages='[{"role": "user", "content": "x"}]'), CHAT),
    Case("json-string-column", "grpo", add(PROMPT, prompt='[{"role": "user", "content": "x"}]'), PROMPT),
    Case("null-value", "sft", put(PC, completion=None), PC),
    Case("null-value", "sft", put(PC, completion=...), PC),
    Case("null-value", "dpo orpo", put(PREF, rejected=None), PREF),
    Case("null-value", "kto bco", put(UNP, label=None), UNP),
    Case("null-value", "prm", put(STEPS, labels=[True, None]), STEPS),
    Case("null-value", "reward", put(add(PREF, margin=1.0), margin=None), add(PREF, margin=1.0)),
    Case("null-value", "reward", put(add(PREF, margin=1.0), margin=...), add(PREF, margin=1.0)),
    Case("null-value", "sft", put(add(CHAT, chat_template_kwargs={}), chat_template_kwargs=...), CHAT),
    Case("empty-value", "sft", put(PC, completion=" \n"), PC),
    Case("empty-value", "sft", put(TEXT, text=""), TEXT),
    Case("empty-value", "sft gkd", put(CHAT, messages=[user(), bot("")]), CHAT),
    Case("empty-value", PAIRS, put(PREF, chosen=""), PREF),
    Case("empty-value", "cpo dpo", put(CPREF, rejected=[bot("  ")]), CPREF),
    Case("empty-value", "kto bco", put(UNP, completion=""), UNP),
    Case("empty-value", "prm", put(STEPS, completions=["Look.", ""]), STEPS),
    Case("empty-prompt", RL, put(PROMPT, prompt="  "), PROMPT),
    Case("empty-prompt", "bco", put(UNP, prompt=""), UNP),
    Case("empty-prompt", "grpo", put(CPROMPT, prompt=[said("system"), user("")]), CPROMPT),
    warns("empty-prompt", "sft", put(PC, prompt=""), PC),
    warns("empty-prompt", "dpo", put(PREF, prompt=""), PREF),
    warns("empty-prompt", "kto", put(UNP, prompt=""), UNP),
    Case("nan-value", "reward", put(add(PREF, margin=1.0), margin=NAN), add(PREF, margin=1.0)),
    Case("nan-value", "reward", put(add(PREF, margin=1.0), margin=float("inf")), add(PREF, margin=0)),
    Case("nan-value", "grpo", put(add(PROMPT, answer=1.0), answer=NAN), add(PROMPT, answer=1.0), known=NEEDS_ANSWER),
    Case("lossy-arrow-schema", "grpo rloo", put(ANSWER, answer=5), ANSWER, known=NEEDS_ANSWER),
    Case("lossy-arrow-schema", "grpo", [{**PROMPT[0], "answer": {"x": 1}}, {**PROMPT[1], "answer": {"x": "1"}}],
         add(PROMPT, answer={"x": "1"}), known=NEEDS_ANSWER),
    warns("lossy-arrow-schema", "sft", [{"messages": [user(), call({"n": n}), said("tool"), bot()]} for n in (1, "1")],
          CHAT),
    # chats
    Case("empty-messages", "grpo xpo", add(CPROMPT, prompt=[]), CPROMPT),
    Case("empty-messages", "sft gkd", put(CHAT, messages=[]), CHAT),
    Case("empty-messages", "prm", put(STEPS, completions=[], labels=[]), STEPS),
    Case("null-content", "sft", put(CHAT, messages=[user(), bot(None)]), CHAT),
    Case("null-content", "sft", put(CHAT, messages=[user(), {"role": "assistant", "text": "x"}]), CHAT),
    Case("null-content", "grpo", put(CPROMPT, prompt=[user(None)]), CPROMPT),
    Case("null-content", "dpo kto", put(CPREF, rejected=[bot(None)]), CPREF),
    Case("unknown-role", "sft", put(CHAT, messages=[said("human"), said("gpt")]), CHAT),
    Case("unknown-role", "sft", put(CHAT, messages=[user(), said("Assistant")]), CHAT),
    Case("unknown-role", "reward", put(CIMPLICIT, chosen=[{"content": "x"}]), CIMPLICIT),
    Case("unknown-role", "grpo", put(CPROMPT, prompt=[said("human")]), CPROMPT),
    Case("unknown-role", "sft", [{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}],
         [{"conversations": [{"from": "user", "value": "x"}, {"from": "assistant", "value": "y"}]}]),
    warns("unknown-role", "sft", put(CHAT, messages=[said("developer"), user(), bot()]), CHAT),
    Case("sharegpt-in-messages", "sft gkd", put(CHAT, messages=[{"from": "human", "value": "x"}]), CHAT),
    Case("sharegpt-in-messages", "dpo", put(CPREF, chosen=[{"from": "gpt", "value": "x"}]), CPREF),
    Case("sharegpt-in-messages", "gkd", [{"conversations": [{"from": "user", "value": "x"}]}], CHAT),
    Case("misnamed-conversations", "sft gkd", rename(CHAT, messages="conversations"), CHAT),
    warns("content-parts", "sft", add(CHAT, messages=[user([{"type": "text", "text": "x"}]), bot(
        [{"type": "text", "text": "y"}])]), CHAT),
    Case("no-assistant-turn", "sft gkd", put(CHAT, messages=[user()]), CHAT),
    Case("no-assistant-turn", "gkd", put(CHAT, messages=[bot()]), CHAT),
    Case("last-turn-not-assistant", "gkd", put(CHAT, messages=[user(), bot(), user("Thanks.")]), CHAT),
    warns("last-turn-not-assistant", "sft", put(CHAT, messages=[user(), bot(), user("Thanks.")]), CHAT),
    Case("completion-not-assistant", "sft", put(CPC, completion=[user("x")]), CPC),
    Case("completion-not-assistant", "kto bco", put(CUNP, completion=[user("x")]), CUNP),
    Case("completion-not-assistant", "dpo cpo reward", put(CPREF, chosen=[user("x"), bot()]), CPREF),
    warns("prompt-ends-assistant", "sft", put(CPC, prompt=[user(), bot("It")]), CPC),
    warns("prompt-ends-assistant", "grpo xpo", put(CPROMPT, prompt=[user(), bot("It")]), CPROMPT),
    warns("prompt-ends-assistant", "dpo orpo bco", put(CPREF, prompt=[user(), bot("It")]), CPREF),
    Case("role-order", "cpo orpo bco", put(CPREF, prompt=[user(), said("system")]), CPREF),
    warns("role-order", "dpo", put(CPREF, prompt=[user(), said("system"), user()]), CPREF),
    warns("role-order", "sft", put(CHAT, messages=[user(), user(), bot()]), CHAT),
    warns("role-order", "sft", put(CHAT, messages=[user(), said("tool"), bot()]),
          put(CHAT, messages=[user(), call(), said("tool"), said("tool"), bot()])),
    Case("no-user-turn", "grpo", put(CPROMPT, prompt=[said("system")]), CPROMPT),
    Case("no-user-turn", "dpo orpo", put(CPREF, prompt=[said("system")]),
         put(CPREF, prompt=[user(), call(), said("tool")])),
    Case("no-user-turn", "dpo kto", [{"chosen": [said("system"), bot("a")], "rejected": [said("system"), bot("b")]}],
         CIMPLICIT),
    Case("bad-tools", "sft", add(CHAT, tools="[{"), add(CHAT, tools=f"{[TOOL]}".replace("'", '"'))),
    Case("bad-tools", "dpo reward kto", add(CPREF, tools=[{"name": "depth"}]), add(CPREF, tools=[TOOL])),
    Case("bad-tools", "sft", add(CHAT, tools={"type": "function"}), add(CHAT, tools=None)),
    warns("tools-ignored", "cpo orpo bco", add(CPREF, tools=[TOOL]), CPREF),
    warns("tools-ignored", "grpo distillation", add(CPROMPT, tools=[TOOL]), CPROMPT),
    warns("tools-ignored", "grpo minillm", add(CPROMPT, chat_template_kwargs={}), CPROMPT),
    warns("tools-ignored", "gkd", add(CHAT, chat_template_kwargs={}), CHAT),
    warns("tool-arguments-string", "sft", put(CHAT, messages=[user(), call('{"lake": "Orm"}'), said("tool"), bot()]),
          put(CHAT, messages=[user(), call(), said("tool"), bot()])),
    warns("ignored-message-keys", "sft", put(CHAT, messages=[user(), bot(weight=0)]),
          put(CHAT, messages=[user(name="x"), bot(reasoning_content="Hm.", tool_calls=None, weight=None)])),
    # pairs
    Case("prompt-duplicated", "cpo dpo reward", add(CIMPLICIT, prompt=[user("3")])[3:4], CPREF),
    Case("prompt-duplicated", "sft", [{"prompt": Q, "completion": f"{Q} Nine."}], PC),
    Case("prompt-duplicated", "kto bco", put(CUNP, completion=[user("3"), bot()]), CUNP),
    warns("prompt-duplicated", "sft", [*PC * 5, {"prompt": "Hi", "completion": "Hi there."}], PC),
    Case("chosen-equals-rejected", PAIRS, put(PREF, rejected=" 3 metres. "), PREF),
    Case("chosen-equals-rejected", "dpo reward", put(CPREF, rejected=[bot("No. ")]), CPREF),
    warns("chosen-equals-rejected", "dpo", [*PREF * 20, *put(PREF, rejected=" 3 metres.")], PREF),
    Case("chosen-prefix-of-rejected", "dpo cpo orpo kto bco", put(IMPLICIT, chosen=f"{Q} A", rejected=f"{Q} A or B"),
         IMPLICIT),
    Case("implicit-prompt-empty", "dpo cpo orpo kto bco", put(IMPLICIT, chosen="Nine metres. "), IMPLICIT),
    Case("implicit-prompt-empty", "dpo cpo", add(PREF, prompt=..., rejected=" Who knows."), IMPLICIT),
    Case("implicit-prompt-empty", "dpo kto", put(CIMPLICIT, chosen=[user("other"), bot()]), CIMPLICIT),
    Case("implicit-prompt-empty", "cpo bco", add(CPREF, prompt=Q), add(CIMPLICIT, prompt=Q)),
    warns("implicit-prompt-in-answer", "dpo cpo", put(IMPLICIT, rejected=f"Q: {Q}\nA: 3 miles, about."), IMPLICIT),
    warns("implicit-prompt-in-answer", "kto bco", put(IMPLICIT, chosen=f"Q: {Q}\nA: 3 m"), IMPLICIT),
    warns("implicit-no-shared-prefix", "reward", [{"chosen": "Nine metres.", "rejected": "I am not sure."}], IMPLICIT),
    warns("implicit-no-shared-prefix", "reward", [{"chosen": [bot("a")], "rejected": [bot("b")]}], PREF),
    warns("score-contradicts-label", "dpo", put(add(PREF, score_chosen=5, score_rejected=1), score_rejected=9.5),
          add(PREF, score_chosen=5, score_rejected=5)),
    warns("score-contradicts-label", "reward", add(PREF, **{"chosen-rating": 1, "rejected-rating": 2}),
          add(PREF, chosen_length=1, rejected_length=2)),
    # labels
    Case("label-not-bool", "kto bco", add(UNP, label=-1), UNP),
    Case("label-not-bool", "kto bco", put(UNP, label="true"), UNP),
    Case("label-not-bool", "kto", [{**row, "label": n + 1} for n, row in enumerate(UNP)], UNP),
    Case("label-not-bool", "bco", [{**row, "label": n % 2} for n, row in enumerate(UNP)], UNP),
    Case("label-not-bool", "prm", put(STEPS, labels=[0.9, True]), STEPS),
    Case("label-not-bool", "prm", put(STEPS, labels=["True", "False"]), STEPS),
    warns("label-not-bool", "kto", [{**row, "label": n % 2} for n, row in enumerate(UNP)], UNP),
    warns("label-not-bool", "prm", add(STEPS, labels=["1", 0]), STEPS),
    Case("single-label-class", "kto bco", add(UNP, label=True), UNP),
    warns("single-label-class", "prm", add(STEPS, labels=[False, False]), STEPS),
    warns("label-imbalance", "kto bco", add(UNP, label=True) + UNP[1:2], UNP),
    warns("contradicting-labels", "kto bco", [*UNP, UNP[0] | {"label": False}], UNP),
    warns("kto-sorted-labels", "kto", sorted(UNP + UNP, key=lambda row: row["label"]), UNP, arguments=BATCH_OF_4),
    warns("kto-sorted-labels", "kto", sorted(UNP + UNP, key=lambda row: row["label"]), UNP,
          arguments=BATCH_OF_4 | {"train_sampling_strategy": "sequential"}),
    warns("kto-sorted-labels", "kto", PREF, [], arguments=BATCH_OF_4),
    warns("kto-kl-batch", "kto", UNP[:5], UNP, arguments=BATCH_OF_4),
    warns("kto-kl-same-completion", "kto", add(UNP, completion=" Nine."), UNP, arguments=BATCH_OF_4),
    Case("prm-conversational", "prm", add(STEPS, prompt=[user()]), STEPS),
    warns("margin-negative", "reward", put(add(PREF, margin=1), margin=-0.5), add(PREF, margin=0)),
    # token ids
    Case("length-mismatch", "prm", put(STEPS, labels=[True]), STEPS),
    Case("length-mismatch", "sft prm", put(IDS, labels=[1, 2]), IDS),
    Case("all-labels-masked", "sft prm", put(IDS, labels=[-100] * 4), IDS),
    Case("mask-ignored", "sft", [{"input_ids": [5, 6], "completion_mask": [0, 1]}], IDS),
    warns("padded-input-ids", "sft", add(IDS, attention_mask=[1, 1, 1, 0]), IDS),
    warns("padded-input-ids", "sft", add(IDS, input_ids=[5, 6, 0, 0]), IDS),
    Case("token-id-range", "sft prm ppo", put(IDS, input_ids=[5, -1, 7, 2]), IDS),
    # arguments
    Case("completion-only-needs-pc", "sft", CHAT, PC, known={"arguments": {"completion_only_loss": True}}),
    warns("text-field-no-eos", "sft", [{"body": "Nine."}], [{"body": "Nine.</s>"}],
          arguments={"dataset_text_field": "body"}),
    Case("assistant-only-loss", "sft", PC, CPC, known={"arguments": {"assistant_only_loss": True}}),
    Case("assistant-only-loss", "sft", TEXT, CHAT, known={"arguments": {"assistant_only_loss": True}}),
    # rewards
    Case("reward-column-missing", "grpo online_dpo minillm", PROMPT, ANSWER, known=NEEDS_ANSWER),
    Case("reward-column-null", "grpo rloo online_dpo", put(ANSWER, answer=None), ANSWER, known=NEEDS_ANSWER),
    Case("reward-column-null", "grpo", put(ANSWER, answer=...), ANSWER, known=NEEDS_ANSWER),
    Case("reserved-column", "grpo minillm", add(PROMPT, prompts="x"), ANSWER),
    Case("reserved-column", "online_dpo rloo", add(PROMPT, trainer_state=1), ANSWER),
    warns("answer-leak", "grpo", add(PROMPT, answer="lake"), ANSWER, rewards=NEEDS_ANSWER["rewards"]),
    # text
    warns("boundary-whitespace", "sft", put(PC, prompt=f"{Q} "), PC),
    warns("boundary-whitespace", "dpo kto", add(PREF, chosen="There it is.", rejected="Who knows."), PREF),
    warns("special-token-in-text", "grpo", add(PROMPT, prompt=f"<|im_start|>user\n{Q}"), PROMPT),
    warns("special-token-in-text", "sft", add(CHAT, messages=[user("[INST] x"), bot()]), CHAT),
    warns("special-token-in-text", "sft", put(TEXT, text="a</s>b"), put(TEXT, text="One ends here.</s>")),
    warns("duplicate-rows", "sft", TEXT + TEXT[:1], TEXT),
    warns("duplicate-rows", "grpo", add(ANSWER, prompt=Q), ANSWER),
    warns("encoding", "sft", put(TEXT, text="It\u0000 is"), put(TEXT, text="Tabs\tand\nlines, Ünïcödé")),
    warns("encoding", "dpo", put(PREF, chosen=" \u00c3\u00a9t\u00c3\u00a9"), PREF),
    warns("encoding", "kto", put(UNP, completion=" caf\ufffd"), UNP),
    warns("low-information", "sft", put(PC, completion=" ..."), PC),
    warns("low-information", "dpo cpo", put(CPREF, chosen=[bot("👍")]), CPREF),
]  # fmt: skip

SINGLE = [(case, method) for case in CASES for method in case.methods.split()]


def _id(value: Any) -> str:
    return value.rule if isinstance(value, Case) else value


@pytest.mark.parametrize(("case", "method"), SINGLE, ids=_id)
def test_rows_that_break_a_rule(case: Case, method: str) -> None:
    found = find(method, case.bad, **case.known)
    mine = [each.severity for each in found if each.rule == case.rule]
    assert mine, found
    assert ("error" if "error" in mine else "warning") == case.severity
    if case.severity == "warning" and case.rule != "kto-sorted-labels":
        assert [each for each in found if each.severity == "error"] == []


@pytest.mark.parametrize(("case", "method"), SINGLE, ids=_id)
def test_rows_that_do_not(case: Case, method: str) -> None:
    if case.rule in ("eval-missing", "empty-split") or not case.good:
        return
    found = find(method, case.good, **case.known)
    assert case.rule not in {each.rule for each in found}


GOOD = {
    "sft": (TEXT, CHAT, PC, CPC, IDS), "dpo": (PREF, CPREF, IMPLICIT, CIMPLICIT),
    "cpo": (PREF, CPREF, IMPLICIT, CIMPLICIT, add(CIMPLICIT, prompt=Q)), "reward": (PREF, CPREF, IMPLICIT, CIMPLICIT),
    "orpo": (PREF, CPREF, add(CIMPLICIT, prompt=Q)), "kto": (UNP, CUNP, PREF, CIMPLICIT),
    "bco": (UNP, CUNP, PREF, CIMPLICIT, add(CIMPLICIT, prompt=Q)), "prm": (STEPS, add(IDS, labels=[-100, 1, -100, 0])),
    "gkd": (CHAT,), "ppo": (PROMPT, CPROMPT, add(IDS, labels=...)), "grpo": (PROMPT, CPROMPT, ANSWER),
    "rloo": (PROMPT, CPROMPT, ANSWER), "online_dpo": (PROMPT, CPROMPT, ANSWER), "xpo": (PROMPT, CPROMPT),
    "nash_md": (PROMPT, CPROMPT), "minillm": (PROMPT, CPROMPT, ANSWER), "distillation": (PROMPT, CPROMPT, ANSWER),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_good_rows_have_no_finding(method: str) -> None:
    for rows in GOOD[method]:
        varied = [row | {"id": number} for number, row in enumerate(rows)] if method != "ppo" else rows
        assert find(method, varied) == []


def test_every_structure_rule_is_broken_here() -> None:
    assert {case.rule for case in CASES} == set(RULES) - ELSEWHERE


def test_every_rule_has_a_severity_and_serves_some_method() -> None:
    for id, rule in RULES.items():
        assert rule.id == id
        assert rule.methods
        assert rule.summary
    for case in CASES:
        assert case.severity == "warning" or RULES[case.rule].severity == "error"
        assert set(case.methods.split()) <= set(RULES[case.rule].methods)
