"""A row as the trainer reads it, for people: what is trained, what is masked, what is cut away."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Literal

from ptcli.data.tokens.encoded import Encoded, Ids, Sample

Kind = Literal["prompt", "masked", "trained", "cut"]

_COLOURS: dict[Kind, tuple[str, str]] = {
    "prompt": ("\033[36m", "\033[0m"),
    "masked": ("\033[2m", "\033[0m"),
    "trained": ("\033[1;32m", "\033[0m"),
    "cut": ("\033[9;31m", "\033[0m"),
}
_BRACKETS: dict[Kind, tuple[str, str]] = {
    "prompt": ("", ""),
    "masked": ("", ""),
    "trained": ("[[", "]]"),
    "cut": ("{{", "}}"),
}
_SHOWN = {number: f"\\x{number:02x}" for number in [*range(9), *range(11, 32), *range(127, 160)]}
"""Control characters, which must not reach a terminal."""


def pieces(sample: Sample) -> Iterator[tuple[Kind, Ids]]:
    """The sequence in order, in runs of tokens of one kind."""
    kinds: list[tuple[Kind, int]] = [
        ("trained" if trained else "prompt" if place < sample.start else "masked", token)
        for place, (trained, token) in enumerate(zip(sample.flags, sample.ids, strict=True))
    ]
    cut: list[tuple[Kind, int]] = [("cut", token) for token in sample.cut]
    for kind, run in groupby([*kinds[: sample.cut_at], *cut, *kinds[sample.cut_at :]], key=lambda each: each[0]):
        yield kind, [token for _, token in run]


def render_show(encoded: Encoded, tokenizer: Any, *, colour: bool) -> str:
    """The row's sequences: prompt, trained and masked tokens in colours, or `[[trained]]` and `{{cut away}}`."""
    blocks = [_render_sample(sample, tokenizer, colour=colour) for sample in encoded.samples]
    if encoded.dropped:
        blocks.insert(0, f"(left out by the trainer: {encoded.dropped})")
    return "\n".join(blocks)


def _render_sample(sample: Sample, tokenizer: Any, *, colour: bool) -> str:
    marks = _COLOURS if colour else _BRACKETS
    text = "".join(marks[kind][0] + _decode(tokenizer, ids) + marks[kind][1] for kind, ids in pieces(sample))
    counts = [f"{len(sample.ids)} tokens", f"{sample.trained} trained"]
    counts += [f"{len(sample.cut)} cut away"] if sample.cut else []
    name = f"{sample.name}: " if sample.name else ""
    return f"-- {name}{', '.join(counts)}\n{text}"


def _decode(tokenizer: Any, ids: Ids) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text.translate(_SHOWN)
