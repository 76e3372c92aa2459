"""A tokenizer as the trainers use it: chats to text, and texts to tokens in batches.

Rendering is that of `apply_chat_template`, tokenizing that of `tokenizer(text)`, without what either does besides.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ptcli.data.tokens.encoded import Chat, Ids, NoTemplate, TemplateFault
from ptcli.data.tokens.marked import render_marked
from ptcli.recipe.rendering import compile_template, render_text

_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "
"""What transformers writes behind the message that is to be continued."""


class Codec:
    """A tokenizer, and the template that chats are rendered with."""

    def __init__(self, tokenizer: Any, *, parts: bool = False, template: str | None = None):
        """`parts`: contents that are text become parts, as a processor wants them. `template`: in place of its own."""
        self.tokenizer = tokenizer
        self._parts = parts
        self._template = template
        self.eos: int | None = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        self.unknown: int | None = tokenizer.unk_token_id
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._special_tokens = tokenizer.special_tokens_map
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))

    def with_template(self, template: str) -> Codec:
        """The same tokenizer with another template."""
        return Codec(self.tokenizer, parts=self._parts, template=template)

    # --- templates

    @cached_property
    def has_template(self) -> bool:
        return bool(self._template or self.tokenizer.chat_template)

    def template(self, tools: Any = None) -> str:
        """The template's text; of several by name, the one that is used with or without tools."""
        own = self.tokenizer.chat_template
        if self._template is not None:
            return self._template
        if isinstance(own, dict):
            return own.get("tool_use" if tools is not None and "tool_use" in own else "default") or ""
        return own or ""

    def render(
        self, chat: Chat, *, tools: Any = None, prompts: bool = False, extra: Mapping[str, Any] | None = None
    ) -> str:
        """The chat as text, with the generation prompt when `prompts`.

        Raises:
            TemplateFault: when the template raises.
        """
        arguments = self._arguments(chat, tools) | {"add_generation_prompt": prompts, **(extra or {})}
        try:
            return render_text(compile_template(self.template(tools)), arguments)
        except Exception as error:  # a template is somebody's program: it can fail in any way
            raise TemplateFault(_one_line(error)) from error

    def render_marked(
        self, chat: Chat, *, tools: Any = None, extra: Mapping[str, Any] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The chat as text, and the character ranges that the template marks as the assistant's."""
        arguments = self._arguments(chat, tools) | {"add_generation_prompt": False, **(extra or {})}
        try:
            return render_marked(self.template(tools), arguments)
        except Exception as error:
            raise TemplateFault(_one_line(error)) from error

    def render_open(self, chat: Chat, *, tools: Any = None, extra: Mapping[str, Any] | None = None) -> str:
        """The chat as text up to where its last message ends, so that it can go on (`continue_final_message`)."""
        last = copy.deepcopy(chat[-1])
        content = last.get("content")
        part = next((each for each in reversed(content) if "text" in each), None) if isinstance(content, list) else None
        text = part["text"] if part else content
        if not isinstance(text, str):
            raise TemplateFault("the last message has no text to go on with")
        if part:
            part["text"] = text + _CONTINUE
        else:
            last["content"] = text + _CONTINUE
        rendered = self.render([*chat[:-1], last], tools=tools, extra=extra)
        tag = _CONTINUE.strip()
        if text.strip() not in rendered or tag not in rendered:
            raise TemplateFault("the last message, which is to go on, does not appear in what the template makes of it")
        place = rendered.rindex(tag)
        return rendered[:place] if rendered[place:].startswith(_CONTINUE) else rendered[:place].rstrip()

    def _arguments(self, chat: Chat, tools: Any) -> dict[str, Any]:
        if not self.has_template:
            raise NoTemplate("there is no chat template")
        if not chat:
            raise TemplateFault("there is no message")
        if self._parts:
            chat = [_in_parts(message) for message in chat]
        return {**self._special_tokens, "messages": chat, "tools": tools, "documents": None}

    # --- tokens

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Every special token's text."""
        table = getattr(self.tokenizer, "added_tokens_decoder", {})
        named = {token.content for token in table.values() if token.special} | set(self.tokenizer.all_special_tokens)
        return tuple(sorted(token for token in named if len(token.strip()) > 1))

    @cached_property
    def size(self) -> int:
        """One more than the highest token id."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    @cached_property
    def byte_level(self) -> bool:
        """Whether its tokens are made of bytes, as TRL decides it."""
        backend = self._backend
        return backend is not None and (
            "ByteLevel" in repr(backend.pre_tokenizer) or "ByteLevel" in repr(backend.decoder)
        )

    @cached_property
    def byte_lengths(self) -> Mapping[int, int]:
        """Token id -> bytes of text that it stands for; of a byte-level tokenizer."""
        lengths = {number: len(token) for token, number in self.tokenizer.get_vocab().items()}
        table = getattr(self.tokenizer, "added_tokens_decoder", {})
        return lengths | {number: len(token.content.encode()) for number, token in table.items()}

    def tokenize(self, texts: Sequence[str], *, special: bool) -> list[Ids]:
        """The token ids of every text. `special`: with the special tokens that the tokenizer adds."""
        if not texts:
            return []
        if self._backend is None:
            return self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return [each.ids for each in self._backend.encode_batch_fast(list(texts), add_special_tokens=special)]

    def tokenize_with_places(self, texts: Sequence[str]) -> list[Any]:
        """The backend's encodings, which know the characters of every token; without special tokens."""
        if self._backend is None:
            raise TemplateFault("the tokenizer does not know the characters of its tokens")
        return self._backend.encode_batch(list(texts), add_special_tokens=False)


def _in_parts(message: Any) -> Any:
    """A message as TRL gives it to a processor (`prepare_multimodal_messages` without images)."""
    if isinstance(message, dict) and isinstance(message.get("content"), str):
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
    return message


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300] or type(error).__name__
