"""The shipped tokenizer: the 256 bytes, so that any text is encoded and comes back exactly, and a few tokens more.

The id of a byte is the byte. `\\boxed{` is one token, because answers that TRL's accuracy reward accepts begin with it;
the tokens on the way to it (`\\b`, `\\bo`, ...) are all that is merged, and arithmetic is read digit by digit.
The chat template is model/chat_template.jinja itself, which this only reads.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptcli.builtin import MODEL

MERGED = "\\boxed{"
PAD, _, TURN_END, _ = SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|reserved|>")
"""The last one only makes the vocabulary a multiple of 16."""
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tools>", "</tools>")
"""Ordinary text that is one token, so that tool calls stay short."""
MAX_LENGTH = 4096
"""Positions of the model."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template. The end of a turn is the end of a sequence, and padding is neither."""
    backend = Tokenizer(_byte_pairs())
    # No regular expression splits the text first: with so few merges it would change nothing but the time taken.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (MODEL / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def _byte_pairs() -> models.BPE:
    vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())}
    merges = [(MERGED[:end], MERGED[end]) for end in range(1, len(MERGED))]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    return models.BPE(vocab=vocabulary, merges=merges)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself if visible, else the next from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]
