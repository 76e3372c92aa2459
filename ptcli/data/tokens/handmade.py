"""CPO, ORPO and BCO, which put BOS and EOS on by hand and cut by their own arithmetic (trl/experimental/{cpo,bco})."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptcli.data.model import Hit, Row
from ptcli.data.tokens.encoded import Draft, Encoded, Ids, Sample, Unreadable
from ptcli.data.tokens.encoder import Encoder, chat_of, common_prefix, extract_prompt, is_chat, template_arguments

_LONGEST = 512
"""Tokens, where `max_length` is null."""
_OPEN, _GOES_ON = ("user", "tool"), "assistant"


class _Handmade(Encoder):
    """Prompt and completions as text first, then as tokens without any that the tokenizer adds."""

    wants_end = False  # EOS is appended whatever the template writes

    def draft_all(self, row: Row, prompt: Any, completions: Sequence[Any], names: tuple[str, ...]) -> Draft:
        """Texts: the prompt, then prompt and completion for each."""
        if is_chat(prompt):
            return self._draft_chats(row, chat_of(prompt), [chat_of(each) for each in completions], names)
        if not all(isinstance(each, str) for each in (prompt, *completions)):
            raise Unreadable
        wholes = [prompt + each for each in completions]
        return Draft([prompt, *wholes], plain=[prompt, *completions], data=names)

    def _draft_chats(self, row: Row, prompt: list[Any], completions: list[list[Any]], names: tuple[str, ...]) -> Draft:
        """`apply_chat_template` of trl/data_utils.py: the prompt is what it has in common with all completions."""
        extra = template_arguments(row)
        start = render_prompt(self, prompt, extra)
        chats = [prompt + each for each in completions]
        wholes = [self.codec.render(each, extra=extra) for each in chats]
        for whole in wholes:
            start = common_prefix(start, whole)
        return Draft([start, *wholes], chats=list(zip(chats, wholes, strict=True)), data=names)

    def pieces(self, prompt: Ids, whole: Ids) -> tuple[Ids, Ids]:
        """Tokens of prompt and answer: where the prompt's last token is another in the whole, it goes to the answer."""
        start = len(prompt)
        if whole[:start] != prompt:
            start -= 1
        return whole[:start], whole[start:]

    def boundary(self, prompt: Ids, kept: Ids, whole: Ids, draft: Draft, name: str) -> list[Hit]:
        """A finding where not only the prompt's last token changed: the answer then lacks its beginning."""
        return [] if kept == prompt[: len(kept)] else self.split(prompt, whole, draft, name)


def render_prompt(encoder: Encoder, prompt: list[Any], extra: Any, tools: Any = None) -> str:
    """A conversation up to where a completion begins; one that ends with the assistant's message goes on with it."""
    last = prompt[-1]["role"]
    if last in _OPEN:
        return encoder.codec.render(prompt, tools=tools, prompts=True, extra=extra)
    if last == _GOES_ON:
        return encoder.codec.render_open(prompt, tools=tools, extra=extra)
    raise Unreadable


def _with_bos(ids: Ids, bos: int | None) -> Ids:
    return ids if bos is None or (ids and ids[0] == bos) else [bos, *ids]


class CPO(_Handmade):
    """Pairs; an answer is cut to `max_length` less the longer answer, and the prompt never is."""

    keeps_empty = True

    def draft(self, row: Row) -> Draft:
        prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
        if is_chat(chosen) != is_chat(rejected) or not chosen or not rejected:
            raise Unreadable
        if prompt is None or is_chat(prompt) != is_chat(chosen):
            prompt, chosen, rejected = extract_prompt(chosen, rejected)
        return self.draft_all(row, prompt, [chosen, rejected], ("chosen", "rejected"))

    def assemble(self, draft: Draft, tokens: Sequence[Ids]) -> Encoded:
        eos, sides, hits = self.codec.eos, [], []
        for name, whole in zip(draft.data, tokens[1:], strict=True):
            prompt, answer = self.pieces(tokens[0], whole)
            hits += self.boundary(tokens[0], prompt, whole, draft, name)
            ended = answer if eos is None or (answer and answer[-1] == eos) else [*answer, eos]
            sides.append((name, _with_bos(prompt, self.codec.bos), ended))
        samples, longest = self._cut(sides)
        limit = self.max_length or _LONGEST
        if longest > limit:
            hits.append(Hit("cpo-truncation", "error", _CPO.format(longest=longest, limit=limit), _CPO_FIX))
        return Encoded(samples, hits=hits)

    def _cut(self, sides: Sequence[tuple[str, Ids, Ids]]) -> tuple[tuple[Sample, ...], int]:
        """The samples, and the tokens of the longest prompt with the longer answer."""
        limit = self.max_length or _LONGEST
        longer = max(len(answer) for _, _, answer in sides)
        samples = []
        for name, prompt, answer in sides:
            kept = answer[: limit - longer] if len(prompt) + longer > limit else answer
            cut = answer[len(kept) :]
            whole = prompt + kept
            samples.append(Sample(whole, len(prompt), name, cut=cut, cut_at=len(whole), lost=len(cut)))
        return tuple(samples), max(len(prompt) for _, prompt, _ in sides) + longer


_CPO = (
    "the prompt with the longer answer has {longest} tokens, and max_length is {limit}: answers are cut to max_length "
    "less the longer answer, whatever the prompt, which is never cut"
)
_CPO_FIX = "raise `training.max_length` above the longest prompt with its answer, or leave such rows out"


class BCO(_Handmade):
    """A prompt with one completion; the answer is cut to what the prompt leaves of `max_length`, and ended again."""

    def draft(self, row: Row) -> Draft:
        if row.get("chosen") is not None and row.get("rejected") is not None:
            prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
            if prompt is None or is_chat(prompt) != is_chat(chosen):
                prompt, chosen, rejected = extract_prompt(chosen, rejected)
            return self.draft_all(row, prompt, [chosen, rejected], ("chosen", "rejected"))
        return self.draft_all(row, row.get("prompt"), [row.get("completion")], ("completion",))

    def assemble(self, draft: Draft, tokens: Sequence[Ids]) -> Encoded:
        hits: list[Hit] = []
        samples = []
        for name, whole in zip(draft.data, tokens[1:], strict=True):
            prompt, answer = self.pieces(tokens[0], whole)
            if not prompt or not answer:
                raise Unreadable  # the trainer fails on a row without either
            hits += self.boundary(tokens[0], prompt, whole, draft, name)
            samples.append(self._cut(name, prompt, answer, hits))
        return Encoded(tuple(samples), hits=hits)

    def _cut(self, name: str, prompt: Ids, answer: Ids, hits: list[Hit]) -> Sample:
        codec, limit = self.codec, self.max_length or _LONGEST
        limit -= (codec.bos != prompt[0]) + (codec.eos != answer[-1])
        kept = answer[: limit - len(prompt)] if len(prompt) + len(answer) > limit else answer
        if kept is not answer and limit <= len(prompt):
            message = f"the prompt has {len(prompt)} tokens and max_length is {self.max_length or _LONGEST}"
            hits.append(Hit("bco-truncation", "error", f"{message}: {_BCO}", _CPO_FIX))
        start = _with_bos(prompt, codec.bos)
        ends = [] if codec.eos is None or (kept and kept[-1] == codec.eos) else [codec.eos]
        cut = answer[len(kept) :]
        place = len(start) + len(kept)
        return Sample([*start, *kept, *ends], len(start), name, cut=cut, cut_at=place, lost=len(cut))


_BCO = "the answer is cut to what is left of it, or by a negative number, and the prompt never is"
