"""Process reward models (trl/experimental/prm/prm_trainer.py, `tokenize_row`)."""

from __future__ import annotations

from collections.abc import Sequence

from ptcli.data.model import Row
from ptcli.data.tokens.encoded import Draft, Encoded, Ids, Sample, Unreadable, cut_sample
from ptcli.data.tokens.encoder import Encoder, fit_mask, ids_of, text_of
from ptcli.data.tokens.supervised import IGNORED


class PRM(Encoder):
    """A prompt and steps, of each of which the last token of its separator carries the label."""

    keeps_empty = True
    few = 1
    wants_end = False

    def draft(self, row: Row) -> Draft:
        if isinstance(row.get("input_ids"), list) and isinstance(row.get("labels"), list):
            return Draft([], data=(ids_of(row["input_ids"]), row["labels"]))
        steps, labels = row.get("completions"), row.get("labels")
        if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels):
            raise Unreadable
        texts = [text_of(row.get("prompt")), self.context.argument("step_separator", "\n"), *map(text_of, steps)]
        return Draft(texts, plain=[texts[0], *steps])

    def assemble(self, draft: Draft, tokens: Sequence[Ids]) -> Encoded:
        if draft.data:
            ids, labels = draft.data
            return Encoded((Sample(ids, 0, mask=fit_mask([label != IGNORED for label in labels], len(ids))),))
        prompt, separator, *steps = tokens
        if self.codec.bos is not None:
            prompt = [self.codec.bos, *prompt]
        ids, mask = list(prompt), [False] * len(prompt)
        for number, step in enumerate(steps, 1):
            ids += [*step, *separator]
            length = len(step) + len(separator)
            mask += [False] * (length - 1) + [number == len(steps) or not self._last_only] if length else []
        return Encoded((self._cut(Sample(ids, len(prompt), mask=mask), len(prompt)),))

    @property
    def _last_only(self) -> bool:
        return bool(self.context.argument("train_on_last_step_only")) and self.context.split == "train"

    def _cut(self, sample: Sample, prompt: int) -> Sample:
        """The steps are cut to `max_completion_length`, and then everything to `max_length`."""
        steps = self.context.argument("max_completion_length")
        limits = [self.max_length, None if steps is None else prompt + steps]
        known = [limit for limit in limits if limit is not None]
        return cut_sample(sample, min(known) if known else None)
