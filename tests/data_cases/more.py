# A case reads best on few lines.
# ruff: noqa: E501

"""Data sets that lie close to a boundary between verdicts, and rules beside each other."""

from __future__ import annotations

import json

from tests.data_cases import case as c
from tests.data_cases.case import Case, Row, assistant, bad, but, every, good, many, number, question, system, user

_SAFE_PREFILL = [user("Hello."), assistant("Hello.")]


def _join(*kinds: list[Row]) -> list[Row]:
    """Rows with the columns of all of them."""
    return [{key: value for row in rows for key, value in row.items()} for rows in zip(*kinds, strict=True)]


_THRESHOLDS = [
    # 2 of 200 pairs are 1 %.
    Case("equal-2-of-200", "dpo", [*many(c.preference, 198), *every(many(lambda i: c.preference(198 + i), 2), rejected=lambda i: " " + good(198 + i))], "error", "chosen-equals-rejected"),
    Case("duplicates-1-of-200", "sft", [*many(c.text, 199), c.text(0)]),
    Case("duplicates-4-of-200", "sft", [*many(c.text, 196), *many(c.text, 4)], "warning", "duplicate-rows"),
    Case("glued-in-few-rows", "sft", every(many(c.completion), completion=lambda i: good(i) if i < 5 else " " + good(i))),
    Case("leak-in-few-rows", "grpo", every(many(c.answered, 20), prompt=lambda i: f"{question(i)} ({number(i)})" if i < 2 else question(i)), args={"reward_columns": ["answer"]}),
    Case("prompts-of-one-batch", "grpo", many(c.prompt, 4), args={"per_device_train_batch_size": 8}),
    Case("even-tail", "grpo", many(c.prompt, 12), args={"gradient_accumulation_steps": 3}),
    Case("exactly-a-step", "sft", many(c.text, 8), args={"gradient_accumulation_steps": 2}),
    Case("a-local-batch", "ppo", many(c.prompt, 4)),
    Case("batches-mixed", "kto", every(many(c.unpaired), label=lambda i: i % 4 < 2)),
    Case("one-batch-of-a-class", "kto", every(many(c.unpaired, 20), label=lambda i: i < 4 or i % 2 == 0)),
    Case("few-neighbours-alike", "kto", every(many(c.unpaired, 20), completion=lambda i: " I do not know." if i in (3, 4) else f" It was {i}.")),
    Case("json-string-in-few-rows", "sft", every(many(c.text), text=lambda i: json.dumps([user("a")]) if i == 3 else f"{question(i)} {good(i)}"), may="json-string-column"),
    Case("json-without-roles", "sft", every(many(c.completion), completion=lambda i: " " + json.dumps({"city": i, "n": [1]}))),
    Case("json-lists", "grpo", every(many(c.prompt), prompt=lambda i: json.dumps([i, i + 1]))),
    Case("short-answers", "dpo", every(many(c.preference), chosen=" 4", rejected=" 5", prompt=lambda i: f"{question(i)}\n")),
    Case("prompt-that-begins-alike", "dpo", every(many(c.preference), prompt="Town", chosen=lambda i: f" {good(i)}"), may="duplicate-rows"),
    Case("margin-zero", "reward", every(many(c.preference), margin=0)),
    Case("label-order-random", "bco", every(many(c.chat_unpaired), label=lambda i: i * 7 % 5 < 3)),
    Case("fits-exactly", "orpo", many(c.chat_preference), args={"max_length": 512}),
]  # fmt: skip

_OPTIONAL = [
    *(Case("note-null", method, every(rows, note=None, source=lambda i: "a" if i % 2 else None))
      for method, rows in (("sft", many(c.messages)), ("dpo", many(c.preference)), ("kto", many(c.unpaired)), ("reward", many(c.chat_preference)),
                           ("prm", many(c.steps)), ("gkd", many(c.messages)), ("grpo", many(c.prompt)), ("cpo", many(c.preference)), ("bco", many(c.unpaired)))),
    *(Case("note-in-some", method, [row | ({"extra": {"a": i}} if i % 3 == 0 else {}) for i, row in enumerate(rows)])
      for method, rows in (("sft", many(c.completion)), ("dpo", many(c.chat_implicit)), ("kto", many(c.chat_unpaired)), ("reward", many(c.preference)),
                           ("prm", many(c.steps)), ("gkd", many(c.messages)), ("grpo", many(c.chat_prompt)), ("orpo", many(c.preference)))),
    *(Case("mixed-extras", method, every(rows, id=lambda i: i if i % 2 else str(i), score=lambda i: None if i % 3 else i / 2, tags=lambda i: ["x"] if i % 2 else []), may="lossy-arrow-schema")
      for method, rows in (("sft", many(c.text)), ("dpo", many(c.preference)), ("bco", many(c.unpaired)), ("gkd", many(c.messages)), ("rloo", many(c.prompt)), ("distillation", many(c.prompt)))),
    Case("tools-null", "dpo", every(many(c.chat_preference), tools=None)),
    Case("tools-null", "grpo", every(many(c.chat_prompt), tools=None), may="tools-ignored"),
    Case("names-null", "sft", every(many(c.messages), messages=lambda i: [user(question(i), name=None), assistant(good(i), name=None)])),
    Case("tool-calls-null", "dpo", every(many(c.chat_preference), chosen=lambda i: [assistant(good(i), tool_calls=None)])),
    Case("reasoning-null", "sft", every(many(c.messages), messages=lambda i: [user(question(i)), assistant(good(i), reasoning_content=None)])),
    Case("images-null", "sft", every(many(c.messages), images=None), "error", "vision-columns"),
    Case("label-beside-pairs", "dpo", every(many(c.preference), label=True)),
    Case("completion-beside-pairs", "dpo", every(many(c.preference), completion=good)),
    Case("messages-beside-pairs", "dpo", _join(many(c.chat_preference), many(c.messages))),
    Case("messages-beside-pairs", "reward", _join(many(c.chat_implicit), many(c.messages)), may="ambiguous-columns"),
    Case("messages-beside-prompts", "grpo", _join(many(c.chat_prompt), many(c.messages))),
    Case("steps-beside", "sft", every(many(c.completion), steps=lambda i: ["a", "b"])),
    Case("question-and-answer-beside", "sft", every(many(c.messages), question=question, answer=good)),
    Case("response-beside", "dpo", every(many(c.preference), response=good, instruction=question)),
]  # fmt: skip

_PLACES = [
    Case("last-row-null", "sft", but(many(c.messages, 40), 39, messages=None), "error", "null-value"),
    Case("first-row-null", "dpo", but(many(c.preference), 0, chosen=None), "error", "null-value"),
    Case("first-row-empty", "kto", but(many(c.unpaired), 0, completion=""), "error", "empty-value"),
    Case("row-1500", "sft", but(many(c.text, 2000), 1500, text=""), "error", "empty-value"),
    Case("row-2999", "grpo", but(many(c.prompt, 3000), 2999, prompt=""), "error", "empty-prompt", may=""),
    Case("last-role-wrong", "sft", but(many(c.messages), messages=[user("a"), assistant("b"), user("c"), c.message("Assistant", "d")]), "error", "unknown-role"),
    Case("role-with-a-space", "sft", but(many(c.messages), messages=[c.message("user ", question(5)), assistant(good(5))]), "error", "unknown-role"),
    Case("empty-role", "dpo", but(many(c.chat_preference), prompt=[c.message("", question(5))]), "error", "unknown-role"),
    Case("null-in-messages", "sft", but(many(c.messages), messages=[user("a"), None]), "error"),
    Case("text-in-messages", "sft", but(many(c.messages), messages=[user("a"), "b"]), "error"),
    Case("message-without-anything", "grpo", but(many(c.chat_prompt), prompt=[{}]), "error"),
    Case("empty-parts", "sft", but(many(c.messages), messages=[user(question(5)), assistant([])]), "error"),
    Case("nothing-in-rows", "sft", [{}] * 8, "error"),
    Case("nothing-in-a-row", "sft", but(many(c.text), text=...), "error", "null-value|mixed-format"),
    Case("all-null", "dpo", [{"prompt": None, "chosen": None, "rejected": None}] * 8, "error", "null-value"),
    Case("rejected-of-another-type", "dpo", but(many(c.chat_preference), rejected="no"), "error", "mixed-format"),
    Case("label-null-in-all", "bco", every(many(c.unpaired), label=None), "error", "null-value"),
    Case("labels-null", "prm", every(many(c.steps), labels=None), "error", "null-value"),
    Case("labels-nan", "prm", but(many(c.steps), labels=[float("nan"), 1]), "error"),
    Case("label-nan", "kto", but(many(c.unpaired), label=float("nan")), "error"),
    Case("label-list", "kto", every(many(c.unpaired), label=lambda i: [True]), "error"),
    Case("tokens-of-text", "sft", every(many(c.tokens), input_ids="5 6 7"), "error"),
    Case("tokens-of-floats", "sft", every(many(c.tokens), input_ids=[5.5, 6.5]), "error"),
    Case("no-tokens", "sft", but(many(c.tokens), input_ids=[]), "error"),
    Case("prompt-null-in-all", "dpo", every(many(c.chat_implicit), prompt=None), "error", "null-value"),
    Case("chosen-only-system", "dpo", many(lambda i: {"chosen": [system(), assistant(good(i))], "rejected": [system(), assistant(bad(i))]}), "error", "no-user-turn"),
    Case("zero-width-completion", "sft", but(many(c.completion), completion="\u00a0\u2003"), "error", "empty-value"),
    Case("prompt-duplicated-in-a-row", "dpo", but(many(c.chat_preference), chosen=[user(question(5)), assistant(good(5))]), "error", "prompt-duplicated"),
    Case("prompt-duplicated-with-system", "reward", many(lambda i: {"prompt": [system(), user(question(i))], "chosen": [system(), user(question(i)), assistant(good(i))], "rejected": [system(), user(question(i)), assistant(bad(i))]}), "error", "prompt-duplicated"),
    Case("sharegpt-in-conversations-of-gkd", "gkd", many(lambda i: {"conversations": [{"from": "human", "value": question(i)}, {"from": "gpt", "value": good(i)}]}), "error"),
    Case("sharegpt-mixed", "sft", but(many(c.messages), messages=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]), "error"),
    Case("openai-file", "sft", every(many(c.messages), messages=lambda i: [system(), user(question(i)), assistant(good(i), weight=1)]), "warning", "ignored-message-keys"),
    Case("dolly", "sft", many(lambda i: {"instruction": question(i), "context": "", "response": good(i), "category": "qa"}), "error", "missing-columns|misspelt-column"),
    # The one shared character is a space, which TRL leaves to the answers: the prompt is empty.
    Case("promt-of-implicit", "dpo", many(lambda i: {"promt": question(i), "chosen": " " + good(i), "rejected": " " + bad(i)}), "error", "implicit-prompt-empty|misspelt-column"),
    Case("only-a-space-shared", "orpo", many(lambda i: {"chosen": " " + good(i), "rejected": " " + bad(i)}), "error", "implicit-prompt-empty"),
    Case("gsm8k", "grpo", many(lambda i: {"question": question(i), "answer": f"So #### {i}"}), "error", "misspelt-column", args={"reward_columns": ["answer"]}),
    Case("gsm8k", "sft", many(lambda i: {"question": question(i), "answer": good(i)}), "error", "missing-columns|misspelt-column"),
    Case("alpaca", "dpo", many(lambda i: {"instruction": question(i), "input": "", "output": good(i)}), "error"),
    Case("orca-pairs", "dpo", many(lambda i: {"system": "Be terse.", "question": question(i), "chosen": good(i), "rejected": bad(i)}), "error", "implicit-prompt-empty|misspelt-column"),
    Case("shp", "dpo", many(lambda i: {"history": question(i), "human_ref_A": good(i), "human_ref_B": bad(i), "labels": 1}), "error", "missing-columns"),
    Case("helpsteer-raw", "reward", many(lambda i: {"prompt": question(i), "response": good(i), "helpfulness": 4}), "error"),
    Case("ultrafeedback-raw", "kto", many(lambda i: {"instruction": question(i), "completions": [{"response": good(i), "score": 4}]}), "error"),
    Case("prm800k", "prm", many(lambda i: {"question": question(i), "steps": [good(i)], "ratings": [1]}), "error"),
    Case("upper-case-columns", "dpo", many(lambda i: {"Prompt": question(i), "Chosen": " " + good(i), "Rejected": " " + bad(i)}), "error", "misspelt-column"),
    Case("columns-with-spaces", "sft", many(lambda i: {"prompt ": question(i), " completion": good(i)}), "error", "misspelt-column"),
    Case("unlabelled-prefix", "sft", [{"prompt": [user(question(i))], "completion": good(i)} for i in range(16)], "error", "mixed-format|prompt-format-mismatch"),
]  # fmt: skip

_SPECIAL_TEXT = [
    Case("html-strikes", "sft", every(many(c.messages), messages=lambda i: [user(question(i)), assistant(f"<s>{bad(i)}</s> {good(i)}")]), "warning", "special-token-in-text"),
    Case("angle-brackets", "sft", every(many(c.text), text=lambda i: f"if a<b and c>d: <|{i}|> <user> <assistant> {good(i)}")),
    Case("generics", "sft", every(many(c.text), text=lambda i: f"List<String> s = new ArrayList<>(); // {i}")),
    Case("inst-of-an-array", "sft", every(many(c.text), text=lambda i: f"inst[{i}] = INST[0]; see [ref]")),
    Case("accents", "dpo", [{"prompt": question(i), "chosen": f" À Âge, é, Ã la carte {i}: «tête-à-tête», naïve.", "rejected": f" Não sei, ÂNGULO {i}."} for i in range(16)]),
    Case("euro-and-quotes", "sft", every(many(c.text), text=lambda i: f"“It’s €{i},” she said… ‘fine’ — 5 µm ± 2 °C, ½ × ¾ ™ © ®")),
    Case("combining-marks", "sft", every(many(c.text), text=lambda i: f"e\u0301 a\u0308 n\u0303 {i} ﬁ ﬂ \u200d\u200b\ufeff zero width")),
    Case("mathematical-letters", "sft", every(many(c.text), text=lambda i: f"𝔸 𝒳 ∀ε>0 ∃δ: |x−{i}|<δ ⇒ ∑ ∫ √ ≠ ≤")),
    Case("private-use", "sft", every(many(c.text), text=lambda i: f"\ue000 \uf8ff icon {i}, it says")),
    Case("only-emoji-answers", "sft", every(many(c.completion), completion=lambda i: " 👍🎉"), "warning", "low-information"),
    Case("symbols-with-digits", "sft", every(many(c.completion), completion=lambda i: f" = {i}!")),
    Case("chinese-answers", "sft", every(many(c.completion), completion=lambda i: " 十七艘船。")),
    Case("newline-first-answers", "sft", every(many(c.completion), completion=lambda i: f"\n\n{good(i)}")),
    Case("prompt-colon-newline", "dpo", every(many(c.preference), prompt=lambda i: f"Q: {question(i)}\nA:")),
    Case("quotes-at-the-joint", "sft", every(many(c.completion), prompt=lambda i: f"{question(i)} Say \"", completion=lambda i: f"{good(i)}\""), may="boundary-whitespace"),
    Case("chinese-joint", "sft", every(many(c.completion), prompt=lambda i: f"第{i}年有多少船？", completion=lambda i: f"有{number(i)}艘。"), may="boundary-whitespace"),
    Case("form-feed-and-vertical-tab", "sft", every(many(c.text), text=lambda i: f"Page {i}\f{good(i)}"), may="encoding"),
    Case("carriage-returns", "sft", every(many(c.messages), messages=lambda i: [user(f"{question(i)}\r\n"), assistant(f"{good(i)}\r\nSo.\r\n")])),
    Case("long-line", "sft", [*many(c.text, 15), {"text": "word and other " * 20_000}], "warning", "truncation"),
]  # fmt: skip

_ARGUMENTS = [
    Case("completion-only-pc", "sft", many(c.completion), args={"completion_only_loss": True}),
    Case("trains-all-of-pc", "sft", many(c.chat_completion), args={"completion_only_loss": False}),
    Case("packed-pc", "sft", many(c.completion, 40), args={"packing": True, "max_length": 256}),
    Case("wrapped", "sft", many(c.text, 40), args={"packing": True, "packing_strategy": "wrapped", "max_length": 256}),
    Case("keep-end", "dpo", but(many(c.chat_preference), prompt=[user(question(5) * 20)]), "warning", "truncation", args={"max_length": 300, "truncation_mode": "keep_end"}),
    Case("no-limit", "dpo", but(many(c.chat_preference), prompt=[user(question(5) * 40)]), args={"max_length": None}),
    Case("no-limit", "reward", but(many(c.chat_preference), chosen=[assistant(good(5) * 40)]), args={"max_length": None}),
    Case("groups-of-8", "grpo", many(c.prompt), args={"num_generations": 8, "per_device_train_batch_size": 8}),
    Case("groups-of-8-batches-of-4", "rloo", many(c.prompt), args={"num_generations": 8, "steps_per_generation": 2}),
    Case("short-completions", "grpo", many(c.chat_prompt), args={"max_completion_length": 16}),
    Case("aol-no-assistant-in-a-row", "sft", but(many(c.messages), messages=[user("a"), user("b")]), "error", "no-assistant-turn", args={"assistant_only_loss": True}, tok="qwen3"),
    Case("aol-unknown-template", "sft", many(c.messages), "error", "assistant-only-loss", args={"assistant_only_loss": True}, tok="lenient"),
    Case("aol-with-gemma", "sft", many(c.messages), args={"assistant_only_loss": True}, tok="gemma", may="no-eos"),
    Case("aol-on-pc-chat", "sft", many(c.chat_completion), args={"assistant_only_loss": True}, tok="qwen3"),
    Case("eval-not-wanted", "sft", many(c.text), args={"eval_strategy": "no"}),
    Case("eval-bad-rows", "dpo", many(c.preference), "error", "null-value", args={"eval_strategy": "steps", "eval_steps": 1}, evaluation=[{"prompt": "a?", "chosen": " b", "rejected": None}] * 4),
    Case("eval-of-another-family", "sft", many(c.messages), "error", args={"eval_strategy": "steps", "eval_steps": 1}, evaluation=many(c.preference)),
    Case("eval-few-rows", "sft", many(c.text), args={"eval_strategy": "steps", "eval_steps": 1}, evaluation=[{"text": f"An own text, number {i}."} for i in range(2)], may="too-few-rows"),
    Case("field-named-text", "sft", many(c.text), args={"dataset_text_field": "text"}),
    Case("field-missing", "sft", many(c.text), "error", args={"dataset_text_field": "content"}),
]  # fmt: skip

MORE = [*_THRESHOLDS, *_OPTIONAL, *_PLACES, *_SPECIAL_TEXT, *_ARGUMENTS]
