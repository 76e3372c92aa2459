"""SFT (trl/trainer/sft_trainer.py, `_prepare_dataset`) and GKD (trl/experimental/utils.py, `DataCollatorForChatML`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ptcli.data.model import Context, Hit, Row
from ptcli.data.tokens.codec import Codec
from ptcli.data.tokens.encoded import Draft, Encoded, Ids, Sample, Unreadable, cut_sample
from ptcli.data.tokens.encoder import (
    NOT_STABLE,
    Encoder,
    chat_of,
    fit_mask,
    ids_of,
    is_chat,
    same_kind,
    template_arguments,
    text_of,
    tools_of,
)
from ptcli.data.tokens.training_templates import training_template

IGNORED = -100


class SFT(Encoder):
    """Text, conversations, prompts with completions, or tokens."""

    column_mask: bool = True

    def __init__(self, codec: Codec, context: Context, first: Row | None = None):
        super().__init__(codec, context, first)
        argument = context.argument
        self._text = argument("dataset_text_field", "text")
        self._assistant_only = bool(argument("assistant_only_loss", False))
        packing = argument("packing", False)
        self._packing = packing if context.split == "train" else argument("eval_packing", packing)
        self._prepared = bool((argument("dataset_kwargs") or {}).get("skip_prepare_dataset"))
        self.keeps_empty = bool(self._packing or self.max_length is None or self._prepared)
        self._marked = self._assistant_only and self._with_markers()

    def _with_markers(self) -> bool:
        """Takes the template that TRL trains with where the own one marks no answers; False when there is none."""
        own = self.codec.template()
        found = training_template(own) if own else None
        if found is None:
            return False
        if found != own:
            self.codec = self.codec.with_template(found)
        return True

    @property
    def places(self) -> bool:
        return self._assistant_only

    def problems(self) -> Sequence[Hit]:
        if not self._assistant_only or self._marked or not self.codec.has_template:
            return ()
        message = (
            "`assistant_only_loss` is on, and the chat template does not mark what is the assistant's "
            "({% generation %}), nor is it one that TRL knows a marked version of"
        )
        return (Hit("assistant-only-loss", "error", message, "name a marked template in `model.chat_template`"),)

    def draft(self, row: Row) -> Draft:
        if row.get("input_ids") is not None:
            return Draft([], data=("tokens", row))
        if row.get("prompt") is not None:
            return self._draft_pair(row)
        messages = _messages(row)
        if messages is not None:
            return self._draft_chat(chat_of(messages), row, None)
        text = text_of(row.get(self._text))
        ended = self.with_end(text) if self._text == "text" and self.ends_text(row, self._text) else text
        return Draft([ended], special=True, plain=[text], data=("text", None))

    def _draft_pair(self, row: Row) -> Draft:
        prompt: Any = row["prompt"]
        completion: Any = row.get("completion")
        if same_kind(prompt, completion):
            return self._draft_chat(chat_of(prompt), row, chat_of(completion))
        ends = "text" not in row and self.ends_text(row, "prompt")
        whole = prompt + (self.with_end(completion) if ends else completion)
        return Draft([prompt, whole], special=True, plain=[prompt, completion], data=("pair", None))

    def _draft_chat(self, chat: list[dict[str, Any]], row: Row, completion: list[dict[str, Any]] | None) -> Draft:
        tools, extra = tools_of(row), template_arguments(row)
        whole = chat + (completion or [])
        places = None
        if self._marked:
            text, places = self.codec.render_marked(whole, tools=tools, extra=extra)
        else:
            text = self.codec.render(whole, tools=tools, extra=extra)
        if completion is None:
            return Draft([text], chats=[(whole, text)], tools=tools, data=("chat", places))
        prompt = self.codec.render(chat, tools=tools, prompts=True, extra=extra)
        return Draft([prompt, text], chats=[(whole, text)], tools=tools, data=("chats", places))

    def assemble(self, draft: Draft, tokens: Sequence[Any]) -> Encoded:
        kind, data = draft.data
        if kind == "tokens":
            return self._finish(*self._read_tokens(data))
        ids = [each.ids for each in tokens] if self.places else list(tokens)
        whole = ids[-1]
        sample, hits = Sample(whole, 0), []
        if len(ids) == 2:
            hits = self.split(ids[0], whole, draft, "completion")
            if self.context.argument("completion_only_loss", True):
                sample.start = min(len(ids[0]), len(whole))
        if self._marked and kind in ("chat", "chats"):
            hits += self._mark(sample, tokens[-1], data)
        return self._finish(sample, hits)

    def _mark(self, sample: Sample, encoding: Any, places: Sequence[tuple[int, int]]) -> list[Hit]:
        """Leaves only the assistant's tokens trained (`apply_chat_template(return_assistant_tokens_mask=True)`)."""
        mask = [False] * len(sample.ids)
        for start, end in places:
            first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
            if first is None:
                break
            for index in range(first, last + 1 if last else len(mask)):
                mask[index] = True
        empty = not any(mask)
        sample.mask = [marked and place >= sample.start for place, marked in enumerate(mask)]
        if not empty:
            return []
        return [Hit("assistant-mask-empty", "error", "`assistant_only_loss` is on, and no token is the assistant's")]

    def _read_tokens(self, row: Row) -> tuple[Sample, list[Hit]]:
        """A row that is tokens already: its labels, or the masks that count."""
        ids = ids_of(row["input_ids"])
        labels = row.get("labels")
        if isinstance(labels, list):
            return Sample(ids, 0, mask=fit_mask([label != IGNORED for label in labels], len(ids))), []
        used = ["assistant_masks", *(["completion_mask"] if self.context.argument("completion_only_loss") else [])]
        masks = [row[name] for name in used if isinstance(row.get(name), list)]
        if not masks:
            return Sample(ids, 0), []
        mask = [all(bits) for bits in zip(*masks, strict=False)]
        return Sample(ids, 0, mask=fit_mask(mask, len(ids))), []

    def _finish(self, sample: Sample, hits: list[Hit]) -> Encoded:
        """Truncation, or what packing does to a row that is too long for a pack."""
        if self._prepared:
            return Encoded((sample,), hits=hits)
        if self._packing:
            truncates = self.context.argument("packing_strategy", "bfd") == "bfd"
            return Encoded((cut_sample(sample, self.max_length) if truncates else sample,), hits=hits)
        sample = cut_sample(sample, self.max_length, keep=self.keep)
        empty = self.max_length is not None and not sample.trained
        return Encoded((sample,), "no trained token is left within max_length" if empty else "", hits)


def _messages(row: Row) -> Any:
    """The row's conversation, converted from ShareGPT's keys where they are used; None without one."""
    if is_chat(row.get("messages")):
        return row["messages"]
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(each, dict) for each in turns):
        return None
    if "from" not in turns[0] or "value" not in turns[0]:
        return None
    names = {"from": "role", "value": "content"}
    return [{names.get(key, key): value for key, value in each.items()} for each in turns]


class GKD(Encoder):
    """Conversations, of which the last message is trained; too long ones lose their beginning."""

    keeps_empty: bool = True

    def __init__(self, codec: Codec, context: Context, first: Row | None = None):
        super().__init__(codec, context, first)
        self.keep = "end"
        if self.max_length is None:
            self.max_length = min(codec.tokenizer.model_max_length, 1024)

    def draft(self, row: Row) -> Draft:
        chat = chat_of(row.get("messages"))
        prompt = row.get("prompt")
        prompt = row.get("original_prompt_text") if prompt is None else prompt
        if prompt is None:
            if len(chat) < 2:
                raise Unreadable
            prompt = self.codec.render(chat[:-1], prompts=True)
        text = self.codec.render(chat)
        texts = [text] if self.codec.byte_level else [text, text_of(prompt)]
        return Draft(texts, chats=[(chat, text)], data=text_of(prompt))

    def assemble(self, draft: Draft, tokens: Sequence[Any]) -> Encoded:
        prompt, text = draft.data, draft.texts[0]
        ids = tokens[0]
        start = self._boundary(prompt, text, ids) if self.codec.byte_level else len(tokens[1])
        hits = []
        if not text.startswith(prompt):
            message = (
                "the chat template writes all but the last message, with its generation prompt, differently from the "
                f"start of the whole: trained is {self.codec.tokenizer.decode(ids[start:][:30])!r}"
            )
            hits = [Hit(NOT_STABLE, "error", message)]
        sample = cut_sample(Sample(ids, min(start, len(ids))), self.max_length, keep="end")
        if sample.cut and sample.start == 0:
            message = "the last message alone fills max_length, at which the trainer stops: no prompt is left"
            hits.append(Hit("completion-truncated-away", "error", message, "raise `training.max_length`"))
        return Encoded((sample,), hits=hits)

    def _boundary(self, prompt: str, text: str, ids: Ids) -> int:
        """The first token that begins at or behind the prompt's last byte."""
        lengths = self.codec.byte_lengths
        ends = list(accumulate(map(lengths.__getitem__, ids)))
        if not ends or ends[-1] != len(text.encode()):  # a normalizer changed the text: characters are all there is
            (encoding,) = self.codec.tokenize_with_places([text])
            return next((at for at, (start, _) in enumerate(encoding.offsets) if start >= len(prompt)), len(ids))
        starts = [0, *ends[:-1]]
        return bisect_left(starts, len(prompt.encode()))
