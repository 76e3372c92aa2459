"""DPO, KTO and the reward model: `_prepare_dataset` and the collator of trl/trainer/{dpo,kto,reward}_trainer.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptcli.data.model import Row
from ptcli.data.tokens.encoded import Chat, Draft, Encoded, Ids, Sample, cut_sample
from ptcli.data.tokens.encoder import Encoder, chat_of, extract_prompt, ids_of, same_kind, template_arguments, tools_of

_NO_ROOM = "the prompt alone fills max_length"


class _Prompted(Encoder):
    """A prompt, and completions whose tokens are what prompt and completion have beyond the prompt's."""

    def draft_all(self, row: Row, prompt: Any, completions: Sequence[Any], names: tuple[str, ...]) -> Draft:
        """Texts: the prompt, then prompt and completion for each."""
        if same_kind(prompt, *completions):
            return self._draft_chats(row, chat_of(prompt), [chat_of(each) for each in completions], names)
        ends = self.ends_text(row, "prompt" if "prompt" in row else "chosen")
        wholes = [prompt + (self.with_end(each) if ends else each) for each in completions]
        return Draft([prompt, *wholes], special=True, plain=[prompt, *completions], data=names)

    def _draft_chats(self, row: Row, prompt: list[Any], completions: list[list[Any]], names: tuple[str, ...]) -> Draft:
        tools, extra = tools_of(row), template_arguments(row)
        start = self.codec.render(prompt, tools=tools, prompts=True, extra=extra)
        chats = [prompt + each for each in completions]
        wholes = [self.codec.render(each, tools=tools, extra=extra) for each in chats]
        rendered: list[tuple[Chat, str]] = list(zip(chats, wholes, strict=True))
        return Draft([start, *wholes], chats=rendered, tools=tools, data=names)

    def assemble(self, draft: Draft, tokens: Sequence[Ids]) -> Encoded:
        prompt, hits, samples = tokens[0], [], []
        for name, whole in zip(draft.data, tokens[1:], strict=True):
            hits += self.split(prompt, whole, draft, name)
            sample = Sample(prompt + whole[len(prompt) :], len(prompt), name)
            samples.append(cut_sample(sample, self.max_length, keep=self.keep))
        full = self.max_length is not None and self.keep == "start" and len(prompt) >= self.max_length
        return Encoded(tuple(samples), _NO_ROOM if full else "", hits)


def _pair(row: Row) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected, the prompt taken out of the other two where there is none."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if row.get("prompt") is not None:
        return row["prompt"], chosen, rejected
    same_kind(chosen, rejected)
    return extract_prompt(chosen, rejected)


class DPO(_Prompted):
    """A prompt with a chosen and a rejected completion, each pair trained on both."""

    def draft(self, row: Row) -> Draft:
        prompt, chosen, rejected = _pair(row)
        return self.draft_all(row, prompt, [chosen, rejected], ("chosen", "rejected"))


class KTO(_Prompted):
    """A prompt with one completion; pairs become two rows."""

    def draft(self, row: Row) -> Draft:
        if row.get("completion") is not None:
            return self.draft_all(row, row.get("prompt"), [row["completion"]], ("completion",))
        prompt, chosen, rejected = _pair(row)
        return self.draft_all(row, prompt, [chosen, rejected], ("chosen", "rejected"))


class Reward(Encoder):
    """Two whole texts or conversations, of which the score at the last token is trained."""

    wants_end = False
    drop_rule = "reward-filtered"

    def draft(self, row: Row) -> Draft:
        tokens = _tokens(row)
        if tokens is not None:
            return Draft([], data=tokens)
        chosen: Any = row.get("chosen")
        rejected: Any = row.get("rejected")
        prompt = row.get("prompt")
        given = [] if prompt is None else [prompt]
        if same_kind(chosen, rejected, *given):
            return self._draft_chats(row, [chat_of(each) for each in given], [chat_of(chosen), chat_of(rejected)])
        start = prompt or ""
        ends = self.ends_text(row, "chosen")
        wholes = [start + (self.with_end(each) if ends else each) for each in (chosen, rejected)]
        return Draft(wholes, special=True, plain=[start, chosen, rejected])

    def _draft_chats(self, row: Row, given: list[list[Any]], answers: list[list[Any]]) -> Draft:
        tools, extra = tools_of(row), template_arguments(row)
        chats = [(given[0] if given else []) + each for each in answers]
        wholes = [self.codec.render(each, tools=tools, extra=extra) for each in chats]
        return Draft(wholes, chats=list(zip(chats, wholes, strict=True)), tools=tools)

    def assemble(self, draft: Draft, tokens: Sequence[Ids]) -> Encoded:
        sides = draft.data or tokens
        samples = tuple(Sample(ids, 0, name) for ids, name in zip(sides, ("chosen", "rejected"), strict=True))
        long = self.max_length is not None and max(len(ids) for ids in sides) > self.max_length
        return Encoded(samples, "longer than max_length" if long else "")


def _tokens(row: Row) -> tuple[Ids, Ids] | None:
    """A pair that is tokens already."""
    for names in (("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")):
        sides = [row.get(name) for name in names]
        if all(side is not None for side in sides):
            return ids_of(sides[0]), ids_of(sides[1])
    return None
