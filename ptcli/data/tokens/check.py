"""Token rules: rows rendered and tokenised as the method's trainer does, and what is seen then."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ptcli.data.model import Context, Hit, Row
from ptcli.data.rules.text import SUSPECT
from ptcli.data.tokens.codec import Codec
from ptcli.data.tokens.encoded import Draft, Encoded, NoTemplate, Sample, TemplateFault, Unreadable
from ptcli.data.tokens.encoder import Encoder
from ptcli.data.tokens.loading import Limits
from ptcli.data.tokens.probes import find_dropped
from ptcli.data.tokens.tally import TokenTally
from ptcli.methods import Method

_BATCH = 512
"""Rows that are rendered at once."""
_BATCH_TEXT = 2_000_000
"""Characters that are tokenised at once, about; tokens take a hundred times the memory of their text."""
_LONGEST_TEXT = 65_536
"""Characters of a text that are tokenised at least; what is beyond no length limit leaves anything of."""
_TEXT_PER_TOKEN = 16
"""Characters that are tokenised for each token of the longest sequence, many more than a token has."""
_CHATS = ("prompt", "completion", "chosen", "rejected", "messages")
_AWAY, _NOTHING = "completion-truncated-away", "zero-trained"


def encoder_class(method: Method) -> type[Encoder]:
    """The encoder that the method's row names."""
    module, _, name = method.encoder.partition(":")
    return getattr(importlib.import_module(module), name)


class TokenChecker:
    """Checks rows in batches. Safe to use in forked workers, each of which then tokenises with one thread."""

    def __init__(self, context: Context, tokenizer: Any, limits: Limits | None = None, first: Row | None = None):
        """`first`: the first row of the split, from which trainers conclude what all rows are."""
        self.context = context
        self.limits = limits or Limits()
        self.encoder = encoder_class(context.method)(Codec(tokenizer, parts=self.limits.vision), context, first)
        self.codec = self.encoder.codec
        self._home = os.getpid()
        self._marks = _by_start([each for each in self.codec.special_tokens if not SUSPECT.fullmatch(each)])
        self._stops = self.limits.stops | ({self.codec.eos} if self.codec.eos is not None else set())
        self._counts_unknown = self.codec.unknown not in (None, self.codec.eos, self.codec.bos)
        self._longest = max(_LONGEST_TEXT, _TEXT_PER_TOKEN * max(self.encoder.max_length or 0, self.limits.window or 0))
        self.tally = self._empty()

    def reset(self) -> TokenTally:
        """The tally so far; counting begins anew."""
        tally, self.tally = self.tally, self._empty()
        return tally

    def add(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Check rows, each with its number. Raises nothing, whatever the rows are."""
        if os.getpid() != self._home:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork must not use threads that it does not have
        for start in range(0, len(rows), _BATCH):
            self._add_batch(rows[start : start + _BATCH])

    def encode(self, row: Row) -> Encoded | None:
        """One row as the trainer reads it; None when it cannot be read."""
        try:
            draft = self._shorten(self.encoder.draft(row))
            (tokens,) = self._tokenize([draft])
            return None if tokens is None else self.encoder.assemble(draft, tokens)
        except Exception:  # a row can be anything
            return None

    # --- batches

    def _empty(self) -> TokenTally:
        rule = self.encoder.drop_rule
        return TokenTally(drop_rule=rule, trains=self.encoder.trains, whole=list(self._problems()))

    def _add_batch(self, rows: Iterable[tuple[int, Row]]) -> None:
        drafts = []
        for number, row in rows:
            draft = self._draft(number, row)
            if draft is None:
                self.tally.skipped += 1
            else:
                drafts.append((number, row, draft))
        every = self._tokenize([draft for _, _, draft in drafts])
        for (number, row, draft), tokens in zip(drafts, every, strict=True):
            self._judge(number, row, draft, tokens)

    def _draft(self, number: int, row: Row) -> Draft | None:
        if self.limits.vision and (row.get("image") or row.get("images")):
            return None  # tokens stand for images as only the processor knows
        try:
            return self._shorten(self.encoder.draft(row))
        except NoTemplate:
            self.tally.hit(Hit("missing-chat-template", "error", _NO_TEMPLATE, _NO_TEMPLATE_FIX), number)
        except TemplateFault as fault:
            self._blame_template(number, row, str(fault))
        except Exception:  # a row can be anything; what it should be is said by the structure rules
            pass
        return None

    def _shorten(self, draft: Draft) -> Draft:
        if any(len(text) > self._longest for text in draft.texts):
            draft.texts = [text[: self._longest] for text in draft.texts]
            draft.shortened = True
        return draft

    def _blame_template(self, number: int, row: Row, why: str) -> None:
        """A finding, unless the row is such that no template could render it."""
        messages = [message for name in _CHATS if isinstance(row.get(name), list) for message in row[name]]
        if not all(map(_renders, messages)):
            return
        if any(isinstance(message.get("content"), list) for message in messages):
            said = f"contents are lists of parts, which the chat template does not read: {why}"
            self.tally.hit(Hit("content-parts", "error", said, "write contents as text"), number)
        else:
            self.tally.hit(Hit("template-raises", "error", f"the chat template refuses the row: {why}"), number)

    def _tokenize(self, drafts: Sequence[Draft]) -> list[list[Any] | None]:
        """The tokens of every draft's texts; None for a draft that cannot be tokenised."""
        found: list[list[Any] | None] = [[] for _ in drafts]
        for special in (False, True):
            group = [index for index, draft in enumerate(drafts) if draft.texts and draft.special is special]
            texts = [text for index in group for text in drafts[index].texts]
            tokens = iter([each for part in _parts(texts) for each in self._tokenize_texts(part, special=special)])
            for index in group:
                own = [next(tokens) for _ in drafts[index].texts]
                found[index] = None if None in own else own
        return found

    def _tokenize_texts(self, texts: Sequence[str], *, special: bool) -> Sequence[Any]:
        try:
            return self._tokenize_batch(texts, special=special)
        except Exception:  # one text that is none (a lone surrogate) fails the batch
            return [self._tokenize_text(text, special=special) for text in texts]

    def _tokenize_batch(self, texts: Sequence[str], *, special: bool) -> Sequence[Any]:
        if self.encoder.places and not special:
            return self.codec.tokenize_with_places(texts) if texts else []
        return self.codec.tokenize(texts, special=special)

    def _tokenize_text(self, text: str, *, special: bool) -> Any:
        try:
            return self._tokenize_batch([text], special=special)[0]
        except Exception:
            return None

    # --- rules

    def _judge(self, number: int, row: Row, draft: Draft, tokens: list[Any] | None) -> None:
        tally = self.tally
        try:
            if tokens is None:
                raise Unreadable
            encoded = self.encoder.assemble(draft, tokens)
            dropped = list(find_dropped(draft.chats, draft.tools))
        except Exception:  # as in `_draft`
            tally.skipped += 1
            return
        tally.rows += 1
        for variant, hit in dropped:
            tally.hit(hit, number, variant)
        for hit in encoded.hits:
            tally.hit(hit, number)
        for hit in self._judge_text(draft):
            tally.hit(hit, number)
        for sample in encoded.samples:
            self._judge_sample(number, sample, draft)
        if self.encoder.trains:
            self._judge_loss(number, row, draft, encoded)

    def _judge_text(self, draft: Draft) -> Iterator[Hit]:
        """Special tokens where the row's own text should be, besides those that the structure rules know."""
        contents = [message.get("content") for chat, _ in draft.chats for message in chat]
        for text in (*draft.plain, *contents):
            if not isinstance(text, str) or not text:
                continue
            for start, tokens in self._marks.items():
                if start in text:
                    found = next((token for token in tokens if self._holds(text, token)), None)
                    if found:
                        yield Hit("special-token-in-text", "warning", _SPECIAL.format(token=found), _SPECIAL_FIX)
                        return

    def _holds(self, text: str, token: str) -> bool:
        """Whether the token is in the text; one EOS at the end is as it should be."""
        if token not in text:
            return False
        return token != self.codec.tokenizer.eos_token or token in text.rstrip().removesuffix(token)

    def _judge_sample(self, number: int, sample: Sample, draft: Draft) -> None:
        tally, ids = self.tally, sample.ids
        tally.measure(sample.length, number)
        tally.tokens += len(ids)
        tally.cut += len(sample.cut)
        bos = self.codec.bos
        if bos is not None and ids[:2] == [bos, bos]:
            tally.hit(Hit("double-bos", "warning", _DOUBLE_BOS, _DOUBLE_BOS_FIX), number)
        if self._counts_unknown:
            tally.unknown += ids.count(self.codec.unknown)  # type: ignore[arg-type]
        if not draft.texts:
            self._judge_ids(number, ids)
        if not self.encoder.trains:
            self._judge_prompt(number, len(ids))

    def _judge_ids(self, number: int, ids: Sequence[int]) -> None:
        """Ids of a row that came as tokens."""
        rows = self.limits.embeddings
        wrong = next((each for each in ids if rows and each >= rows), None)
        if wrong is not None:
            said = f"token id {wrong} is out of range: the model's embedding has {rows} rows"
            self.tally.hit(Hit("token-id-range", "error", said), number)

    def _judge_prompt(self, number: int, length: int) -> None:
        """A prompt that leaves no room for its completion."""
        encoder: Any = self.encoder
        whole = length + encoder.completion_length
        room, rule = self.limits.window, "rl-prompt-not-truncated"
        if encoder.left_cut is not None and whole > encoder.left_cut:
            limit = f"max_length ({encoder.left_cut}): the prompt loses its beginning"
            said = f"prompt and `{encoder.completion_argument}` have {whole} tokens, more than {limit}"
            self.tally.hit(Hit(rule, "warning", said, _ROOM_FIX), number, "cut")
        if room is not None and whole > room:
            said = f"prompt and `{encoder.completion_argument}` have {whole} tokens, and the model takes {room}"
            self.tally.hit(Hit(rule, "warning", said, _ROOM_FIX), number)

    def _judge_loss(self, number: int, row: Row, draft: Draft, encoded: Encoded) -> None:
        """What is cut, left out, and trained at all."""
        tally, samples = self.tally, encoded.samples
        longest = max((sample.length for sample in samples if sample.cut), default=0)
        if longest:
            tally.cut_rows += 1
            tally.hit(Hit("truncation", "warning", self._truncation(longest, draft), _LENGTH_FIX), number)
        if encoded.dropped:
            self._judge_dropped(number, draft, encoded)
            return
        for sample in samples:
            trained = sample.trained
            tally.trained += trained
            if trained < self.encoder.few or not trained:
                self._judge_few(number, sample, trained, draft)
            if not draft.shortened:
                self._judge_end(number, sample, row)
        if len(samples) == 2 and longest and samples[0].ids == samples[1].ids:
            said = "chosen and rejected are the same within max_length: there is nothing to learn from"
            tally.hit(Hit("truncated-identical", "error", said, _LENGTH_FIX), number)

    def _truncation(self, length: int, draft: Draft) -> str:
        more = "more than " if draft.shortened else ""
        loses = "its beginning" if self.encoder.cuts_start else "its end, and the token that ends it"
        return f"a row of {more}{length} tokens loses {loses} (max_length {self.context.argument('max_length')})"

    def _judge_dropped(self, number: int, draft: Draft, encoded: Encoded) -> None:
        """A row that the trainer leaves out, which is all that becomes of it."""
        self.tally.dropped += 1
        if not any(sample.cut or sample.trained for sample in encoded.samples):
            if draft.texts:
                said = "no token of the row is trained, and the trainer leaves it out"
                self.tally.hit(Hit(_NOTHING, "error", said), number)
            return
        said = f"rows are left out without a word: {encoded.dropped}"
        self.tally.hit(Hit(self.tally.drop_rule, "warning", said, _LENGTH_FIX), number, "dropped")

    def _judge_few(self, number: int, sample: Sample, trained: int, draft: Draft) -> None:
        if trained and sample.lost:
            said = f"max_length leaves no more than {trained} trained tokens of a row"
            self.tally.hit(Hit(_AWAY, "warning", said, _LENGTH_FIX), number, "few")
        elif sample.lost:
            said = "max_length leaves no trained token of a row, which stays in all the same"
            self.tally.hit(Hit(_AWAY, "error", said, _LENGTH_FIX), number, "none")
        elif not trained and draft.texts:  # of rows that are tokens already, their masks say it
            self.tally.hit(Hit(_NOTHING, "error", "no token of the row is trained"), number)

    def _judge_end(self, number: int, sample: Sample, row: Row) -> None:
        """The last trained token of a conversation that is not cut must be one that ends generation."""
        if not self.encoder.wants_end or (sample.cut and sample.cut_at) or not self.encoder.ends_with_answer(row):
            return
        ids = sample.ids
        if sample.mask is not None:
            ids = [token for token, trained in zip(ids, sample.mask, strict=True) if trained]
        if not ids or ids[-1] in self._stops:
            return
        if len(ids) > 1 and ids[-2] in self._stops and not self.codec.tokenizer.decode(ids[-1:]).strip():
            return
        end, eos = self.codec.tokenizer.decode(ids[-2:]), self.codec.tokenizer.eos_token
        said = f"answers end with {end!r} and not with the end-of-sequence token {eos!r}: generation would not stop"
        self.tally.hit(Hit("no-eos", "warning", said, _END_FIX), number)

    def _problems(self) -> Iterator[Hit]:
        """What is wrong with tokenizer and arguments, whatever the rows."""
        tokenizer, rows = self.codec.tokenizer, self.limits.embeddings
        if tokenizer.pad_token is None:
            said = f"the tokenizer has no pad token: the end-of-sequence token {tokenizer.eos_token!r} takes its place"
            yield Hit("pad-is-eos", "warning", said, _PAD_FIX)
        elif tokenizer.pad_token == tokenizer.eos_token:
            said = f"padding and end of sequence are the same token {tokenizer.eos_token!r}"
            yield Hit("pad-is-eos", "warning", said, _PAD_FIX)
        if rows and self.codec.size > rows and not self.context.argument("chat_template_path"):
            said = f"the tokenizer has {self.codec.size} tokens, and the model's embedding {rows} rows"
            yield Hit(
                "vocab-vs-embeddings", "error", said, "resize the model's embedding, and save it with its tokenizer"
            )
        yield from self.encoder.problems()


_NO_TEMPLATE = "rows are conversations, and the tokenizer has no chat template"
_NO_TEMPLATE_FIX = "name one in `model.chat_template`"
_SPECIAL = "text contains the special token {token!r}"
_SPECIAL_FIX = "already rendered text? Give conversations (`messages`) and let the template render them"
_DOUBLE_BOS = "sequences begin with the BOS token twice: it is in the text, and the tokenizer adds it"
_DOUBLE_BOS_FIX = "take it out of the text"
_LENGTH_FIX = "raise `training.max_length`, or leave such rows out"
_ROOM_FIX = "leave long prompts out, or shorten the completions"
_END_FIX = "name the token that ends a turn in `model.eos_token`"
_PAD_FIX = "name a token of its own in `model.pad_token`"


def _by_start(tokens: Sequence[str]) -> dict[str, list[str]]:
    """Tokens by their first two characters, which are looked for first."""
    groups: dict[str, list[str]] = {}
    for token in tokens:
        groups.setdefault(token[:2], []).append(token)
    return groups


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in runs that together are not too long."""
    start = size = 0
    for index, text in enumerate(texts):
        if size + len(text) > _BATCH_TEXT and index > start:
            yield texts[start:index]
            start, size = index, 0
        size += len(text)
    yield texts[start:]


def _renders(message: Any) -> bool:
    """Whether a message is such as a template can be expected to render."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return isinstance(content, str | list) or bool(content is None and message.get("tool_calls"))
