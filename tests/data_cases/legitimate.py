"""Data sets as people have them, in which nothing is wrong: none may get an error, and few a warning."""

# A case reads best on few lines.
# ruff: noqa: E501

from __future__ import annotations

import json

from tests.data_cases import case as c
from tests.data_cases.case import (
    Case,
    Row,
    assistant,
    bad,
    but,
    every,
    good,
    many,
    number,
    question,
    system,
    tool,
    user,
)


def _jsonl(rows: list[Row], *, end: str = "\n", ascii_only: bool = True) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows).encode()


def _answers(texts: list[str]) -> list[Row]:
    """One chat for each answer."""
    return [{"messages": [user(question(i)), assistant(text)]} for i, text in enumerate(texts)]


_WORLD = [
    "Das Städtchen hatte im Jahr 1612 genau siebzehn Mühlen, größtenteils aus Holz.",
    "Em 1613 a povoação tinha 54 barcos; NÃO se sabe de mais, nem da MAÇÃ.",
    "В 1614 году в городе было девяносто одна лодка и три мельницы.",
    "一六一五年，城里有二十八座桥和三家酒馆。",
    "1616年、町には六十五の果樹園がありました。",
    "في عام ١٦١٧ كان في المدينة اثنتان وثلاثون طاحونة.",
    "בשנת 1618 היו בעיר שישים ותשע סירות.",
    "ปี 1619 เมืองนี้มีสะพาน 36 แห่ง",
    "1620 में नगर में तिहत्तर नावें थीं।",
    "1621년에 마을에는 마흔 개의 다리가 있었다.",
    "Το 1622 η πόλη είχε εβδομήντα επτά βάρκες.",
    "Năm 1623 thị trấn có bốn mươi bốn cây cầu, và một chợ lớn.",
    "Þorpið átti árið 1624 átta báta; ærlega talað ekki fleiri.",
    "Wioska miała w 1625 roku czterdzieści osiem łodzi, źdźbło trawy i żółwia.",
    "A falunak 1626-ban nyolcvanöt hajója volt, őrült szám.",
    "Kasabanın 1627 yılında elli iki teknesi vardı; ışık, İstanbul, ağaç.",
]
_EMOJI = [f"{'👩‍🚀🏳️‍🌈🇩🇪👍🏽'[i % 4 :]} {good(i)} 😀🎉 — «ça va» … “quoted” ’tis" for i in range(16)]
_CODE = [
    f"Use this:\n\n```python\nfor i in range({i}):\n    print(f\"{{i!r}}\\t\\x1b[0m\", '\\\\', 3 < 4 > 2 && 5)\n```\n"
    f"```html\n<div class='a'><a href=\"#{i}\">x</a> &amp; <br/></div>\n```\n```sh\nawk '{{print $1}}' <<< \"$x\" | sed 's/\\/\\\\/g'\n```"
    for i in range(16)
]
_LATEX = [
    rf"We get \(\frac{{{i}}}{{\beta}}\), and \nabla f \to \tau, \text{{hence}} \boxed{{{number(i)}}}; $$\begin{{aligned}}x&=1\\y&={i}\end{{aligned}}$$"
    for i in range(16)
]
_JSON = [json.dumps({"town": i, "things": ["boats", {"count": number(i)}], "ok": True}) for i in range(16)]
_MARKDOWN = [
    f"# Heading {i}\n\n| a | b |\n|---|---|\n| {i} | x |\n\n- [ ] one\n- [x] two\n\n> quote\n\n---\n[1]: http://x.org"
    for i in range(16)
]
_THOUGHTS = [f"<think>\nPage {i} lists them.\nI add up.\n</think>\n\n{good(i)}" for i in range(16)]
_ONE_WORD = [str(number(i)) for i in range(16)]

_SFT_TEXTS = [
    *(
        Case(name, "sft", _answers(texts), may=may)
        for name, texts, may in (
            ("many-scripts", _WORLD, ""),
            ("emoji", _EMOJI, ""),
            ("code", _CODE, ""),
            ("latex", _LATEX, ""),
            ("json-answers", _JSON, ""),
            ("markdown", _MARKDOWN, ""),
            ("thoughts", _THOUGHTS, ""),
            ("numbers-as-answers", _ONE_WORD, ""),
        )
    ),
    Case("plain-text", "sft", many(c.text)),
    Case("chapters", "sft", many(lambda i: {"text": f"Chapter {i}\n\n" + " ".join(good(k) for k in range(i + 1))})),
    Case("text-that-ends-in-eos", "sft", every(many(c.text), text=lambda i: f"{question(i)} {good(i)}<|im_end|>")),
    Case("text-of-json", "sft", many(lambda i: {"text": json.dumps({"a": i, "b": [question(i)]})})),
    Case("text-with-metadata", "sft", every(many(c.text), meta=lambda i: {"source": "books", "pages": [i, i + 1]},
         id=lambda i: f"doc-{i}", url=None, score=lambda i: i / 7)),
    Case("unescaped", "sft", _jsonl(_answers(_WORLD), ascii_only=False)),
    Case("windows-line-ends", "sft", _jsonl(many(c.messages), end="\r\n")),
    Case("byte-order-mark", "sft", b"\xef\xbb\xbf" + _jsonl(many(c.messages))),
    Case("blank-lines-between", "dpo", _jsonl(many(c.preference), end="\n\n") + b"\n\n"),
    Case("no-newline-at-the-end", "grpo", _jsonl(many(c.prompt)).rstrip()),
    Case("spaces-around-lines", "kto", b"".join(b"  " + line + b" \t\n" for line in _jsonl(many(c.unpaired)).splitlines())),
    Case("spaced-json", "sft", "".join(json.dumps(row, separators=(" , ", " : ")) + "\n" for row in many(c.messages)).encode()),
    Case("keys-in-any-order", "dpo", [dict(reversed(row.items())) if i % 2 else row for i, row in enumerate(many(c.chat_preference))]),
    Case("line-separators-in-text", "sft", _jsonl(_answers([f"One.\u2028Two.\u2029\u0085 {good(i)}" for i in range(16)]), ascii_only=False), may="encoding"),
    Case("tabs-and-newlines", "sft", every(many(c.completion), completion=lambda i: f"\n\t- {good(i)}\r\n\t- {bad(i)}\n")),
    Case("dots-in-keys", "sft", every(many(c.messages), **{"meta.lang": "en", "a b": 1, "": 0, "ключ": "x"})),
    Case("huge-integers", "sft", every(many(c.messages), id=lambda i: 10**30 + i, hash=lambda i: -(2**63) + i)),
    Case("deep-metadata", "dpo", every(many(c.preference), meta={"a": {"b": {"c": {"d": [[[{"e": None}]]]}}}})),
]  # fmt: skip

_TREE = [
    {"messages": [turn for k in range(1 + i % 5) for turn in (user(question(i + k)), assistant(good(i + k)))],
     "message_tree_id": f"{i:08x}", "lang": "en", "rank": None if i % 2 else 0}
    for i in range(16)
]  # fmt: skip
_CAPYBARA = [
    {"source": "Airoboros", "messages": [user(question(i)), assistant(good(i) + "\n\n" + "More of it. " * 12),
     user("And then?"), assistant("Then it grew.")], "num_turns": 2}
    for i in range(16)
]  # fmt: skip

_SFT = [
    Case("capybara", "sft", _CAPYBARA),
    # This template renders it; without a tokenizer it would deserve a warning.
    Case("developer", "sft", every(many(c.messages), messages=lambda i: [c.message("developer", "Be terse."), user(question(i)), assistant(good(i))]), may="unknown-role"),
    Case("openassistant-trees", "sft", _TREE, args={"max_length": 2048}),
    Case("system-in-some", "sft", but(many(c.messages), messages=[system(), user(question(5)), assistant(good(5))])),
    Case("one-long-conversation", "sft", but(many(c.messages), messages=[t for k in range(60) for t in (user(f"{k}?"), assistant(f"Number {k}."))]), args={"max_length": 4096}),
    Case("rows-of-very-different-length", "sft", _answers(["Yes.", *(good(i) * (1 + i) for i in range(15))]), args={"max_length": 2048}),
    Case("no-limit", "sft", _answers([good(i) * 40 for i in range(16)]), args={"max_length": None}),
    Case("ultrachat-without-prompt", "sft", every(many(c.messages), prompt_id=lambda i: f"{i:064x}")),
    Case("begins-with-assistant", "sft", every(many(c.messages), messages=lambda i: [assistant("Hello, what may I do?"), user(question(i)), assistant(good(i))])),
    Case("names-of-speakers", "sft", every(many(c.messages), messages=lambda i: [user(question(i), name="Ann"), assistant(good(i), name="Bot")])),
    Case("pc-text", "sft", many(c.completion)),
    Case("pc-newline", "sft", every(many(c.completion), prompt=lambda i: f"### Question\n{question(i)}\n\n### Answer\n", completion=good)),
    Case("pc-chat-system", "sft", every(many(c.chat_completion), prompt=lambda i: [system(), user(question(i))])),
    Case("pc-chat-several-turns-in-completion", "sft", every(many(c.chat_completion), completion=lambda i: [assistant("Let me see."), user("Well?"), assistant(good(i))])),
    Case("pc-ids-and-scores", "sft", every(many(c.completion), id=lambda i: i, score=0.5, tags=lambda i: ["a"] * (i % 3))),
    Case("pc-labelled-all-good", "sft", every(many(c.completion), label=True), may="ignored-column"),
    Case("pc-long-prompt", "sft", but(many(c.completion), prompt=question(5) * 30), args={"max_length": 4096}),
    Case("conversations-user-assistant", "sft", many(lambda i: {"conversations": [{"from": "user", "value": question(i)}, {"from": "assistant", "value": good(i)}]})),
    Case("conversations-system", "sft", many(lambda i: {"conversations": [{"from": "system", "value": "Be terse."}, {"from": "user", "value": question(i)}, {"from": "assistant", "value": good(i)}], "id": str(i)})),
    Case("custom-field-with-eos", "sft", many(lambda i: {"content": f"{question(i)} {good(i)}<|im_end|>"}), args={"dataset_text_field": "content"}),
    Case("tokens", "sft", many(c.tokens)),
    Case("tokens-and-labels", "sft", every(many(c.tokens), labels=[-100, -100, -100, 8, 9, 2])),
    Case("tokens-and-attention", "sft", every(many(c.tokens), attention_mask=[1] * 6)),
    Case("tokens-and-assistant-mask", "sft", every(many(c.tokens), assistant_masks=[0, 0, 1, 1, 1, 1])),
    Case("tokens-of-different-length", "sft", many(lambda i: {"input_ids": [5 + k for k in range(3 + i)] + [2]})),
    Case("packed", "sft", many(c.messages, 40), args={"packing": True, "max_length": 256}),
    Case("assistant-only", "sft", _CAPYBARA, args={"assistant_only_loss": True}, tok="qwen3"),
    Case("tools-null-in-some", "sft", every(many(c.messages), tools=lambda i: [tool()] if i % 2 else None), tok="qwen3"),
    Case("tools-absent-in-some", "sft", [row | ({"tools": [tool()]} if i % 2 else {}) for i, row in enumerate(many(c.messages))], tok="qwen3"),
    Case("tools-empty-in-some", "sft", every(many(c.messages), tools=lambda i: [tool()] if i % 2 else []), tok="qwen3"),
    Case("tools-json-string", "sft", every(many(c.messages), tools=json.dumps([tool(), tool("other")])), tok="qwen3"),
    Case("different-tools", "sft", every(many(c.messages), tools=lambda i: [tool(f"tool_{i}", {"type": "object", "properties": {f"p{i}": {"type": "integer", "default": i}}})]), tok="qwen3"),
    Case("thinking-switched-off", "sft", every(many(c.messages), chat_template_kwargs={"enable_thinking": False}), tok="qwen3"),
    Case("reasoning-content", "sft", every(many(c.messages), messages=lambda i: [user(question(i)), assistant(good(i), reasoning_content=f"Page {i}, then add.")]), tok="qwen3"),
    Case("thoughts-qwen3", "sft", _answers(_THOUGHTS), tok="qwen3"),
    Case("parts", "sft", every(many(c.messages), messages=lambda i: [user([{"type": "text", "text": question(i)}]), assistant([{"type": "text", "text": good(i)}])]), tok="qwen2_5_vl"),
    Case("gemma", "sft", many(c.messages), tok="gemma", may="no-eos"),
    Case("text-without-template", "sft", many(c.text), tok="notemplate"),
    Case("bos-template", "sft", many(c.messages), tok="bostemplate"),
    Case("qwen2_5", "sft", _TREE, tok="qwen2_5", args={"max_length": 2048}),
    Case("columns-null-at-first", "sft", every(many(c.messages), note=lambda i: "x" if i > 12 else None, score=lambda i: i if i > 3 else None)),
    Case("id-number-or-text", "sft", every(many(c.messages), id=lambda i: i if i % 2 else str(i))),
    Case("int-and-float-scores", "sft", every(many(c.messages), score=lambda i: i if i % 2 else i / 3)),
    Case("columns-in-some-rows", "sft", [row | ({"extra": i} if i % 3 else {}) for i, row in enumerate(many(c.messages))]),
    Case("greeting-repeated", "sft", every(many(c.messages), messages=lambda i: [user("Hello"), assistant("Hello! How can I help you today?"), user(question(i)), assistant(good(i))])),
    Case("evaluated", "sft", many(c.messages), args={"eval_strategy": "steps", "eval_steps": 2}, evaluation=every(many(c.messages), messages=lambda i: [user(question(i + 60)), assistant(good(i + 60))])),
    Case("image-words-in-text", "sft", every(many(c.text), text=lambda i: f"The <image> of {good(i)}")),
]  # fmt: skip


def _weather(i: int, *, key: bool = False, content: str | None = "", parallel: bool = False) -> Row:
    """A conversation with a tool, as OpenAI's API has it."""
    keys = [f"call_{i}", f"call_{i}b"] if key else [None, None]
    calls = [c.call("count_things", {"town": "Arle", "year": 1600 + i}, keys[0])]
    results = [c.message("tool", str(number(i)), name="count_things", **({"tool_call_id": keys[0]} if key else {}))]
    if parallel:
        calls.append(c.call("count_things", {"town": "Kell", "year": 1600 + i}, keys[1]))
        results.append(
            c.message("tool", str(number(i) + 1), name="count_things", **({"tool_call_id": keys[1]} if key else {}))
        )
    turns = [user(question(i)), assistant(content, tool_calls=calls), *results, assistant(good(i))]
    return {"messages": turns, "tools": [tool()]}


_CALLS = [
    Case("calls", "sft", many(_weather), tok="qwen3"),
    Case("calls-content-null", "sft", many(lambda i: _weather(i, content=None)), tok="qwen3"),
    Case("calls-with-ids", "sft", many(lambda i: _weather(i, key=True, content=None)), tok="qwen2_5"),
    Case("calls-parallel", "sft", many(lambda i: _weather(i, key=True, parallel=True)), tok="qwen3", may="role-order"),
    Case("calls-in-some", "sft", [_weather(i) if i % 2 else c.messages(i) for i in range(16)], tok="qwen3"),
    Case("calls-null-in-messages", "sft", [{"messages": [{**turn, "tool_calls": turn.get("tool_calls"), "name": turn.get("name")} for turn in _weather(i)["messages"]], "tools": [tool()]} for i in range(16)], tok="qwen3"),
    Case("calls-empty-in-messages", "sft", every(many(c.messages), messages=lambda i: [user(question(i)), assistant(good(i), tool_calls=[])]), tok="qwen3"),
    Case("call-last", "sft", [{**row, "messages": row["messages"][:2]} for row in many(_weather)], tok="qwen3"),
    Case("call-without-content-key", "sft", [{**row, "messages": [{k: v for k, v in turn.items() if k != "content" or "tool_calls" not in turn} for turn in row["messages"]]} for row in many(_weather)], tok="qwen3"),
    Case("calls-different-arguments", "sft", [{**row, "messages": [row["messages"][0], assistant("", tool_calls=[c.call("count_things", {f"key{i}": i, "list": [1, 2], "deep": {"a": None}})]), *row["messages"][2:]]} for i, row in enumerate(many(_weather))], tok="qwen3"),
    Case("completion-a-call", "sft", [{"prompt": row["messages"][:1], "completion": row["messages"][1:2], "tools": row["tools"]} for row in many(_weather)], tok="qwen3"),
    Case("prompt-ends-with-tool", "sft", [{"prompt": row["messages"][:3], "completion": row["messages"][3:], "tools": row["tools"]} for row in many(_weather)], tok="qwen3"),
    Case("prompt-ends-with-tool", "dpo", [{"prompt": row["messages"][:3], "chosen": row["messages"][3:], "rejected": [assistant(bad(i))], "tools": row["tools"]} for i, row in enumerate(many(_weather))], tok="qwen3"),
    Case("chosen-a-call", "dpo", [{"prompt": row["messages"][:1], "chosen": row["messages"][1:2], "rejected": [assistant(bad(i))], "tools": row["tools"]} for i, row in enumerate(many(_weather))], tok="qwen3"),
    Case("tools", "kto", every(many(c.chat_unpaired), tools=[tool()]), tok="qwen3"),
    Case("tools", "reward", every(many(c.chat_preference), tools=[tool()]), tok="qwen3"),
    Case("tool-in-the-past", "grpo", [{"prompt": row["messages"][:3]} for row in many(_weather)], tok="qwen3"),
]  # fmt: skip


def _hh(i: int) -> Row:
    """Anthropic's HH-RLHF: both sides hold the whole dialogue as one text."""
    start = f"\n\nHuman: {question(i)}\n\nAssistant: Do you mean the town?\n\nHuman: Yes, the town.\n\nAssistant: "
    return {"chosen": start + good(i), "rejected": start + bad(i)}


def _in_turns(method: str) -> str:
    """KTO sees all chosen and then all rejected of pairs, which deserves a warning."""
    return "kto-sorted-labels" if method == "kto" else ""


def _scored(i: int) -> Row:
    """UltraFeedback, binarized and without `prompt`."""
    return c.chat_implicit(i) | {"prompt_id": f"{i:064x}", "score_chosen": 8.5 - i / 10, "score_rejected": 3.0}


_MULTI = [
    {"chosen": [user(question(i)), assistant("Which book?"), user("The old one."), assistant(good(i))],
     "rejected": [user(question(i)), assistant("Which book?"), user("The old one."), assistant(bad(i))]}
    for i in range(16)
]  # fmt: skip

_PAIRS = [
    *(Case("hh", method, many(_hh), may=_in_turns(method)) for method in ("dpo", "cpo", "orpo", "reward", "kto", "bco")),
    *(Case("ultrafeedback-scored", method, many(_scored)) for method in ("dpo", "orpo", "reward")),
    *(Case("ultrafeedback", method, every(many(c.full_chats), score_chosen=9, score_rejected=2.5)) for method in ("cpo", "orpo", "bco")),
    *(Case("explicit", method, many(c.preference)) for method in ("cpo", "orpo", "reward", "bco")),
    *(Case("explicit-chat", method, many(c.chat_preference), may=_in_turns(method)) for method in ("dpo", "cpo", "orpo", "kto", "bco")),
    *(Case("implicit-multi-turn", method, _MULTI, may=_in_turns(method)) for method in ("dpo", "cpo", "orpo", "reward", "kto", "bco")),
    Case("equal-scores", "dpo", every(many(c.chat_preference), score_chosen=5, score_rejected=5)),
    Case("scores-null-in-some", "dpo", every(many(c.preference), score_chosen=lambda i: None if i % 2 else 7.0, score_rejected=3.0)),
    Case("scores-as-text", "dpo", every(many(c.preference), score_chosen="9.0", score_rejected="2.0")),
    Case("argilla", "dpo", every(many(c.chat_preference), source="evol", **{"chosen-rating": 5.0, "rejected-rating": 3.75, "chosen-model": "a", "rejected-model": "b"})),
    Case("helpsteer", "reward", every(many(c.preference), margin=lambda i: 0.5 + i % 3)),
    Case("margin-ints-and-zero", "reward", every(many(c.chat_preference), margin=lambda i: i % 4)),
    Case("pair-tokens", "reward", many(lambda i: {"chosen_ids": [5 + i, 6, 7, 2], "rejected_ids": [5 + i, 8, 9, 2]})),
    Case("pair-tokens-old-names", "reward", many(lambda i: {"chosen_input_ids": [5 + i, 6, 7, 2], "rejected_input_ids": [5 + i, 8, 9, 2]})),
    Case("multi-turn-completions", "dpo", every(many(c.chat_preference), chosen=lambda i: [assistant("Let me see."), user("And?"), assistant(good(i))], rejected=lambda i: [assistant(bad(i)), user("And?"), assistant("That is all.")])),
    Case("histories-differ-after-the-first-answer", "dpo", many(lambda i: {"chosen": [user(question(i)), assistant(good(i)), user("Thanks."), assistant("You are welcome.")], "rejected": [user(question(i)), assistant(bad(i)), user("Thanks."), assistant("Whatever.")]})),
    Case("different-lengths", "dpo", many(lambda i: {"chosen": [user(question(i)), assistant(good(i))], "rejected": [user(question(i)), assistant(bad(i)), user("What?"), assistant("Nothing.")]})),
    Case("system", "dpo", many(lambda i: {key: [system(), *value] for key, value in c.chat_implicit(i).items()})),
    Case("system-explicit", "cpo", every(many(c.chat_preference), prompt=lambda i: [system(), user(question(i))])),
    Case("one-long-rejected", "dpo", but(many(c.chat_preference), rejected=[assistant(bad(5) * 20)]), args={"max_length": 2048}),
    Case("code", "dpo", [{"prompt": question(i), "chosen": "\n" + text, "rejected": "\nI cannot code."} for i, text in enumerate(_CODE)]),
    Case("many-scripts", "orpo", [{"prompt": question(i), "chosen": "\n" + text, "rejected": "\n" + _WORLD[15 - i] + " Oder?"} for i, text in enumerate(_WORLD)]),
    Case("a-refusal-in-all", "dpo", every(many(c.chat_preference), rejected=[assistant("I'm sorry, but I can't help with that.")])),
    Case("letters", "dpo", every(many(c.preference), prompt=lambda i: f"{question(i)}\nA) few\nB) many\nAnswer:", chosen=" A", rejected=" B")),
    Case("reference-logps", "dpo", every(many(c.preference), ref_chosen_logps=lambda i: -12.5 - i, ref_rejected_logps=lambda i: -20.0 - i)),
    Case("kwargs", "dpo", every(many(c.chat_preference), chat_template_kwargs={"enable_thinking": False}), tok="qwen3"),
    Case("kwargs", "cpo", every(many(c.chat_preference), chat_template_kwargs={"enable_thinking": False}), tok="qwen3"),
    Case("almost-equal", "dpo", every(many(c.chat_preference), rejected=lambda i: [assistant(good(i).replace("had", "has"))])),
    Case("implicit-newline-answer", "orpo", many(lambda i: {"chosen": f"{question(i)}\n{good(i)}", "rejected": f"{question(i)}\n{bad(i)}"})),
    Case("evaluated", "dpo", many(c.preference), args={"eval_strategy": "steps", "eval_steps": 2}, evaluation=every(many(c.preference), prompt=lambda i: question(i + 50))),
    Case("context-long", "reward", many(lambda i: {key: [user(question(i) * 5), *value[1:]] for key, value in c.chat_implicit(i).items()})),
]  # fmt: skip

_UNPAIRED = [
    *(Case("unpaired", method, many(c.unpaired)) for method in ("kto", "bco")),
    *(Case("chat", method, many(c.chat_unpaired)) for method in ("kto", "bco")),
    Case("extras", "kto", every(many(c.unpaired), id=str, score=lambda i: i / 2, source=None)),
    Case("extras", "bco", every(many(c.chat_unpaired), annotator=lambda i: i % 3)),
    Case("three-to-one", "kto", every(many(c.unpaired), label=lambda i: i % 4 != 0)),
    Case("four-to-one", "bco", every(many(c.unpaired, 20), label=lambda i: i % 5 != 0)),
    Case("same-prompt-two-answers", "kto", every(many(c.unpaired), prompt=lambda i: question(i // 2))),
    Case("multi-turn", "kto", every(many(c.chat_unpaired), prompt=lambda i: [system(), user("Hello."), assistant("Hello."), user(question(i))])),
    Case("paired-text", "bco", many(c.preference)),
    Case("paired-implicit", "kto", many(c.implicit), may=_in_turns("kto")),
    Case("paired-implicit", "bco", many(c.chat_implicit)),
    Case("many-scripts", "kto", [{"prompt": question(i), "completion": "\n" + text, "label": i % 2 == 0} for i, text in enumerate(_WORLD)]),
]  # fmt: skip

_PRM = [
    Case("math-shepherd", "prm", every(many(c.steps), labels=lambda i: [i % 3 > 0, i % 2 == 0], source="GSM8K", id=str)),
    Case("one-step", "prm", many(lambda i: {"prompt": question(i), "completions": [good(i)], "labels": [i % 2 == 0]})),
    Case("many-steps", "prm", many(lambda i: {"prompt": question(i), "completions": [f"Step {k}: add {k}." for k in range(i + 1)], "labels": [k % 3 < 2 for k in range(i + 1)]})),
    Case("glued-as-in-the-docs", "prm", every(many(c.steps), prompt=lambda i: f"Which is larger, {i}.8 or {i}.11?")),
    Case("latex-steps", "prm", [{"prompt": question(i), "completions": [text, "So."], "labels": [True, i % 2 == 0]} for i, text in enumerate(_LATEX)]),
    Case("tokens", "prm", many(lambda i: {"input_ids": [5 + i, 6, 7, 8, 9, 10], "labels": [-100, -100, 1, -100, -100, i % 2]})),
]  # fmt: skip

_GKD = [
    Case("two-turns", "gkd", many(c.messages)),
    Case("capybara", "gkd", _CAPYBARA),
    Case("trees", "gkd", _TREE, args={"max_length": 2048}),
    Case("system", "gkd", every(many(c.messages), messages=lambda i: [system(), user(question(i)), assistant(good(i))], id=str)),
    Case("many-scripts", "gkd", _answers(_WORLD)),
]  # fmt: skip

_ONLINE = ("grpo", "rloo", "online_dpo", "xpo", "nash_md", "minillm", "distillation")
_PROMPTS = [
    *(Case("prompts", method, many(c.prompt)) for method in _ONLINE),
    *(Case("chat", method, many(c.chat_prompt)) for method in _ONLINE),
    *(Case("system", method, every(many(c.chat_prompt), prompt=lambda i: [system(), user(question(i))])) for method in ("grpo", "rloo", "nash_md")),
    *(Case("answer", method, many(c.answered), args={"reward_columns": ["answer"]}) for method in ("grpo", "minillm")),
    Case("chat-answer", "rloo", every(many(c.answered), prompt=lambda i: [user(question(i))]), args={"reward_columns": ["answer"]}),
    Case("deepmath", "grpo", every(many(c.chat_prompt), solution=lambda i: f"${number(i)}$", difficulty=lambda i: i / 2, topic="Algebra -> Linear"), args={"reward_columns": ["solution"]}),
    Case("int-answers", "grpo", every(many(c.prompt), answer=number), args={"reward_columns": ["answer"]}),
    Case("int-and-float-answers", "grpo", every(many(c.prompt), answer=lambda i: i + 20 if i % 2 else i + 0.5), args={"reward_columns": ["answer"]}),
    Case("short-answers", "grpo", every(many(c.prompt), answer=lambda i: str(i % 10)), args={"reward_columns": ["answer"]}),
    Case("list-answers", "grpo", every(many(c.prompt), answer=lambda i: [number(i)] * (i % 3 + 1)), args={"reward_columns": ["answer"]}),
    Case("code-tests", "grpo", every(many(c.prompt), tests=lambda i: [{"input": f"{i}\n", "output": str(i * i)}] * (i % 4), entry_point="f", verification_info=lambda i: {"language": "python", "n": i}), args={"reward_columns": ["tests"]}),
    Case("verl", "grpo", many(lambda i: {"data_source": "openai/gsm8k", "prompt": [user(question(i))], "ability": "math", "reward_model": {"style": "rule", "ground_truth": str(number(i))}, "extra_info": {"index": i, "split": "train"}})),
    Case("several-columns", "grpo", every(many(c.answered), hint="none", weight=1.5), args={"reward_columns": ["answer", "hint"]}),
    Case("unnamed-column-of-two-kinds", "grpo", every(many(c.answered), id=lambda i: i if i % 2 else f"x{i}"), args={"reward_columns": ["answer"]}),
    Case("unnamed-column-null-in-some", "rloo", every(many(c.answered), note=lambda i: None if i % 2 else "x"), args={"reward_columns": ["answer"]}),
    Case("multi-turn", "grpo", every(many(c.chat_prompt), prompt=lambda i: [user("Hello."), assistant("Hello."), user(question(i))])),
    Case("multi-turn", "distillation", every(many(c.chat_prompt), prompt=lambda i: [user("Hello."), assistant("Hello."), user(question(i))])),
    Case("many-scripts", "grpo", [{"prompt": text + "?"} for text in _WORLD]),
    Case("latex", "rloo", [{"prompt": text, "answer": str(i * 1000)} for i, text in enumerate(_LATEX)], args={"reward_columns": ["answer"]}),
    Case("code-to-complete", "grpo", [{"prompt": f"def f_{i}(x):\n    \"\"\"Adds {i}.\"\"\"\n"} for i in range(16)]),
    Case("gemma", "grpo", many(c.chat_prompt), tok="gemma"),
    Case("bigger-groups", "grpo", many(c.prompt), args={"num_generations": 4, "per_device_train_batch_size": 8}),
    Case("columns-null", "nash_md", every(many(c.prompt), note=None)),
    Case("ids", "online_dpo", every(many(c.chat_prompt), id=lambda i: i, source="books")),
    Case("dataset-column", "minillm", every(many(c.prompt), dataset="books", idx=lambda i: i)),
    Case("fewer-than-a-batch-is-enough", "grpo", many(c.prompt, 2)),
    Case("prompts", "ppo", many(c.prompt)),
    Case("chat", "ppo", many(c.chat_prompt)),
    Case("tokens", "ppo", many(lambda i: {"input_ids": [5 + k for k in range(3 + i)]})),
]  # fmt: skip

LEGITIMATE = [*_SFT_TEXTS, *_SFT, *_CALLS, *_PAIRS, *_UNPAIRED, *_PRM, *_GKD, *_PROMPTS]
