"""Prompts that a policy answers: GRPO and its like, online DPO and its like, and PPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptcli.data.model import Row
from ptcli.data.tokens.encoded import Draft, Encoded, Ids, Sample
from ptcli.data.tokens.encoder import Encoder, chat_of, ids_of, is_chat, template_arguments, text_of, tools_of
from ptcli.data.tokens.handmade import render_prompt


class _Prompt(Encoder):
    """A prompt, of which nothing is trained."""

    trains = False
    completion_argument = "max_completion_length"
    """Trainer argument with the tokens of the longest completion."""
    adds_bos = False

    @property
    def completion_length(self) -> int:
        return self.context.argument(self.completion_argument, 0)

    @property
    def left_cut(self) -> int | None:
        """Tokens of prompt and completion beyond which the prompt loses its beginning; None where it never does."""
        return None

    def assemble(self, draft: Draft, tokens: Sequence[Ids]) -> Encoded:
        ids = tokens[0] if tokens else draft.data
        return Encoded((Sample(ids, len(ids), "prompt"),))


class Rollout(_Prompt):
    """Whole prompts, rendered with the config's own template arguments (`_tokenize_prompts`)."""

    def draft(self, row: Row) -> Draft:
        prompt = row.get("prompt")
        if not is_chat(prompt):
            return Draft([text_of(prompt)], special=True, plain=[text_of(prompt)])
        chat = chat_of(prompt)
        text = self.codec.render(chat, prompts=True, extra=self.context.argument("chat_template_kwargs", {}))
        return Draft([text], chats=[(chat, text)])


class OnlineDPO(_Prompt):
    """Prompts without the tokenizer's special tokens; with the completion, they are cut on the left."""

    completion_argument = "max_new_tokens"

    @property
    def left_cut(self) -> int | None:
        return self.max_length

    def draft(self, row: Row) -> Draft:
        prompt = row.get("prompt")
        if not is_chat(prompt):
            return Draft([text_of(prompt)], plain=[text_of(prompt)])
        chat = chat_of(prompt)
        text = render_prompt(self, chat, self.arguments(row))
        return Draft([text], chats=[(chat, text)])

    def arguments(self, row: Row) -> Mapping[str, Any]:
        """What the template gets besides: nothing of the row but its prompt gets so far."""
        return {}


class XPO(OnlineDPO):
    """As online DPO, but with the row's own template arguments, and BOS before each prompt that lacks it."""

    def arguments(self, row: Row) -> Mapping[str, Any]:
        return template_arguments(row)

    def assemble(self, draft: Draft, tokens: Sequence[Ids]) -> Encoded:
        ids, bos = tokens[0], self.codec.bos
        if bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return Encoded((Sample(ids, len(ids), "prompt"),))


class PPO(_Prompt):
    """Prompts that ptcli itself turns into tokens (ptcli/train/prompts.py)."""

    completion_argument = "response_length"

    def draft(self, row: Row) -> Draft:
        if isinstance(row.get("input_ids"), list):
            return Draft([], data=ids_of(row["input_ids"]))
        prompt = row.get("prompt")
        if not is_chat(prompt):
            return Draft([text_of(prompt)], special=True, plain=[text_of(prompt)])
        chat, extra, tools = chat_of(prompt), template_arguments(row), tools_of(row) or None
        goes_on = chat[-1]["role"] == "assistant"
        text = self._open(chat, tools, extra) if goes_on else self._ask(chat, tools, extra)
        return Draft([text], chats=[(chat, text)], tools=tools)

    def _open(self, chat: list[Any], tools: Any, extra: Any) -> str:
        return self.codec.render_open(chat, tools=tools, extra=extra)

    def _ask(self, chat: list[Any], tools: Any, extra: Any) -> str:
        return self.codec.render(chat, tools=tools, prompts=True, extra=extra)
